create table counted (clock text not null, number integer not null);
