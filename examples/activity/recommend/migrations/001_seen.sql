create table seen (person text not null, item text not null, primary key (person, item));
create table model (version text primary key, trained_on integer not null);
