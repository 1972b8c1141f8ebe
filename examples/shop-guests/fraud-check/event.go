package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// A Record is what stands at one position of a partition, whoever wrote it.
type Record struct {
	Partition int
	Position  int64             // reading goes on after it
	Headers   map[string]string // the attributes by their plain names
	Data      []byte            // nil for a tombstone
}

// An Event is a CloudEvent in either mode, once it is known to be one.
type Event struct {
	Attributes map[string]string
	Data       []byte
}

// Refused is why an event can never be handled: it becomes a dead letter at once.
type Refused string

func (r Refused) Error() string { return string(r) }

// Key is what orders the event among others; empty for none.
func (e Event) Key() string {
	if key, ok := e.Attributes["partitionkey"]; ok {
		return key
	}
	return e.Attributes["subject"]
}

// Decode reads the event's data as JSON.
func (e Event) Decode(into any) error {
	if !utf8.Valid(e.Data) {
		return Refused("data: is not UTF-8")
	}
	if err := json.Unmarshal(e.Data, into); err != nil {
		return Refused("data: " + err.Error())
	}
	return nil
}

// Version is the one that dataschema names, urn:oyez:TYPE:VERSION; 1 without it.
func (e Event) Version() int {
	version := 1
	if text, ours := strings.CutPrefix(e.Attributes["dataschema"], "urn:oyez:"+e.Attributes["type"]+":"); ours {
		fmt.Sscanf(text, "%d", &version)
	}
	return version
}

var attributeName = regexp.MustCompile(`^[a-z0-9]{1,20}$`)
var control = regexp.MustCompile(`[\x00-\x1f\x7f-\x{9f}]`)

// open returns the event of a record; a Refused error names the attribute that is wrong.
func open(record Record) (Event, error) {
	event := Event{record.Headers, record.Data}
	if record.Data == nil {
		return event, Refused("data: is absent (a tombstone)")
	}
	if strings.HasPrefix(strings.ToLower(record.Headers["datacontenttype"]), "application/cloudevents") {
		var err error
		if event, err = openStructured(record); err != nil {
			return event, err
		}
	}
	for name, value := range event.Attributes {
		if !attributeName.MatchString(name) || name == "data" {
			return event, Refused(fmt.Sprintf("%.40q: is no name of an attribute", name))
		}
		if !utf8.ValidString(value) || control.MatchString(value) || utf8.RuneCountInString(value) > 8192 {
			return event, Refused(name + ": holds a control character, or is too long")
		}
	}
	for _, name := range []string{"id", "source", "type"} {
		if event.Attributes[name] == "" {
			return event, Refused(name + ": is missing")
		}
	}
	if event.Attributes["specversion"] != "1.0" {
		return event, Refused("specversion: expected 1.0")
	}
	for _, name := range []string{"time", "expires"} {
		if text, ok := event.Attributes[name]; ok {
			text = strings.Replace(strings.ToUpper(text), ":60", ":59", 1) // a leap second
			if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
				return event, Refused(name + ": expected RFC 3339")
			}
		}
	}
	if len(event.Data) == 0 && event.Attributes["dataref"] != "" {
		return event, Refused("data: is elsewhere, at dataref")
	}
	return event, nil
}

func openStructured(record Record) (Event, error) {
	event := Event{map[string]string{}, []byte{}}
	var body map[string]json.RawMessage
	if !utf8.Valid(record.Data) || json.Unmarshal(record.Data, &body) != nil || body == nil {
		return event, Refused("$: is not a structured CloudEvent")
	}
	data, encoded := body["data"], body["data_base64"]
	delete(body, "data")
	delete(body, "data_base64")
	for name, raw := range body {
		var value any
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.UseNumber()
		if decoder.Decode(&value) != nil {
			return event, Refused(name + ": is not valid")
		}
		switch found := value.(type) {
		case nil:
		case string, bool:
			event.Attributes[name] = fmt.Sprint(found)
		case json.Number:
			if strings.ContainsAny(found.String(), ".eE") {
				return event, Refused(name + ": expected an integer")
			}
			event.Attributes[name] = found.String()
		default:
			return event, Refused(name + ": expected a text, a boolean or an integer")
		}
	}
	for _, name := range []string{"id", "source", "type", "specversion", "subject", "partitionkey"} {
		if outer, ok := record.Headers[name]; ok && outer != event.Attributes[name] {
			return event, Refused(name + ": differs between headers and body")
		}
	}
	switch {
	case data != nil && encoded != nil:
		return event, Refused("data_base64: is given beside data")
	case encoded != nil:
		var text string
		if json.Unmarshal(encoded, &text) != nil {
			return event, Refused("data_base64: expected a text")
		}
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return event, Refused("data_base64: is not base64")
		}
		event.Data = decoded
	case data != nil:
		event.Data = data
	}
	return event, nil
}

// An Announcement is published if, and only if, the transaction it comes from is committed.
type Announcement struct {
	Type, Key string
	Data      any
}

// attributes are those of an announcement: its own, and what it takes over from its cause.
func (a Announcement) attributes(source string, cause Event) map[string]string {
	found := map[string]string{
		"specversion": "1.0", "id": uuid.Must(uuid.NewV7()).String(), "source": source,
		"type": a.Type, "subject": a.Key, "datacontenttype": "application/json",
		"time":          time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"),
		"correlationid": cause.Attributes["id"], "causationid": cause.Attributes["id"],
	}
	for _, name := range []string{"correlationid", "traceparent", "tracestate", "authid", "authtype"} {
		if value, ok := cause.Attributes[name]; ok {
			found[name] = value
		}
	}
	return found
}

// partitionOf is murmur2 as Kafka's Java client computes it: the same on every broker.
func partitionOf(key string, partitions int) int {
	const m = 0x5bd1e995
	h, end := 0x9747b28c^uint32(len(key)), len(key)&^3
	for at := 0; at < end; at += 4 {
		k := binary.LittleEndian.Uint32([]byte(key[at:])) * m
		h = h*m ^ (k^k>>24)*m
	}
	for at := len(key) - 1; at >= end; at-- {
		h ^= uint32(key[at]) << (8 * (at - end))
	}
	if end < len(key) {
		h *= m
	}
	h = (h ^ h>>13) * m
	return int((h ^ h>>15) & 0x7fffffff % uint32(partitions))
}
