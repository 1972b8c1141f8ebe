-- What a fraud check said of an order, if there is one, and a clerk after it.
alter table orders add column flagged integer not null default 0;
alter table orders add column approved integer not null default 0;
