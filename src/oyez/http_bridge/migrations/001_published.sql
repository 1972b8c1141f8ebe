-- What was published by POST /publish, by its Idempotency-Key.
create table bridge_published (
  key text primary key, fingerprint text not null, ids text not null,
  created double precision not null
);
create index bridge_published_created on bridge_published (created);
