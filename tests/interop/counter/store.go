package main

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite"
)

const lease = 2 * time.Second

// The tables of a service: docs/wire/1.0.md has them for PostgreSQL too.
const tables = `
create table if not exists cursor (
  stream text, partition integer, position integer not null default 0,
  owner text not null default '', epoch integer not null default 0, until real not null default 0,
  primary key (stream, partition)
);
create table if not exists inbox (source text, id text, handler text, primary key (source, id, handler));
create table if not exists parked (
  seq integer primary key autoincrement, stream text, partition integer, key text, attributes text, data blob
);
create table if not exists outbox (
  seq integer primary key autoincrement, stream text, partition integer, key text, headers text, data blob
);
create table if not exists dead (seq integer primary key autoincrement, id text, source text, reason text, data text);
create table if not exists counted (seq integer primary key autoincrement, name text, number integer);
`

var errFenced = errors.New("another replica has the partition")

// Claim is the right to move a partition's position, as long as its epoch is the newest (W22).
type Claim struct {
	Stream    string
	Partition int
	Owner     string
	Epoch     int64
	Position  int64
}

func openStore(folder string) (*sql.DB, error) {
	options := "_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_pragma=synchronous(normal)"
	db, err := sql.Open("sqlite", fmt.Sprintf("file:%s?%s", filepath.Join(folder, "counter.db"), options))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	_, err = db.Exec(tables)
	return db, err
}

// take claims a partition that nobody has, or that this replica had before it was killed.
func take(db *sql.DB, stream string, partition int, owner string) (*Claim, error) {
	claim := &Claim{Stream: stream, Partition: partition, Owner: owner}
	if _, err := db.Exec(`insert into cursor (stream, partition) values (?, ?) on conflict do nothing`,
		stream, partition); err != nil {
		return nil, err
	}
	now := float64(time.Now().UnixMilli()) / 1000
	row := db.QueryRow(`update cursor set owner = ?, epoch = epoch + 1, until = ?
		where stream = ? and partition = ? and (until < ? or owner = ?) returning epoch, position`,
		owner, now+lease.Seconds(), stream, partition, now, owner)
	err := row.Scan(&claim.Epoch, &claim.Position)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return claim, err
}

// keep extends the lease; false when another replica has taken the partition.
func (c *Claim) keep(db *sql.DB, until time.Time) bool {
	done, err := db.Exec(`update cursor set until = ? where stream = ? and partition = ? and owner = ? and epoch = ?`,
		float64(until.UnixMilli())/1000, c.Stream, c.Partition, c.Owner, c.Epoch)
	if err != nil {
		return true // the store is busy: the epoch decides when something is committed
	}
	count, _ := done.RowsAffected()
	return count == 1
}

// move stores the position, guarded by the epoch.
func (c *Claim) move(tx *sql.Tx, position int64) error {
	guard := `owner = ? and epoch = ?`
	if bug("position-unguarded") {
		guard = `(owner = ? and epoch = ? or true)`
	}
	done, err := tx.Exec(`update cursor set position = ? where stream = ? and partition = ? and `+guard,
		position, c.Stream, c.Partition, c.Owner, c.Epoch)
	if err != nil {
		return err
	}
	if count, _ := done.RowsAffected(); count != 1 {
		return errFenced
	}
	return nil
}

func within(db *sql.DB, work func(*sql.Tx) error) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	if err := work(tx); err != nil {
		tx.Rollback()
		return err
	}
	return tx.Commit()
}
