package main

import (
	"context"
	"log"
	"strings"
)

// A Broker keeps streams of partitions. Its errors are those of a moment: everything is tried again.
type Broker interface {
	Partitions(ctx context.Context, stream string) (int, error)
	// Create makes a stream unless it exists.
	Create(ctx context.Context, stream string, partitions int) error
	// Read sends what follows the position of each partition, in order, until it fails or ctx ends.
	Read(ctx context.Context, stream string, after []int64, out chan<- Record) error
	// Publish returns once the broker has confirmed the event.
	Publish(ctx context.Context, stream string, partition int, key string, headers map[string]string, data []byte) error
}

// connect returns the broker of a URL; connections are made when they are needed.
func connect(url string) Broker {
	scheme, hosts, _ := strings.Cut(url, "://")
	hosts, _, _ = strings.Cut(hosts, "?")
	switch scheme {
	case "kafka":
		return newKafka(strings.Split(hosts, ","))
	case "nats":
		return newNats(url)
	}
	log.Fatalf("fraud-check: BROKER begins with %q; it reads kafka:// and nats://", scheme)
	return nil
}
