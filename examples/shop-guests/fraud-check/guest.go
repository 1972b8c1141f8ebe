package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"path"
	"sync"
	"time"

	"github.com/google/uuid"
)

// A Handler is what is done with the events of one type, up to a version.
type Handler struct {
	Version int
	Before  func(context.Context, Event) // runs before the transaction; may be nil
	Handle  func(*Work, Event) ([]Announcement, error)
}

// Guest reads one stream and has every effect of an event once, whatever dies in between.
type Guest struct {
	Source, In, Out string
	Partitions      int // of the stream Out, should it not exist
	Broker          Broker
	Store           *sql.DB
	Handlers        map[string]Handler
	epoch           map[int]int64
}

const (
	lease    = 3 * time.Second
	patience = 500 * time.Millisecond // between two attempts at an event, or at anything that failed
	attempts = 1_200
)

var errLost = errors.New("another process has taken the partition over")

// Run works until ctx ends: it takes the partitions when nobody has them, and keeps them.
func (g *Guest) Run(ctx context.Context) {
	for owner := uuid.NewString(); ctx.Err() == nil; {
		if err := g.term(ctx, owner); err != nil && ctx.Err() == nil {
			log.Print(err)
		}
		g.Store.Exec("update cursor set until = 0 where owner = ?", owner)
		sleep(ctx, patience)
	}
}

func (g *Guest) term(ctx context.Context, owner string) error {
	positions, err := g.claim(ctx, owner)
	if err != nil || positions == nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	records := make(chan Record)
	var tasks sync.WaitGroup
	tasks.Go(func() { end(g.Broker.Read(ctx, g.In, positions, records)) })
	tasks.Go(func() { end(g.relay(ctx)) })
	tasks.Go(func() { end(g.renew(ctx, owner)) })
	again := time.NewTicker(patience / 2)
	for err == nil && ctx.Err() == nil {
		select {
		case record := <-records:
			err = g.take(ctx, record)
		case <-again.C:
			err = g.retry(ctx)
		case <-ctx.Done():
		}
	}
	end(err)
	tasks.Wait()
	return context.Cause(ctx)
}

// claim takes every partition whose owner's time is over, under a new epoch; nil if there is none.
func (g *Guest) claim(ctx context.Context, owner string) ([]int64, error) {
	if err := g.Broker.Create(ctx, g.Out, g.Partitions); err != nil {
		return nil, err
	}
	count, err := g.Broker.Partitions(ctx, g.In)
	if err != nil || count == 0 {
		return nil, errors.Join(err, fmt.Errorf("%s: is not there yet", g.In))
	}
	var positions []int64
	return positions, g.transaction(func(work *Work) error {
		for partition := range count {
			work.Do("insert into cursor values (?, ?, 0, '', 0, 0) on conflict do nothing", g.In, partition)
		}
		now := time.Now().UnixMilli()
		if work.Do("update cursor set owner = ?, epoch = epoch + 1, until = ? where stream = ? and until < ?",
			owner, now+lease.Milliseconds(), g.In, now) < int64(count) {
			return nil
		}
		positions, g.epoch = make([]int64, count), map[int]int64{}
		for partition := range count {
			var epoch int64
			work.Get("select position, epoch from cursor where stream = ? and partition = ?",
				[]any{g.In, partition}, &positions[partition], &epoch)
			g.epoch[partition] = epoch
		}
		return nil
	})
}

func (g *Guest) renew(ctx context.Context, owner string) error {
	for sleep(ctx, lease/3) {
		until := time.Now().Add(lease).UnixMilli()
		done, err := g.Store.Exec("update cursor set until = ? where stream = ? and owner = ?", until, g.In, owner)
		if err != nil {
			return err
		}
		if kept, _ := done.RowsAffected(); kept < int64(len(g.epoch)) {
			return errLost
		}
	}
	return nil
}

