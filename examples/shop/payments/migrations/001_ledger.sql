create table ledger (
  order_id text not null, entry text not null, cents integer, reason text,
  primary key (order_id, entry)
);
