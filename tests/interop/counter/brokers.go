package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Broker is one of the two that this program knows.
type Broker interface {
	// Read hands the messages after a position to a function, until that or the context ends it.
	Read(ctx context.Context, stream string, partition int, after int64, take func(Message) error) error
	// Publish returns once the broker has confirmed (W12).
	Publish(ctx context.Context, stream string, partition uint32, key string, headers map[string]string, data []byte) error
}

func Connect(address string) (Broker, error) {
	scheme, rest, _ := strings.Cut(address, "://")
	switch host, _, _ := strings.Cut(rest, "?"); scheme {
	case "kafka":
		return connectKafka(host)
	case "nats":
		return connectNATS("nats://" + host)
	}
	return nil, fmt.Errorf("no client for %s", scheme)
}

type kafka struct {
	server   string
	producer *kgo.Client
}

func connectKafka(server string) (Broker, error) {
	producer, err := kgo.NewClient(
		kgo.SeedBrokers(server),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
	)
	return &kafka{server, producer}, err
}

func (k *kafka) Read(ctx context.Context, stream string, partition int, after int64, take func(Message) error) error {
	begin := map[string]map[int32]kgo.Offset{stream: {int32(partition): kgo.NewOffset().At(after)}}
	consumer, err := kgo.NewClient(
		kgo.SeedBrokers(k.server), kgo.ConsumePartitions(begin), kgo.FetchMaxWait(time.Second),
	)
	if err != nil {
		return err
	}
	defer consumer.Close()
	for {
		fetches := consumer.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, record := range fetches.Records() {
			m := Message{map[string]string{}, record.Value, record.Offset + 1}
			for _, header := range record.Headers {
				if header.Key == "content-type" {
					m.Headers["datacontenttype"] = string(header.Value)
				} else if name, found := strings.CutPrefix(header.Key, "ce_"); found {
					m.Headers[name] = string(header.Value)
				}
			}
			if err := take(m); err != nil {
				return err
			}
		}
	}
}

func (k *kafka) Publish(ctx context.Context, stream string, partition uint32, key string, headers map[string]string, data []byte) error {
	record := &kgo.Record{Topic: stream, Partition: int32(partition), Key: []byte(key), Value: data}
	for name, value := range headers {
		header := "ce_" + name
		if name == "datacontenttype" {
			header = "content-type"
		}
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: header, Value: []byte(value)})
	}
	return k.producer.ProduceSync(ctx, record).FirstErr()
}

type natsBroker struct{ js jetstream.JetStream }

func connectNATS(address string) (Broker, error) {
	connection, err := nats.Connect(address, nats.MaxReconnects(-1), nats.ReconnectWait(200*time.Millisecond))
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(connection)
	return &natsBroker{js}, err
}

func (n *natsBroker) Read(ctx context.Context, stream string, partition int, after int64, take func(Message) error) error {
	consumer, err := n.js.OrderedConsumer(ctx, strings.ReplaceAll(stream, ".", "_"), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{fmt.Sprintf("%s.%d", stream, partition)},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    uint64(after) + 1,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullHeartbeat(time.Second), jetstream.PullExpiry(5*time.Second))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	defer messages.Stop()
	for {
		message, err := messages.Next()
		if err != nil {
			return err
		}
		about, err := message.Metadata()
		if err != nil {
			return err
		}
		m := Message{map[string]string{}, message.Data(), int64(about.Sequence.Stream)}
		if m.Data == nil {
			m.Data = []byte{} // NATS has no tombstones
		}
		for name, values := range message.Headers() {
			value, err := url.PathUnescape(values[len(values)-1])
			if err != nil {
				value = values[len(values)-1]
			}
			if plain, found := strings.CutPrefix(strings.ToLower(name), "ce-"); found {
				m.Headers[plain] = value
			} else if strings.EqualFold(name, "content-type") {
				m.Headers["datacontenttype"] = value
			}
		}
		if len(message.Headers()) == 0 {
			m.Headers["datacontenttype"] = structured
		}
		if err := take(m); err != nil {
			return err
		}
	}
}

func (n *natsBroker) Publish(ctx context.Context, stream string, partition uint32, key string, headers map[string]string, data []byte) error {
	message := nats.NewMsg(fmt.Sprintf("%s.%d", stream, partition))
	message.Data = data
	for name, value := range headers {
		message.Header["ce-"+name] = []string{escape(value)}
	}
	_, err := n.js.PublishMsg(ctx, message)
	return err
}

// escape percent-encodes what the HTTP binding of CloudEvents does.
func escape(value string) string {
	var to strings.Builder
	for _, c := range []byte(value) {
		if c > ' ' && c < 0x7f && c != '"' && c != '%' {
			to.WriteByte(c)
		} else {
			fmt.Fprintf(&to, "%%%02X", c)
		}
	}
	return to.String()
}
