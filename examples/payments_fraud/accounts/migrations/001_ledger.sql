-- What an account has is the sum of its entries; `balance` is kept beside them, and checked.
create table accounts (
  account text primary key,
  balance bigint not null default 0,
  held bigint not null default 0 check (held >= 0),
  least bigint not null default 0,
  check (balance - held >= least)
);
create table hold (
  transfer_id text primary key,
  source text,
  target text,
  cents bigint,
  state text not null check (state in ('held', 'short', 'released', 'posted'))
);
create table entry (
  booking text not null,
  account text not null,
  cents bigint not null,
  at text not null,
  primary key (booking, account)
);
-- Where money comes from that is paid in.
insert into accounts (account, least) values ('world', -4000000000000000);