// take is the inbox rule: in ONE transaction the position, the inbox, the effects and the outbox.
func (g *Guest) take(ctx context.Context, record Record) error {
	event, refusal := open(record)
	handler, wanted := g.Handlers[event.Attributes["type"]]
	if refusal == nil && wanted && event.Version() > handler.Version {
		refusal = Refused(fmt.Sprintf("dataschema: version %d is newer than %d", event.Version(), handler.Version))
	}
	if command := event.Attributes["recipient"]; refusal == nil && wanted && command != "" {
		wanted = command == path.Base(g.Source)
		if until, err := time.Parse(time.RFC3339Nano, event.Attributes["expires"]); wanted && err == nil && until.Before(time.Now()) {
			refusal = Refused("expires: the command is too late")
		}
	}
	if refusal == nil && wanted && handler.Before != nil {
		if handler.Before(ctx, event); ctx.Err() != nil {
			return nil
		}
	}
	return g.transaction(func(work *Work) error {
		// The position moves only for whoever holds the epoch, and only forwards.
		if work.Do("update cursor set position = ? where stream = ? and partition = ? and epoch = ? and position < ?",
			record.Position, g.In, record.Partition, g.epoch[record.Partition], record.Position) == 0 {
			return g.fence(work, record.Partition)
		}
		if refusal != nil {
			work.bury(event.Attributes, record.Data, refusal)
			return nil
		}
		if !wanted {
			return nil
		}
		source, id := event.Attributes["source"], event.Attributes["id"]
		if work.Do("insert into inbox values (?, ?, ?) on conflict do nothing", source, id, event.Attributes["type"]) == 0 {
			return nil // a copy
		}
		chain := "key " + event.Key()
		if event.Key() == "" {
			chain = "event " + source + " " + id // of no order
		}
		var ahead, tries int
		work.Get("select count(*) from parked where chain = ?", []any{chain}, &ahead)
		if ahead == 0 {
			if work.attempt(g, handler, event, true) {
				return nil
			}
			tries = 1
		}
		// A failed event holds up what follows it under its key, and nothing else.
		work.Do("insert into parked values (null, ?, ?, ?, ?, ?, ?)", chain, record.Partition,
			text(event.Attributes), event.Data, tries, time.Now().Add(patience).UnixMilli())
		return nil
	})
}

// retry tries the first parked event of each key whose time has come.
func (g *Guest) retry(ctx context.Context) error {
	for ctx.Err() == nil {
		var seq int64
		err := g.Store.QueryRow(`select seq from parked p where due <= ? and not exists
		  (select 1 from parked where chain = p.chain and seq < p.seq) limit 1`, time.Now().UnixMilli()).Scan(&seq)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := g.transaction(func(work *Work) error {
			var partition, tries int
			var headers string
			var event Event
			work.Get("select partition, headers, data, tries from parked where seq = ?", []any{seq},
				&partition, &headers, &event.Data, &tries)
			if err := g.fence(work, partition); err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(headers), &event.Attributes); err != nil {
				return err
			}
			if work.attempt(g, g.Handlers[event.Attributes["type"]], event, tries < attempts) {
				work.Do("delete from parked where seq = ?", seq)
			} else {
				work.Do("update parked set tries = tries + 1, due = ? where seq = ?", time.Now().Add(patience).UnixMilli(), seq)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// relay publishes the outbox in the order of its commits, and deletes what the broker confirmed.
func (g *Guest) relay(ctx context.Context) error {
	count, err := g.Broker.Partitions(ctx, g.Out)
	for err == nil && ctx.Err() == nil {
		var seq int64
		var key, headers string
		var data []byte
		err = g.Store.QueryRow("select seq, key, headers, data from outbox order by seq limit 1").Scan(&seq, &key, &headers, &data)
		if errors.Is(err, sql.ErrNoRows) {
			err = nil
			sleep(ctx, 20*time.Millisecond)
			continue
		}
		var attributes map[string]string
		if err = errors.Join(err, json.Unmarshal([]byte(headers), &attributes)); err != nil {
			return err
		}
		if err = g.Broker.Publish(ctx, g.Out, partitionOf(key, count), key, attributes, data); err == nil {
			_, err = g.Store.Exec("delete from outbox where seq = ?", seq)
		}
	}
	return err
}

// fence returns an error unless the partition is still ours.
func (g *Guest) fence(work *Work, partition int) error {
	var epoch int64
	work.Get("select epoch from cursor where stream = ? and partition = ?", []any{g.In, partition}, &epoch)
	if work.err == nil && epoch != g.epoch[partition] {
		return errLost
	}
	return nil
}

// attempt runs the handler, with what it announces; false if the event is to be tried again.
func (w *Work) attempt(g *Guest, handler Handler, event Event, again bool) bool {
	w.Do("savepoint handler")
	announced, err := handler.Handle(w, event)
	if err = errors.Join(err, w.err); err == nil {
		for _, each := range announced {
			data, err := json.Marshal(each.Data)
			w.err = errors.Join(w.err, err)
			w.Do("insert into outbox (key, headers, data) values (?, ?, ?)", each.Key, text(each.attributes(g.Source, event)), data)
		}
		return true
	}
	w.err = nil
	w.Do("rollback to handler")
	if refused := Refused(""); !errors.As(err, &refused) && again {
		return false
	}
	w.bury(event.Attributes, event.Data, err)
	return true
}

// bury keeps an event that will not be handled, with the bytes that it came with.
func (w *Work) bury(attributes map[string]string, data []byte, why error) {
	w.Do("insert into dead values (null, nullif(?, ''), nullif(?, ''), ?, iif(?, null, coalesce(?, x'')))",
		attributes["source"], attributes["id"], why.Error(), data == nil, data)
	log.Printf("dead letter: %s: %v", attributes["id"], why)
}
