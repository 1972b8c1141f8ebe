
PRAGMA page_size=4096;

BEGIN TRANSACTION;

DROP TABLE IF EXISTS entry;
CREATE TABLE entry (order_id text primary key, cents integer not null, by text not null);

DROP TABLE IF EXISTS oyez_audit;
CREATE TABLE oyez_audit (
  id integer primary key autoincrement,
  time real not null, who text not null, via text not null, act text not null,
  target text not null, reason text not null, before text not null, after text not null
);
CREATE INDEX oyez_audit_time on oyez_audit (time);

DROP TABLE IF EXISTS oyez_cursor;
CREATE TABLE "oyez_cursor" (
  stream text not null, partition integer not null, reader text not null default '',
  position integer not null default 0,
  owner text, epoch integer not null default 0,
  crashes integer not null default 0, crashed_at integer not null default -1,
  primary key (stream, partition, reader)
) without rowid;
INSERT INTO oyez_cursor VALUES('books.desk',0,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.desk',1,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.desk',2,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.desk',3,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.ledger',0,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.ledger',1,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.ledger',2,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.ledger',3,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.till',0,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.till',1,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.till',2,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('books.till',3,'',0,'vm:24070:0b8af0bd',1,0,-1);
INSERT INTO oyez_cursor VALUES('oyez:outbox',0,'',0,'vm:24070:0b8af0bd',1,0,-1);

DROP TABLE IF EXISTS oyez_dead;
CREATE TABLE oyez_dead (
  id integer primary key autoincrement,
  event_id text not null, source text not null, type text not null, handler text not null,
  stream text not null, partition integer not null, position integer not null, key text,
  reason text not null, traceback text not null, attempts integer not null,
  history blob not null, headers blob not null, data blob, time real not null,
  state text not null default 'dead', note text not null default ''
, reader text not null default '', cause text not null default '');
CREATE INDEX oyez_dead_cause on oyez_dead (state, cause, id, time);
CREATE INDEX oyez_dead_key on oyez_dead (substr(key, 1, 100), id) where state = 'dead';
CREATE INDEX oyez_dead_state on oyez_dead (state, id);

DROP TABLE IF EXISTS oyez_inbox;
CREATE TABLE oyez_inbox (
  seq integer primary key,
  event_id text not null, source text not null, handler text not null,
  seen real not null,
  state integer not null default 0,      -- oyez.tables.Inbox
  stream text, partition integer, position integer, chain text,
  due real, attempt integer, history blob, key text, headers blob, data blob
, reader text not null default '');
CREATE INDEX oyez_inbox_chain on oyez_inbox (stream, partition, chain, reader, seq) where state > 0;
CREATE INDEX oyez_inbox_due on oyez_inbox (handler, due) where state = 2;
CREATE UNIQUE INDEX oyez_inbox_event on oyez_inbox (event_id, source, handler, reader);

DROP TABLE IF EXISTS oyez_migration;
CREATE TABLE oyez_migration (name text primary key, digest text not null, applied real not null)
  without rowid;
INSERT INTO oyez_migration VALUES('001_entry.sql','b4fecabe88928ae67fa2d7b65abbf8a8c42537c68c87d54180bd8ce6bba04f9f',1795991859.6624205);
INSERT INTO oyez_migration VALUES('oyez:broker','embedded',1795991859.6629496);

DROP TABLE IF EXISTS oyez_outbox;
CREATE TABLE oyez_outbox (
  seq integer primary key autoincrement,
  due real not null default 0,           -- 0: as soon as possible
  stream text not null, key text, headers blob not null, data blob not null
, state integer not null default 0, event_id text, name text);
CREATE INDEX oyez_outbox_due on oyez_outbox (due, seq) where state = 0;
CREATE INDEX oyez_outbox_event on oyez_outbox (event_id) where event_id is not null;
CREATE INDEX oyez_outbox_held on oyez_outbox (stream, key) where state > 0;
CREATE UNIQUE INDEX oyez_outbox_name on oyez_outbox (name) where name is not null;

DROP TABLE IF EXISTS oyez_replica;
CREATE TABLE oyez_replica (
  owner text primary key, until real not null, started real not null, note text not null
) without rowid;
INSERT INTO oyez_replica VALUES('vm:24070:0b8af0bd',1795991862.8168266,1795991859.6649442,'127.0.0.1:44341');

DROP TABLE IF EXISTS oyez_saga_log;
CREATE TABLE oyez_saga_log (
  kind text not null, key text not null, version integer not null,
  at real not null, event_id text not null, type text not null, step text not null,
  outputs blob not null,
  primary key (kind, key, version)
) without rowid;

DROP TABLE IF EXISTS oyez_state;
CREATE TABLE oyez_state (
  kind text not null, key text not null,
  version integer not null, shape integer not null, data blob not null, changed real not null,
  status text, step text, started real, ended real, correlationid text,
  primary key (kind, key)
) without rowid;
CREATE INDEX oyez_state_ended on oyez_state (ended) where ended is not null;
CREATE INDEX oyez_state_status on oyez_state (kind, status, changed) where status is not null;

DROP TABLE IF EXISTS oyez_timer;
CREATE TABLE oyez_timer (
  kind text not null, key text not null, name text not null,
  due real not null, part integer not null, armed real not null, traceparent text, tracestate text,
  primary key (kind, key, name)
) without rowid;
CREATE INDEX oyez_timer_due on oyez_timer (part, kind, due);

DROP VIEW IF EXISTS oyez_saga;
CREATE VIEW oyez_saga as
 select kind, key, version, shape, data, changed, status, step, started, ended, correlationid
 from oyez_state where status is not null;

pragma user_version=4;

COMMIT TRANSACTION;
pragma user_version = 4;
