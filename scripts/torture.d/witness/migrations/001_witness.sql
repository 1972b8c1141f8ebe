create table seen (
  event_id text not null, source text not null, type text not null, subject text not null,
  number integer not null
);
create index seen_by_key on seen (subject, source);
