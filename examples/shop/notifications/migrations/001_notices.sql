create table notice (
  order_id text not null, stage text not null, channel text not null, sent_at text not null,
  primary key (order_id, stage, channel)
);
