create table contact (order_id text primary key, email text not null, phone text);
create table notice (
  order_id text not null, stage text not null, text text not null,
  announced integer not null default 0,
  primary key (order_id, stage)
);
