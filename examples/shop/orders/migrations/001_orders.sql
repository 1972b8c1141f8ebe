create table product (
  sku text primary key, name text not null, blurb text not null, cents integer not null
);
insert into product (sku, name, blurb, cents) values
  ('lantern', 'Storm lantern', 'Burns all night, whatever the wind says.', 3900),
  ('bell', 'Brass hand bell', 'Heard on the far side of the market square.', 5400),
  ('scroll', 'Parchment scroll', 'Room for one proclamation, both sides.', 1800),
  ('boots', 'Walking boots', 'Eleven villages before noon.', 12900),
  ('cloak', 'Wool cloak', 'Dyed once, rained on for ever. Few were made.', 8900),
  ('quill', 'Goose quill', 'Cut by hand, ready to write.', 900);

create table orders (
  order_id text primary key, principal text not null, email text not null, phone text,
  total_cents integer not null,
  paid integer not null default 0, reserved integer not null default 0,
  shipped integer not null default 0, confirmed integer not null default 0,
  cancelled integer not null default 0, reason text
);
create table order_line (
  order_id text not null, sku text not null, name text not null, quantity integer not null,
  cents integer not null, primary key (order_id, sku)
);
create table order_history (
  order_id text not null, stage text not null, at text not null, primary key (order_id, stage)
);

-- What a client sent under an Idempotency-Key, so that a repeat gets the same answer.
create table placement (
  principal text not null, key text not null, digest text not null, order_id text not null,
  primary key (principal, key)
);
