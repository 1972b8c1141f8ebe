create table webhook (
  id text primary key, principal text not null, url text not null, types text not null,
  description text not null, ordering text not null, concurrency integer not null,
  state text not null, secrets text not null, created double precision not null,
  failing double precision, failures integer not null, dead integer not null
);
create index webhook_principal on webhook (principal, id);

-- What is posted: one row for an event, whatever the number of its subscribers.
create table webhook_message (
  id text primary key, type text not null, body text not null, created double precision not null
);
create index webhook_message_created on webhook_message (created);

-- Deliveries that wait until their endpoint is resumed, or takes something again; in their order.
create table webhook_held (
  subscription text not null, id text not null, message text not null, type text not null,
  chain text not null, created double precision not null, primary key (subscription, id)
);

create table webhook_attempt (
  subscription text not null, id text not null, message text not null, type text not null,
  attempt integer not null, status integer, error text not null, ms integer not null,
  created double precision not null, primary key (subscription, id)
);
