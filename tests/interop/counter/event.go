package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const structured = "application/cloudevents+json"

// Message is what a broker carried: attributes under their plain names, and data.
type Message struct {
	Headers  map[string]string
	Data     []byte // nil for a tombstone
	Position int64
}

// Event is a message that keeps the rules.
type Event struct {
	Attributes map[string]string
	Data       []byte
}

func (e Event) Key() string {
	if key, found := e.Attributes["partitionkey"]; found { // W6
		return key
	}
	return e.Attributes["subject"]
}

var (
	attributeName = regexp.MustCompile(`^[a-z0-9]{1,20}$`)
	controls      = regexp.MustCompile(`[\x00-\x1f\x7f-\x{9f}]`)
	schema        = regexp.MustCompile(`^urn:oyez:(.+):(\d{1,6})$`)
)

// Open reads a message of either mode, or says which rule it breaks.
func Open(m Message) (Event, error) {
	if m.Data == nil {
		return Event{}, fmt.Errorf("W2: a tombstone")
	}
	event := Event{m.Headers, m.Data}
	if strings.HasPrefix(m.Headers["datacontenttype"], structured) {
		var err error
		if event, err = unfold(m.Data); err != nil {
			return event, fmt.Errorf("W2: %w", err)
		}
	}
	a := event.Attributes
	for _, name := range []string{"id", "source", "type"} {
		if a[name] == "" {
			return event, fmt.Errorf("W1: %s is missing", name)
		}
	}
	if a["specversion"] != "1.0" {
		return event, fmt.Errorf("W1: specversion is %q", a["specversion"])
	}
	for name, value := range a {
		if !attributeName.MatchString(name) {
			return event, fmt.Errorf("W3: %q is not a name", name)
		}
		if utf8.RuneCountInString(value) > 8192 || controls.MatchString(value) || !utf8.ValidString(value) {
			return event, fmt.Errorf("W3: the value of %s", name)
		}
	}
	for _, name := range []string{"time", "expires"} {
		if value, found := a[name]; found {
			if _, err := time.Parse(time.RFC3339Nano, strings.ToUpper(value)); err != nil {
				return event, fmt.Errorf("W4: %s: %w", name, err)
			}
		}
	}
	return event, nil
}

func unfold(body []byte) (Event, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		return Event{}, err
	}
	data, plain := members["data"]
	encoded, inBase64 := members["data_base64"]
	delete(members, "data")
	delete(members, "data_base64")
	if plain && inBase64 {
		return Event{}, fmt.Errorf("data and data_base64")
	}
	event := Event{map[string]string{}, []byte{}}
	for name, raw := range members {
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.UseNumber()
		var value any
		if err := decoder.Decode(&value); err != nil {
			return event, err
		}
		if value != nil {
			event.Attributes[name] = fmt.Sprint(value)
		}
	}
	if inBase64 {
		var text string
		if err := json.Unmarshal(encoded, &text); err != nil {
			return event, err
		}
		bytes, err := base64.StdEncoding.DecodeString(text)
		event.Data = bytes
		return event, err
	}
	if plain {
		event.Data = data
	}
	return event, nil
}

// Version is 1, unless dataschema tells another for this type.
func (e Event) Version() int {
	found := schema.FindStringSubmatch(e.Attributes["dataschema"])
	if found == nil || found[1] != e.Attributes["type"] {
		return 1
	}
	version, _ := strconv.Atoi(found[2])
	return version
}

// Partition of a key: murmur2, as Kafka's Java client has it (W7).
func Partition(key string, partitions uint32) uint32 {
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
	return (h ^ h>>15) & 0x7fffffff % partitions
}
