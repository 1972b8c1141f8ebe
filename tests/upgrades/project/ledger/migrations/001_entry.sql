create table entry (order_id text primary key, cents integer not null, by text not null);
