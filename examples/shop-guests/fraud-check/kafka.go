package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

type kafka struct {
	seeds    kgo.Opt
	producer *kgo.Client
}

func newKafka(hosts []string) Broker {
	seeds := kgo.SeedBrokers(hosts...)
	// Idempotent, with acks=all, as it is by default: a retry neither doubles nor reorders. There is
	// no linger, as the relay waits for each event.
	producer, err := kgo.NewClient(seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	check(err)
	return &kafka{seeds, producer}
}

func (k *kafka) Partitions(ctx context.Context, stream string) (int, error) {
	topics, err := kadm.NewClient(k.producer).ListTopics(ctx, stream)
	if err != nil {
		return 0, err
	}
	return len(topics[stream].Partitions), nil
}

func (k *kafka) Create(ctx context.Context, stream string, partitions int) error {
	_, err := kadm.NewClient(k.producer).CreateTopic(ctx, int32(partitions), -1, nil, stream)
	if errors.Is(err, kerr.TopicAlreadyExists) {
		return nil
	}
	return err
}

func (k *kafka) Read(ctx context.Context, stream string, after []int64, out chan<- Record) error {
	from := map[int32]kgo.Offset{}
	for partition, position := range after {
		from[int32(partition)] = kgo.NewOffset().At(position)
	}
	// No consumer group: which partitions are ours, and how far we are, our own store knows.
	client, err := kgo.NewClient(k.seeds, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{stream: from}))
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		for _, failed := range fetches.Errors() {
			return fmt.Errorf("reading %s: %w", stream, failed.Err)
		}
		for at := fetches.RecordIter(); !at.Done(); {
			message := at.Next()
			record := Record{int(message.Partition), message.Offset + 1, map[string]string{}, message.Value}
			for _, header := range message.Headers {
				if name, ours := strings.CutPrefix(header.Key, "ce_"); ours {
					record.Headers[name] = string(header.Value)
				} else if header.Key == "content-type" {
					record.Headers["datacontenttype"] = string(header.Value)
				}
			}
			select {
			case out <- record:
			case <-ctx.Done():
				return nil
			}
		}
	}
	return nil
}

func (k *kafka) Publish(ctx context.Context, stream string, partition int, key string, headers map[string]string, data []byte) error {
	record := &kgo.Record{Topic: stream, Partition: int32(partition), Key: []byte(key), Value: data}
	for name, value := range headers {
		if name == "datacontenttype" {
			name = "content-type"
		} else {
			name = "ce_" + name
		}
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	return k.producer.ProduceSync(ctx, record).FirstErr()
}
