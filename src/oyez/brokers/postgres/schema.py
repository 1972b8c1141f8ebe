"""The tables, and the functions to append and delete records."""

from __future__ import annotations

STEPS = (
    """
create table {schema}.setup (version int not null, tidied double precision not null);
insert into {schema}.setup values (1, 0);

create table {schema}.stream (
  id bigint generated always as identity primary key,
  name text not null unique, partitions int not null check (partitions > 0)
);

-- Ids begin at a number of chance, so that those of an earlier schema never mean something else.
create table {schema}.partition (
  id bigint generated always as identity (start with {start}) primary key,
  stream bigint not null references {schema}.stream on delete cascade, partition int not null,
  first bigint not null default 0,       -- up to here, records have been deleted
  unique (stream, partition)
);

create table {schema}.record (
  partition bigint not null, position bigint not null,
  time double precision not null,        -- seconds since 1970, by this server's clock
  key bytea, headers bytea not null, data bytea,
  primary key (partition, position)
) with (autovacuum_vacuum_scale_factor = 0.05);
alter table {schema}.record alter data set storage external;

create view {schema}.ends as
  select s.name as stream, p.partition, p.id, p.first, coalesce((select max(r.position)
    from {schema}.record r where r.partition = p.id and r.position > p.first), p.first) as last
  from {schema}.stream s join {schema}.partition p on p.stream = s.id;

create table {schema}.progress (
  consumer text not null, partition bigint not null references {schema}.partition on delete cascade,
  position bigint not null, time double precision not null,
  primary key (consumer, partition)
);

-- Appends to partitions, each named once and in order; a record's slot says to which, and nth as
-- which of the new ones there. Returns where each ended before, or nothing when one does not exist.
-- The locks come in statements of their own, so that the next one sees what was committed before.
-- Plans are kept, since making one takes longer than appending a record.
create function {schema}.append(
  places bigint[], slots int[], nths int[], keys bytea[], headers bytea[], data bytea[]
) returns bigint[] language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  locked bigint;
  ends bigint[];
begin
  foreach locked in array places loop
    perform pg_advisory_xact_lock(locked);
  end loop;
  ends := array(
    select coalesce((select max(r.position) from {schema}.record r
      where r.partition = p.id and r.position > p.first), p.first)
    from {schema}.partition p where p.id = any(places) order by p.id
  );
  if cardinality(ends) < cardinality(places) then
    return null;
  end if;
  insert into {schema}.record
    select places[r.slot], ends[r.slot] + r.nth, extract(epoch from clock_timestamp()),
      r.key, r.headers, r.data
    from unnest(slots, nths, keys, headers, data) r (slot, nth, key, headers, data);
  return ends;
end $$;

create function {schema}.make_stream(stream text, count int) returns void language plpgsql as $$
declare
  made bigint;
begin
  insert into {schema}.stream (name, partitions) values (stream, count)
    on conflict (name) do nothing returning id into made;
  if made is not null then
    insert into {schema}.partition (stream, partition)
      select made, number from generate_series(0, count - 1) number;
    perform pg_notify('{channel}', '');
  end if;
end $$;

create function {schema}.forget_stream(name text) returns void language plpgsql as $$
#variable_conflict use_column
declare
  gone bigint[] := array(select e.id from {schema}.ends e where e.stream = name order by e.id);
  locked bigint;
begin
  foreach locked in array gone loop
    perform pg_advisory_xact_lock(locked);
  end loop;
  delete from {schema}.record where partition = any(gone);
  delete from {schema}.stream s where s.name = forget_stream.name;
  perform pg_notify('{channel}', '');
end $$;

create function {schema}.forget_records(place bigint, horizon double precision, most int)
returns int language plpgsql as $$
#variable_conflict use_column
declare
  upto bigint;
  count int := 0;
begin
  select max(position) filter (where time < horizon) into upto from (
    select r.position, r.time from {schema}.record r join {schema}.partition p on p.id = place
    where r.partition = place and r.position > p.first order by r.position limit most
  ) oldest;
  if upto is not null then
    delete from {schema}.record where partition = place and position <= upto;
    get diagnostics count = row_count;
    update {schema}.partition set first = greatest(first, upto) where id = place;
  end if;
  return count;
end $$;

create function {schema}.murmur2(data bytea) returns bigint language plpgsql
immutable strict parallel safe as $$
declare
  m constant bigint := 1540483477;
  mask constant bigint := 4294967295;
  size int := length(data);
  words int := size / 4;
  h bigint := 2538058380 # size;
  k bigint;
begin
  for word in 0 .. words - 1 loop
    k := get_byte(data, word * 4)::bigint | (get_byte(data, word * 4 + 1)::bigint << 8)
      | (get_byte(data, word * 4 + 2)::bigint << 16) | (get_byte(data, word * 4 + 3)::bigint << 24);
    k := k * m & mask;                   -- below 2^63, as m is below 2^31
    k := k # (k >> 24);
    h := (h * m & mask) # (k * m & mask);
  end loop;
  if size % 4 = 3 then h := h # (get_byte(data, words * 4 + 2)::bigint << 16); end if;
  if size % 4 >= 2 then h := h # (get_byte(data, words * 4 + 1)::bigint << 8); end if;
  if size % 4 >= 1 then h := (h # get_byte(data, words * 4)) * m & mask; end if;
  h := (h # (h >> 13)) * m & mask;
  return (h # (h >> 15)) & mask;
end $$;

create function {schema}.publish(
  stream text, key text, headers json, data bytea, partition int default null
) returns bigint language plpgsql as $$
#variable_conflict use_variable
declare
  bytes bytea := convert_to(key, 'UTF8');
  index bigint := partition;
  count int;
  place bigint;
  ends bigint[];
  at bigint;
begin
  select s.partitions into count from {schema}.stream s where s.name = stream;
  if count is null then
    raise 'stream % does not exist', stream
      using hint = 'make it: select {schema}.make_stream(''' || stream || ''', 8)';
  end if;
  if index is null then
    index := coalesce({schema}.murmur2(bytes), hashtext(headers ->> 'id'), 0);
    index := (index & 2147483647) % count;
  end if;
  select e.id into place from {schema}.ends e where e.stream = publish.stream
    and e.partition = index;
  ends := {schema}.append(
    array[place], '{{1}}', '{{1}}',
    array[bytes], array[convert_to(headers::text, 'UTF8')], array[data]
  );
  if ends is null then
    raise 'stream % has no partition %', stream, index;
  end if;
  at := ends[1] + 1;
  perform pg_notify('{channel}', place || ':' || at);
  return at;
end $$;
""",
)
"""The tables, step by step: what changes them is appended, never edited into an earlier step.

``{schema}``, ``{channel}`` and ``{start}`` stand for their values, ``{{`` and ``}}`` for braces.
"""
SESSION = """set default_transaction_isolation = 'read committed';
set statement_timeout = {millis}; set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10;
set tcp_keepalives_count = 3"""
"""With a timeout, so that an append that was given up does not follow much later ones."""
