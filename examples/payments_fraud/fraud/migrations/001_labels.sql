-- What customers said, and the version of the model that it belongs to; 0 while to none.
create table label (
  transfer_id text primary key,
  id text not null,
  fraud integer not null,
  version integer not null default 0
);
create index label_by_version on label (version, id);
