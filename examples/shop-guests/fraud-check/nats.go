package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type natsBroker struct{ js jetstream.JetStream }

func newNats(url string) Broker {
	connection, err := nats.Connect(url, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(200*time.Millisecond))
	check(err)
	js, err := jetstream.New(connection)
	check(err)
	return &natsBroker{js}
}

func streamName(stream string) string { return strings.ReplaceAll(stream, ".", "_") }

func (n *natsBroker) Partitions(ctx context.Context, stream string) (int, error) {
	found, err := n.js.Stream(ctx, streamName(stream))
	if err != nil {
		return 0, err
	}
	return len(found.CachedInfo().Config.Subjects), nil
}

func (n *natsBroker) Create(ctx context.Context, stream string, partitions int) error {
	if _, err := n.js.Stream(ctx, streamName(stream)); !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	var subjects []string
	for partition := range partitions {
		subjects = append(subjects, fmt.Sprintf("%s.%d", stream, partition))
	}
	_, err := n.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: streamName(stream), Subjects: subjects, MaxAge: 7 * 24 * time.Hour, AllowDirect: true,
		// A stream that is deleted and made again begins after every position that was stored.
		FirstSeq: uint64(time.Now().UnixMicro()),
	})
	return err
}

func (n *natsBroker) Read(ctx context.Context, stream string, after []int64, out chan<- Record) error {
	failed := make(chan error, len(after))
	for partition, position := range after {
		from := jetstream.OrderedConsumerConfig{FilterSubjects: []string{fmt.Sprintf("%s.%d", stream, partition)}}
		if position > 0 {
			from.DeliverPolicy, from.OptStartSeq = jetstream.DeliverByStartSequencePolicy, uint64(position)+1
		}
		consumer, err := n.js.OrderedConsumer(ctx, streamName(stream), from)
		if err != nil {
			return err
		}
		messages, err := consumer.Messages()
		if err != nil {
			return err
		}
		defer messages.Stop()
		go func() {
			for {
				message, err := messages.Next()
				if err != nil {
					failed <- err
					return
				}
				select {
				case out <- read(message, partition):
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func read(message jetstream.Msg, partition int) Record {
	record := Record{Partition: partition, Headers: map[string]string{}, Data: message.Data()}
	if metadata, err := message.Metadata(); err == nil {
		record.Position = int64(metadata.Sequence.Stream)
	}
	if record.Data == nil {
		record.Data = []byte{}
	}
	for name, values := range message.Headers() {
		name = strings.ToLower(name)
		if attribute, ours := strings.CutPrefix(name, "ce-"); ours {
			record.Headers[attribute] = unescape(values[len(values)-1])
		} else if name == "content-type" {
			record.Headers["datacontenttype"] = values[0]
		} else if name == "oyez-absent" && values[0] == "data" {
			record.Data = nil
		}
	}
	if len(record.Headers) == 0 && strings.HasPrefix(string(record.Data), "{") {
		record.Headers["datacontenttype"] = "application/cloudevents+json"
	}
	return record
}

var special = regexp.MustCompile("[^!#$&-~]+") // what a header's value can't hold as it is
var quoted = regexp.MustCompile(`\\(.)`)

func unescape(value string) string {
	value = strings.Trim(value, " \t")
	if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
		value = quoted.ReplaceAllString(value[1:len(value)-1], "$1")
	}
	if plain, err := url.PathUnescape(value); err == nil {
		return plain
	}
	return value
}

func (n *natsBroker) Publish(ctx context.Context, stream string, partition int, key string, headers map[string]string, data []byte) error {
	message := nats.NewMsg(fmt.Sprintf("%s.%d", stream, partition))
	message.Data = data
	for name, value := range headers {
		message.Header.Set("ce-"+name, special.ReplaceAllStringFunc(value, url.PathEscape))
	}
	_, err := n.js.PublishMsg(ctx, message) // returns with JetStream's answer
	return err
}
