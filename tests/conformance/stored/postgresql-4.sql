-- What a service's schema in PostgreSQL holds after step 4 of the tables (pg_dump --inserts).
CREATE SCHEMA stored_4;
CREATE TABLE stored_4.orders (
    id text NOT NULL,
    state text NOT NULL
);
CREATE TABLE stored_4.oyez_audit (
    id bigint NOT NULL,
    "time" double precision NOT NULL,
    who text NOT NULL,
    via text NOT NULL,
    act text NOT NULL,
    target text NOT NULL,
    reason text NOT NULL,
    before text NOT NULL,
    after text NOT NULL
);
ALTER TABLE stored_4.oyez_audit ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME stored_4.oyez_audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE stored_4.oyez_cursor (
    stream text NOT NULL,
    partition integer NOT NULL,
    "position" bigint DEFAULT 0 NOT NULL,
    owner text,
    epoch bigint DEFAULT 0 NOT NULL,
    crashes integer DEFAULT 0 NOT NULL,
    crashed_at bigint DEFAULT '-1'::integer NOT NULL,
    reader text DEFAULT ''::text NOT NULL
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000');
CREATE TABLE stored_4.oyez_dead (
    id bigint NOT NULL,
    event_id text NOT NULL,
    source text NOT NULL,
    type text NOT NULL,
    handler text NOT NULL,
    stream text NOT NULL,
    partition integer NOT NULL,
    "position" bigint NOT NULL,
    key text,
    reason text NOT NULL,
    traceback text NOT NULL,
    attempts integer NOT NULL,
    history bytea NOT NULL,
    headers bytea NOT NULL,
    data bytea,
    "time" double precision NOT NULL,
    state text DEFAULT 'dead'::text NOT NULL,
    note text DEFAULT ''::text NOT NULL,
    reader text DEFAULT ''::text NOT NULL,
    cause text DEFAULT ''::text NOT NULL
);
ALTER TABLE stored_4.oyez_dead ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME stored_4.oyez_dead_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE stored_4.oyez_inbox (
    seq bigint NOT NULL,
    event_id text NOT NULL,
    source text NOT NULL,
    handler text NOT NULL,
    seen double precision NOT NULL,
    state integer DEFAULT 0 NOT NULL,
    stream text,
    partition integer,
    "position" bigint,
    chain text,
    due double precision,
    attempt integer,
    history bytea,
    key text,
    headers bytea,
    data bytea,
    reader text DEFAULT ''::text NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_analyze_scale_factor='0.02');
ALTER TABLE stored_4.oyez_inbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME stored_4.oyez_inbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE stored_4.oyez_migration (
    name text NOT NULL,
    digest text NOT NULL,
    applied double precision NOT NULL
);
CREATE TABLE stored_4.oyez_outbox (
    seq bigint NOT NULL,
    due double precision DEFAULT 0 NOT NULL,
    stream text NOT NULL,
    key text,
    headers bytea NOT NULL,
    data bytea NOT NULL,
    state integer DEFAULT 0 NOT NULL,
    event_id text,
    name text
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000');
ALTER TABLE stored_4.oyez_outbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME stored_4.oyez_outbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE stored_4.oyez_replica (
    owner text NOT NULL,
    until double precision NOT NULL,
    started double precision NOT NULL,
    note text NOT NULL,
    presence bigint NOT NULL,
    server text
)
WITH (fillfactor='20');
CREATE TABLE stored_4.oyez_state (
    kind text NOT NULL,
    key text NOT NULL,
    version bigint NOT NULL,
    shape integer NOT NULL,
    data bytea NOT NULL,
    changed double precision NOT NULL,
    status text,
    step text,
    started double precision,
    ended double precision,
    correlationid text
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02');
CREATE VIEW stored_4.oyez_saga AS
 SELECT oyez_state.kind,
    oyez_state.key,
    oyez_state.version,
    oyez_state.shape,
    oyez_state.data,
    oyez_state.changed,
    oyez_state.status,
    oyez_state.step,
    oyez_state.started,
    oyez_state.ended,
    oyez_state.correlationid
   FROM stored_4.oyez_state
  WHERE (oyez_state.status IS NOT NULL);
CREATE TABLE stored_4.oyez_saga_log (
    kind text NOT NULL,
    key text NOT NULL,
    version bigint NOT NULL,
    at double precision NOT NULL,
    event_id text NOT NULL,
    type text NOT NULL,
    step text NOT NULL,
    outputs bytea NOT NULL
);
CREATE TABLE stored_4.oyez_schema (
    version integer NOT NULL
);
CREATE TABLE stored_4.oyez_timer (
    kind text NOT NULL,
    key text NOT NULL,
    name text NOT NULL,
    due double precision NOT NULL,
    part integer NOT NULL,
    armed double precision NOT NULL,
    traceparent text,
    tracestate text
)
WITH (autovacuum_vacuum_scale_factor='0.02');
INSERT INTO stored_4.orders VALUES ('4711', 'placed');
INSERT INTO stored_4.oyez_cursor VALUES ('oyez:outbox', 0, 0, NULL, 0, 0, -1, '');
INSERT INTO stored_4.oyez_cursor VALUES ('shop.orders', 3, 41, 'host:1:aaaa', 5, 1, 39, '');
INSERT INTO stored_4.oyez_dead OVERRIDING SYSTEM VALUE VALUES (1, 'd1', '/shop/orders', 'orders.order_placed', 'charge', 'shop.orders', 3, 38, '4713', 'failed 3 of 3 attempts: ValueError: no', 'Traceback', 3, '\x5b5d', '\x7b227370656376657273696f6e223a22312e30222c226964223a226431222c22736f75726365223a222f73686f702f6f7264657273222c2274797065223a226f72646572732e6f726465725f706c61636564222c227375626a656374223a2234373131222c2274696d65223a22323032362d30392d32315431333a33333a32305a227d', '\x7b7d', 1790000000, 'dead', '', '', 'f1e6c04ba8e0b703');
INSERT INTO stored_4.oyez_inbox OVERRIDING SYSTEM VALUE VALUES (1, 'h1', '/shop/orders', 'charge', 1790000000, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '');
INSERT INTO stored_4.oyez_inbox OVERRIDING SYSTEM VALUE VALUES (2, 'h2', '/shop/orders', 'charge', 1790000000, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '');
INSERT INTO stored_4.oyez_inbox OVERRIDING SYSTEM VALUE VALUES (3, 'p1', '/shop/orders', 'charge', 1790000000, 2, 'shop.orders', 3, 41, '4711', 1790000001, 1, '\x5b7b22617474656d7074223a312c226174223a313739303030303030302e302c226572726f72223a2256616c75654572726f723a206e6f227d5d', '4711', '\x7b227370656376657273696f6e223a22312e30222c226964223a227031222c22736f75726365223a222f73686f702f6f7264657273222c2274797065223a226f72646572732e6f726465725f706c61636564222c227375626a656374223a2234373131222c2274696d65223a22323032362d30392d32315431333a33333a32305a227d', '\x7b226f72646572223a2234373131222c226e756d626572223a317d', '');
INSERT INTO stored_4.oyez_inbox OVERRIDING SYSTEM VALUE VALUES (4, 'p2', '/shop/orders', 'charge', 1790000000, 1, 'shop.orders', 3, 42, '4711', 1790000002, 0, '\x5b5d', '4711', '\x7b227370656376657273696f6e223a22312e30222c226964223a227032222c22736f75726365223a222f73686f702f6f7264657273222c2274797065223a226f72646572732e6f726465725f706c61636564222c227375626a656374223a2234373131222c2274696d65223a22323032362d30392d32315431333a33333a32305a227d', '\x7b226f72646572223a2234373131222c226e756d626572223a327d', '');
INSERT INTO stored_4.oyez_inbox OVERRIDING SYSTEM VALUE VALUES (5, 'p3', '/shop/orders', 'charge', 1790000000, 2, 'shop.orders', 3, 43, '4712', 1790000003, 0, '\x5b5d', '4712', '\x7b227370656376657273696f6e223a22312e30222c226964223a227033222c22736f75726365223a222f73686f702f6f7264657273222c2274797065223a226f72646572732e6f726465725f706c61636564222c227375626a656374223a2234373131222c2274696d65223a22323032362d30392d32315431333a33333a32305a227d', '\x7b226f72646572223a2234373131222c226e756d626572223a337d', '');
INSERT INTO stored_4.oyez_migration VALUES ('001_orders.sql', '6773b10a391326441726a9f87a6675481fec933b4d4f8ec57ed3b57028cebb1a', 1790000000);
INSERT INTO stored_4.oyez_outbox OVERRIDING SYSTEM VALUE VALUES (1, 0, 'shop.payments', '4711', '\x7b227370656376657273696f6e223a22312e30222c226964223a226131222c22736f75726365223a222f73686f702f6f7264657273222c2274797065223a226f72646572732e6f726465725f706c61636564222c227375626a656374223a2234373131222c2274696d65223a22323032362d30392d32315431333a33333a32305a227d', '\x7b226f72646572223a2234373131227d', 0, NULL, NULL);
INSERT INTO stored_4.oyez_outbox OVERRIDING SYSTEM VALUE VALUES (2, 1790000600, 'shop.payments', '4711', '\x7b227370656376657273696f6e223a22312e30222c226964223a226132222c22736f75726365223a222f73686f702f6f7264657273222c2274797065223a226f72646572732e6f726465725f706c61636564222c227375626a656374223a2234373131222c2274696d65223a22323032362d30392d32315431333a33333a32305a227d', '\x7b226f72646572223a2234373131227d', 0, NULL, NULL);
INSERT INTO stored_4.oyez_saga_log VALUES ('Fulfilment', '4711', 1, 1790000000, 'h1', 'orders.order_placed', '', '\x5b5d');
INSERT INTO stored_4.oyez_schema VALUES (4);
INSERT INTO stored_4.oyez_state VALUES ('Fulfilment', '4711', 1, 1, '\x7b7d', 1790000000, 'waiting', 'pay', 1790000000, NULL, 'flow-1');
INSERT INTO stored_4.oyez_timer VALUES ('Fulfilment', '4711', 'pay', 1790000300, 2, 1790000000, '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', NULL);
SELECT pg_catalog.setval('stored_4.oyez_audit_id_seq', 1, false);
SELECT pg_catalog.setval('stored_4.oyez_dead_id_seq', 1, true);
SELECT pg_catalog.setval('stored_4.oyez_inbox_seq_seq', 5, true);
SELECT pg_catalog.setval('stored_4.oyez_outbox_seq_seq', 2, true);
ALTER TABLE ONLY stored_4.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (id);
ALTER TABLE ONLY stored_4.oyez_audit
    ADD CONSTRAINT oyez_audit_pkey PRIMARY KEY (id);
ALTER TABLE ONLY stored_4.oyez_cursor
    ADD CONSTRAINT oyez_cursor_pkey PRIMARY KEY (stream, partition, reader);
ALTER TABLE ONLY stored_4.oyez_dead
    ADD CONSTRAINT oyez_dead_pkey PRIMARY KEY (id);
ALTER TABLE ONLY stored_4.oyez_inbox
    ADD CONSTRAINT oyez_inbox_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY stored_4.oyez_migration
    ADD CONSTRAINT oyez_migration_pkey PRIMARY KEY (name);
ALTER TABLE ONLY stored_4.oyez_outbox
    ADD CONSTRAINT oyez_outbox_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY stored_4.oyez_replica
    ADD CONSTRAINT oyez_replica_pkey PRIMARY KEY (owner);
ALTER TABLE ONLY stored_4.oyez_saga_log
    ADD CONSTRAINT oyez_saga_log_pkey PRIMARY KEY (kind, key, version);
ALTER TABLE ONLY stored_4.oyez_state
    ADD CONSTRAINT oyez_state_pkey PRIMARY KEY (kind, key);
ALTER TABLE ONLY stored_4.oyez_timer
    ADD CONSTRAINT oyez_timer_pkey PRIMARY KEY (kind, key, name);
CREATE INDEX oyez_audit_time ON stored_4.oyez_audit USING btree ("time");
CREATE INDEX oyez_dead_cause ON stored_4.oyez_dead USING btree (state, cause, id, "time");
CREATE INDEX oyez_dead_key ON stored_4.oyez_dead USING btree (substr(key, 1, 100), id) WHERE (state = 'dead'::text);
CREATE INDEX oyez_dead_state ON stored_4.oyez_dead USING btree (state, id);
CREATE INDEX oyez_inbox_chain ON stored_4.oyez_inbox USING btree (stream, partition, chain, reader, seq) WHERE (state > 0);
CREATE INDEX oyez_inbox_due ON stored_4.oyez_inbox USING btree (handler, due, seq) WHERE (state = 2);
CREATE UNIQUE INDEX oyez_inbox_event ON stored_4.oyez_inbox USING btree (event_id, source, handler, reader);
CREATE INDEX oyez_inbox_seen ON stored_4.oyez_inbox USING brin (seen) WITH (autosummarize='on');
CREATE INDEX oyez_outbox_due ON stored_4.oyez_outbox USING btree (due, seq) WHERE (state = 0);
CREATE INDEX oyez_outbox_event ON stored_4.oyez_outbox USING btree (event_id) WHERE (event_id IS NOT NULL);
CREATE INDEX oyez_outbox_held ON stored_4.oyez_outbox USING btree (stream, key) WHERE (state > 0);
CREATE UNIQUE INDEX oyez_outbox_name ON stored_4.oyez_outbox USING btree (name) WHERE (name IS NOT NULL);
CREATE INDEX oyez_state_ended ON stored_4.oyez_state USING btree (ended) WHERE (ended IS NOT NULL);
CREATE INDEX oyez_state_status ON stored_4.oyez_state USING btree (kind, status, changed) WHERE (status IS NOT NULL);
CREATE INDEX oyez_timer_due ON stored_4.oyez_timer USING btree (part, kind, due);
