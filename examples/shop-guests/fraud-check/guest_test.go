package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
)

// newGuest returns a guest that has claimed two partitions, as if the broker had given it some.
func newGuest(t *testing.T, handler Handler) *Guest {
	t.Helper()
	guest := &Guest{Source: "/shop/fraud-check", In: "shop.orders", Out: "shop.fraud-check", Broker: twoPartitions{},
		Store: openStore(filepath.Join(t.TempDir(), "test.db"), tables), Handlers: map[string]Handler{"shop.order.placed": handler}}
	t.Cleanup(func() { guest.Store.Close() })
	if positions, err := guest.claim(t.Context(), "one"); err != nil || len(positions) != 2 {
		t.Fatal(positions, err)
	}
	return guest
}

type twoPartitions struct{ Broker }

func (twoPartitions) Partitions(context.Context, string) (int, error) { return 2, nil }
func (twoPartitions) Create(context.Context, string, int) error       { return nil }

func placed(position int64, id string, cents int) Record {
	return Record{Partition: 0, Position: position, Headers: map[string]string{
		"specversion": "1.0", "id": id, "source": "/shop/orders", "type": "shop.order.placed", "subject": id},
		Data: fmt.Appendf(nil, `{"order_id": %q, "total_cents": %d}`, id, cents)}
}

func (g *Guest) number(t *testing.T, sql string) (found int) {
	t.Helper()
	if err := g.Store.QueryRow(sql).Scan(&found); err != nil {
		t.Fatal(err)
	}
	return found
}

func take(t *testing.T, guest *Guest, records ...Record) {
	t.Helper()
	for _, record := range records {
		if err := guest.take(t.Context(), record); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOrdersFromTheLimitOnAreFlagged(t *testing.T) {
	guest := newGuest(t, Handler{Version: 1, Handle: judge})
	take(t, guest, placed(1, "a", Limit-1), placed(2, "b", Limit))
	if found := guest.number(t, "select count(*) from verdict where flagged = (order_id = 'b')"); found != 2 {
		t.Error(found)
	}
	for kind, want := range map[string]int{"shop.order.flagged": 1, "shop.order.cleared": 1} {
		if found := guest.number(t, "select count(*) from outbox where headers like '%"+kind+"%'"); found != want {
			t.Error(kind, found)
		}
	}
}

func TestACopyIsHandledOnce(t *testing.T) {
	guest := newGuest(t, Handler{Version: 1, Handle: judge})
	take(t, guest, placed(1, "a", 1), placed(1, "a", 1), placed(2, "a", 1))
	if found := guest.number(t, "select count(*) from outbox"); found != 1 {
		t.Error(found)
	}
	if found := guest.number(t, "select position from cursor where partition = 0"); found != 2 {
		t.Error(found)
	}
	other := placed(3, "a", 1)
	other.Headers["source"] = "/shop/elsewhere" // the id alone names nothing
	other.Data = []byte(`{"order_id": "b", "total_cents": 1}`)
	take(t, guest, other)
	if found := guest.number(t, "select count(*) from outbox"); found != 2 {
		t.Error(found)
	}
}

func TestAProcessThatLostItsPartitionsCommitsNothing(t *testing.T) {
	guest := newGuest(t, Handler{Version: 1, Handle: judge})
	guest.Store.Exec("update cursor set epoch = epoch + 1")
	if err := guest.take(t.Context(), placed(1, "a", 1)); !errors.Is(err, errLost) {
		t.Error(err)
	}
	if found := guest.number(t, "select (select count(*) from inbox) + (select count(*) from outbox) + (select max(position) from cursor)"); found != 0 {
		t.Error(found)
	}
}

func TestNobodyTakesWhatAnotherHas(t *testing.T) {
	guest := newGuest(t, Handler{})
	if positions, err := guest.claim(t.Context(), "two"); positions != nil || err != nil {
		t.Error(positions, err)
	}
}

func TestAFailedEventParksItsKeyAlone(t *testing.T) {
	broken := true
	var order []string
	guest := newGuest(t, Handler{Version: 1, Handle: func(work *Work, event Event) ([]Announcement, error) {
		work.Do("insert into verdict values (?, 0, 0)", event.Attributes["id"])
		if broken && event.Key() == "a" {
			return nil, errors.New("broken")
		}
		order = append(order, event.Attributes["id"])
		return nil, nil
	}})
	later := placed(2, "a2", 1)
	later.Headers["subject"] = "a"
	take(t, guest, placed(1, "a", 1), later, placed(3, "b", 1))
	if len(order) != 1 || order[0] != "b" || guest.number(t, "select count(*) from verdict") != 1 {
		t.Error(order)
	}
	broken = false
	guest.Store.Exec("update parked set due = 0")
	if err := guest.retry(t.Context()); err != nil {
		t.Error(err)
	}
	if fmt.Sprint(order) != "[b a a2]" || guest.number(t, "select count(*) from parked") != 0 {
		t.Error(order)
	}
}

func TestWhatIsRefusedIsKeptWithItsBytes(t *testing.T) {
	guest := newGuest(t, Handler{Version: 1, Handle: judge})
	newer, bad, foreign := placed(1, "a", 1), placed(2, "b", 1), placed(3, "c", 1)
	newer.Headers["dataschema"] = "urn:oyez:shop.order.placed:2"
	bad.Data = []byte("{\xff")
	foreign.Headers["specversion"] = "0.3"
	take(t, guest, newer, bad, foreign, Record{Partition: 0, Position: 4, Headers: map[string]string{}})
	if found := guest.number(t, "select count(*) from dead where data = x'7bff' or data is null or cast(data as text) like '%order_id%'"); found != 4 {
		t.Error(found)
	}
	if found := guest.number(t, "select position from cursor where partition = 0"); found != 4 {
		t.Error(found)
	}
}

func TestPartitionsAreThoseOfKafka(t *testing.T) {
	for key, want := range map[string]int{"4711": 2, "a": 4, "customer-7": 7, "Jürgen": 7, "東京": 3} {
		if found := partitionOf(key, 8); found != want {
			t.Error(key, found)
		}
	}
}
