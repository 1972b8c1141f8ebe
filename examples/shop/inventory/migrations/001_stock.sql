create table stock (
  sku text primary key,
  initial integer not null,
  free integer not null check (free >= 0),
  reserved integer not null default 0 check (reserved >= 0),
  shipped integer not null default 0 check (shipped >= 0)
);
insert into stock (sku, initial, free) values
  ('lantern', 50000, 50000), ('bell', 50000, 50000), ('scroll', 50000, 50000),
  ('boots', 50000, 50000), ('cloak', 25, 25), ('quill', 50000, 50000);

create table reservation (order_id text primary key, state text not null);
create table reservation_line (
  order_id text not null, sku text not null, quantity integer not null,
  primary key (order_id, sku)
);
