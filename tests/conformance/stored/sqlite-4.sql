-- What a service's SQLite file holds after step 4 of the tables.
BEGIN TRANSACTION;

-- Table  orders
DROP TABLE IF EXISTS orders;
CREATE TABLE orders (id text primary key, state text not null);
INSERT INTO orders VALUES('4711','placed');

-- Table  oyez_audit
DROP TABLE IF EXISTS oyez_audit;
CREATE TABLE oyez_audit (
  id integer primary key autoincrement,
  time real not null, who text not null, via text not null, act text not null,
  target text not null, reason text not null, before text not null, after text not null
);
-- Triggers and indices on  oyez_audit
CREATE INDEX oyez_audit_time on oyez_audit (time);

-- Table  oyez_cursor
DROP TABLE IF EXISTS oyez_cursor;
CREATE TABLE "oyez_cursor" (
  stream text not null, partition integer not null, reader text not null default '',
  position integer not null default 0,
  owner text, epoch integer not null default 0,
  crashes integer not null default 0, crashed_at integer not null default -1,
  primary key (stream, partition, reader)
) without rowid;
INSERT INTO oyez_cursor VALUES('oyez:outbox',0,'',0,NULL,0,0,-1);
INSERT INTO oyez_cursor VALUES('shop.orders',3,'',41,'host:1:aaaa',5,1,39);

-- Table  oyez_dead
DROP TABLE IF EXISTS oyez_dead;
CREATE TABLE oyez_dead (
  id integer primary key autoincrement,
  event_id text not null, source text not null, type text not null, handler text not null,
  stream text not null, partition integer not null, position integer not null, key text,
  reason text not null, traceback text not null, attempts integer not null,
  history blob not null, headers blob not null, data blob, time real not null,
  state text not null default 'dead', note text not null default ''
, reader text not null default '', cause text not null default '');
INSERT INTO oyez_dead VALUES(1,'d1','/shop/orders','orders.order_placed','charge','shop.orders',3,38,'4713','failed 3 of 3 attempts: ValueError: no','Traceback',3,X'5B5D',X'7B227370656376657273696F6E223A22312E30222C226964223A226431222C22736F75726365223A222F73686F702F6F7264657273222C2274797065223A226F72646572732E6F726465725F706C61636564222C227375626A656374223A2234373131222C2274696D65223A22323032362D30392D32315431333A33333A32305A227D',X'7B7D',1790000000.0,'dead','','','f1e6c04ba8e0b703');
-- Triggers and indices on  oyez_dead
CREATE INDEX oyez_dead_cause on oyez_dead (state, cause, id, time);
CREATE INDEX oyez_dead_key on oyez_dead (substr(key, 1, 100), id) where state = 'dead';
CREATE INDEX oyez_dead_state on oyez_dead (state, id);

-- Table  oyez_inbox
DROP TABLE IF EXISTS oyez_inbox;
CREATE TABLE oyez_inbox (
  seq integer primary key,
  event_id text not null, source text not null, handler text not null,
  seen real not null,
  state integer not null default 0,      -- 0 handled, 1 behind another of its chain, 2 may come due
  stream text, partition integer, position integer, chain text,
  due real, attempt integer, history blob, key text, headers blob, data blob
, reader text not null default '');
INSERT INTO oyez_inbox VALUES(1,'h1','/shop/orders','charge',1790000000.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'');
INSERT INTO oyez_inbox VALUES(2,'h2','/shop/orders','charge',1790000000.0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'');
INSERT INTO oyez_inbox VALUES(3,'p1','/shop/orders','charge',1790000000.0,2,'shop.orders',3,41,'4711',1790000001.0,1,X'5B7B22617474656D7074223A312C226174223A313739303030303030302E302C226572726F72223A2256616C75654572726F723A206E6F227D5D','4711',X'7B227370656376657273696F6E223A22312E30222C226964223A227031222C22736F75726365223A222F73686F702F6F7264657273222C2274797065223A226F72646572732E6F726465725F706C61636564222C227375626A656374223A2234373131222C2274696D65223A22323032362D30392D32315431333A33333A32305A227D',X'7B226F72646572223A2234373131222C226E756D626572223A317D','');
INSERT INTO oyez_inbox VALUES(4,'p2','/shop/orders','charge',1790000000.0,1,'shop.orders',3,42,'4711',1790000002.0,0,X'5B5D','4711',X'7B227370656376657273696F6E223A22312E30222C226964223A227032222C22736F75726365223A222F73686F702F6F7264657273222C2274797065223A226F72646572732E6F726465725F706C61636564222C227375626A656374223A2234373131222C2274696D65223A22323032362D30392D32315431333A33333A32305A227D',X'7B226F72646572223A2234373131222C226E756D626572223A327D','');
INSERT INTO oyez_inbox VALUES(5,'p3','/shop/orders','charge',1790000000.0,2,'shop.orders',3,43,'4712',1790000003.0,0,X'5B5D','4712',X'7B227370656376657273696F6E223A22312E30222C226964223A227033222C22736F75726365223A222F73686F702F6F7264657273222C2274797065223A226F72646572732E6F726465725F706C61636564222C227375626A656374223A2234373131222C2274696D65223A22323032362D30392D32315431333A33333A32305A227D',X'7B226F72646572223A2234373131222C226E756D626572223A337D','');
-- Triggers and indices on  oyez_inbox
CREATE INDEX oyez_inbox_chain on oyez_inbox (stream, partition, chain, reader, seq) where state > 0;
CREATE INDEX oyez_inbox_due on oyez_inbox (handler, due) where state = 2;
CREATE UNIQUE INDEX oyez_inbox_event on oyez_inbox (event_id, source, handler, reader);

