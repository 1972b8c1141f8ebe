package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// runCounter is the program as the subject of `oyez conformance`: another handler, the same guest.
func runCounter(ctx context.Context) {
	partitions, err := strconv.Atoi(os.Getenv("CONFORMANCE_PARTITIONS"))
	check(err)
	guest := &Guest{
		Source:     os.Getenv("CONFORMANCE_SOURCE"),
		In:         os.Getenv("CONFORMANCE_IN"),
		Out:        os.Getenv("CONFORMANCE_OUT"),
		Partitions: partitions,
		Broker:     connect(os.Getenv("CONFORMANCE_BROKER")),
		Store: openStore(filepath.Join(os.Getenv("CONFORMANCE_DATA"), "counter.db"),
			"create table if not exists counted (seq integer primary key, name text, number integer)"),
		Handlers: map[string]Handler{"conformance.tick": {Version: 1, Before: hold, Handle: count}},
	}
	if address := os.Getenv("CONFORMANCE_HTTP"); address != "" {
		http.HandleFunc("GET /rows", guest.rows)
		go func() { check(http.ListenAndServe(address, nil)) }()
	}
	guest.Run(ctx)
}

type tick struct {
	Name   string `json:"name"`
	Number *int64 `json:"number"`
}

func count(work *Work, event Event) ([]Announcement, error) {
	var data tick
	if err := event.Decode(&data); err != nil {
		return nil, err
	}
	if data.Name == "" || data.Number == nil {
		return nil, Refused("data: expected name and number")
	}
	if data.Name == "poison" && exists(os.Getenv("CONFORMANCE_FAIL")) {
		return nil, errors.New("the tick is poison")
	}
	work.Do("insert into counted values (null, ?, ?)", data.Name, *data.Number)
	return []Announcement{{"conformance.tock", event.Key(), data}}, nil
}

func hold(ctx context.Context, event Event) {
	var data tick
	file := os.Getenv("CONFORMANCE_HOLD")
	if event.Decode(&data) != nil || data.Name != "slow" || !exists(file) {
		return
	}
	check(os.WriteFile(file+".started", nil, 0o600))
	for exists(file) && sleep(ctx, 20*time.Millisecond) {
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return file != "" && err == nil
}

// rows answers what the store holds, as JSON lines.
func (g *Guest) rows(writer http.ResponseWriter, _ *http.Request) {
	lines := json.NewEncoder(writer)
	g.list("select name, number from counted order by seq", func(scan func(...any) error) error {
		var found tick
		return errors.Join(scan(&found.Name, &found.Number), lines.Encode(map[string]any{"row": found}))
	})
	g.list("select id, source, reason, data, data is null from dead order by seq", func(scan func(...any) error) error {
		var id, source, data *string
		var reason string
		var bytes []byte
		var tombstone bool
		err := scan(&id, &source, &reason, &bytes, &tombstone)
		if !tombstone {
			encoded := base64.StdEncoding.EncodeToString(bytes)
			data = &encoded
		}
		letter := map[string]any{"id": id, "source": source, "reason": reason, "data": data}
		return errors.Join(err, lines.Encode(map[string]any{"dead": letter}))
	})
	g.list("select partition, position from cursor order by partition", func(scan func(...any) error) error {
		var partition, position int64
		return errors.Join(scan(&partition, &position), lines.Encode(map[string]any{
			"position": map[string]int64{"partition": partition, "position": position}}))
	})
}

func (g *Guest) list(sql string, each func(func(...any) error) error) {
	rows, err := g.Store.Query(sql)
	if err != nil {
		return
	}
	defer rows.Close()
	for rows.Next() {
		if each(rows.Scan) != nil {
			return
		}
	}
}
