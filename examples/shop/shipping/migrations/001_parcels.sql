create table parcel (
  order_id text primary key,
  prepared integer not null default 0, paid integer not null default 0,
  reserved integer not null default 0, cancelled integer not null default 0,
  sent integer not null default 0
);
