// Fraud-check looks at every order of the shop and says whether a person should look as well.
//
// It joins by the broker only: BROKER (kafka://… or nats://…), SYSTEM, and DATA, the folder of its
// store. What makes each order judged once is in guest.go.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Limit is the total, in cents, from which a person looks at an order before it is shipped.
const Limit = 50_000

const tables = `create table if not exists verdict (
  order_id text primary key, total_cents integer not null, flagged integer not null)`

type orderPlaced struct {
	OrderID    string `json:"order_id"`
	TotalCents *int64 `json:"total_cents"`
}

type verdict struct {
	OrderID string `json:"order_id"`
	Reason  string `json:"reason,omitempty"`
}

// judge handles shop.order.placed: an order over the limit is flagged, any other is cleared.
func judge(work *Work, event Event) ([]Announcement, error) {
	var order orderPlaced
	if err := event.Decode(&order); err != nil {
		return nil, err
	}
	if order.OrderID == "" || order.TotalCents == nil {
		return nil, Refused("data: expected order_id and total_cents")
	}
	flagged := *order.TotalCents >= Limit
	work.Do("insert into verdict values (?, ?, ?)", order.OrderID, *order.TotalCents, flagged)
	if flagged {
		said := verdict{order.OrderID, "over_the_limit"}
		return []Announcement{{"shop.order.flagged", order.OrderID, said}}, nil
	}
	return []Announcement{{"shop.order.cleared", order.OrderID, verdict{OrderID: order.OrderID}}}, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if os.Getenv("CONFORMANCE_LEVEL") != "" {
		runCounter(ctx)
		return
	}
	system, data := setting("SYSTEM"), setting("DATA")
	guest := &Guest{
		Source:     "/" + system + "/fraud-check",
		In:         system + ".orders",
		Out:        system + ".fraud-check",
		Partitions: 8,
		Broker:     connect(setting("BROKER")),
		Store:      openStore(filepath.Join(data, "fraud-check.db"), tables),
		Handlers:   map[string]Handler{"shop.order.placed": {Version: 1, Handle: judge}},
	}
	guest.Run(ctx)
}

func setting(name string) string {
	value := os.Getenv(name)
	if value == "" {
		log.Fatalf("fraud-check: %s is not set; it needs BROKER, SYSTEM and DATA", name)
	}
	return value
}
