create table placed (order_id text primary key, cents integer not null);
create table closed (order_id text primary key, cents integer not null);
