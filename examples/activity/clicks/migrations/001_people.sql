create table click (id text primary key);
create table person (name text primary key, person text not null unique, key text not null);
