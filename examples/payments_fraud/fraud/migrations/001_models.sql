-- What customers said, and the version of the model that learnt it; 0 while none has.
create table label (
  transfer_id text primary key,
  id text not null,
  fraud integer not null,
  version integer not null default 0
);
create index label_by_version on label (version, id);
create table model (version integer primary key, weights text not null);
