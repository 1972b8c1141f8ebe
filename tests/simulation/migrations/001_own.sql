create table own (name text primary key, n integer not null);
