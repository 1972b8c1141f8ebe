package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite"
)

const schema = `
create table if not exists cursor (stream text, partition integer, position integer not null,
  owner text not null, epoch integer not null, until integer not null, primary key (stream, partition));
create table if not exists inbox (source text, id text, handler text, primary key (source, id, handler));
create table if not exists parked (seq integer primary key, chain text not null, partition integer not null,
  headers text not null, data blob not null, tries integer not null, due integer not null);
create index if not exists parked_chain on parked (chain, seq);
create table if not exists outbox (seq integer primary key autoincrement, key text not null,
  headers text not null, data blob not null);
create table if not exists dead (seq integer primary key, source text, id text, reason text not null, data blob);
`

// transaction commits what the steps did, or nothing if one of them failed.
func (g *Guest) transaction(steps func(*Work) error) error {
	tx, err := g.Store.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after a commit
	work := &Work{tx: tx}
	if err := errors.Join(steps(work), work.err); err != nil {
		return err
	}
	return tx.Commit()
}

// Work is one transaction. It keeps the first error, so that steps read as a list.
type Work struct {
	tx  *sql.Tx
	err error
}

// Do runs a statement; the number of rows that it changed.
func (w *Work) Do(sql string, values ...any) int64 {
	if w.err != nil {
		return 0
	}
	done, err := w.tx.Exec(sql, values...)
	if w.err = err; err != nil {
		return 0
	}
	count, _ := done.RowsAffected()
	return count
}

// Get reads one row.
func (w *Work) Get(sql string, values []any, into ...any) {
	if w.err == nil {
		w.err = w.tx.QueryRow(sql, values...).Scan(into...)
	}
}

// openStore opens the SQLite file, made if absent; a commit is on disk when it returns.
func openStore(path, more string) *sql.DB {
	check(os.MkdirAll(filepath.Dir(path), 0o700))
	options := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(10000)", "journal_mode(wal)", "synchronous(full)"}}
	store, err := sql.Open("sqlite", "file:"+path+"?"+options.Encode())
	check(err)
	store.SetMaxOpenConns(1)
	_, err = store.Exec(schema + more)
	check(err)
	return store
}

func text(attributes map[string]string) string {
	encoded, _ := json.Marshal(attributes)
	return string(encoded)
}

// sleep returns false once ctx has ended.
func sleep(ctx context.Context, time_ time.Duration) bool {
	select {
	case <-time.After(time_):
		return true
	case <-ctx.Done():
		return false
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