-- Table  oyez_migration
DROP TABLE IF EXISTS oyez_migration;
CREATE TABLE oyez_migration (name text primary key, digest text not null, applied real not null)
  without rowid;
INSERT INTO oyez_migration VALUES('001_orders.sql','6773b10a391326441726a9f87a6675481fec933b4d4f8ec57ed3b57028cebb1a',1790000000.0);

-- Table  oyez_outbox
DROP TABLE IF EXISTS oyez_outbox;
CREATE TABLE oyez_outbox (
  seq integer primary key autoincrement,
  due real not null default 0,           -- 0: as soon as possible
  stream text not null, key text, headers blob not null, data blob not null
, state integer not null default 0, event_id text, name text);
INSERT INTO oyez_outbox VALUES(1,0.0,'shop.payments','4711',X'7B227370656376657273696F6E223A22312E30222C226964223A226131222C22736F75726365223A222F73686F702F6F7264657273222C2274797065223A226F72646572732E6F726465725F706C61636564222C227375626A656374223A2234373131222C2274696D65223A22323032362D30392D32315431333A33333A32305A227D',X'7B226F72646572223A2234373131227D',0,NULL,NULL);
INSERT INTO oyez_outbox VALUES(2,1790000600.0,'shop.payments','4711',X'7B227370656376657273696F6E223A22312E30222C226964223A226132222C22736F75726365223A222F73686F702F6F7264657273222C2274797065223A226F72646572732E6F726465725F706C61636564222C227375626A656374223A2234373131222C2274696D65223A22323032362D30392D32315431333A33333A32305A227D',X'7B226F72646572223A2234373131227D',0,NULL,NULL);
-- Triggers and indices on  oyez_outbox
CREATE INDEX oyez_outbox_due on oyez_outbox (due, seq) where state = 0;
CREATE INDEX oyez_outbox_event on oyez_outbox (event_id) where event_id is not null;
CREATE INDEX oyez_outbox_held on oyez_outbox (stream, key) where state > 0;
CREATE UNIQUE INDEX oyez_outbox_name on oyez_outbox (name) where name is not null;

-- Table  oyez_replica
DROP TABLE IF EXISTS oyez_replica;
CREATE TABLE oyez_replica (
  owner text primary key, until real not null, started real not null, note text not null
) without rowid;

-- Table  oyez_saga_log
DROP TABLE IF EXISTS oyez_saga_log;
CREATE TABLE oyez_saga_log (
  kind text not null, key text not null, version integer not null,
  at real not null, event_id text not null, type text not null, step text not null,
  outputs blob not null,
  primary key (kind, key, version)
) without rowid;
INSERT INTO oyez_saga_log VALUES('Fulfilment','4711',1,1790000000.0,'h1','orders.order_placed','',X'5B5D');

-- Table  oyez_state
DROP TABLE IF EXISTS oyez_state;
CREATE TABLE oyez_state (
  kind text not null, key text not null,
  version integer not null, shape integer not null, data blob not null, changed real not null,
  status text, step text, started real, ended real, correlationid text,
  primary key (kind, key)
) without rowid;
INSERT INTO oyez_state VALUES('Fulfilment','4711',1,1,X'7B7D',1790000000.0,'waiting','pay',1790000000.0,NULL,'flow-1');
-- Triggers and indices on  oyez_state
CREATE INDEX oyez_state_ended on oyez_state (ended) where ended is not null;
CREATE INDEX oyez_state_status on oyez_state (kind, status, changed) where status is not null;

-- Table  oyez_timer
DROP TABLE IF EXISTS oyez_timer;
CREATE TABLE oyez_timer (
  kind text not null, key text not null, name text not null,
  due real not null, part integer not null, armed real not null, traceparent text, tracestate text,
  primary key (kind, key, name)
) without rowid;
INSERT INTO oyez_timer VALUES('Fulfilment','4711','pay',1790000300.0,2,1790000000.0,'00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',NULL);
-- Triggers and indices on  oyez_timer
CREATE INDEX oyez_timer_due on oyez_timer (part, kind, due);

-- Views
DROP VIEW IF EXISTS oyez_saga;
CREATE VIEW oyez_saga as
 select kind, key, version, shape, data, changed, status, step, started, ended, correlationid
 from oyez_state where status is not null;

-- For primary key autoincrements the next id to use is stored in
-- sqlite_sequence
DELETE FROM main.sqlite_sequence WHERE name='oyez_dead';
INSERT INTO main.sqlite_sequence VALUES ('oyez_dead', 1);
DELETE FROM main.sqlite_sequence WHERE name='oyez_outbox';
INSERT INTO main.sqlite_sequence VALUES ('oyez_outbox', 2);

-- Database header
pragma user_version=4;

COMMIT TRANSACTION;
