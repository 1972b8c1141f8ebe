create table alert (
  sensor_id text not null, number integer not null,
  raised_at double precision not null, cleared_at double precision,
  primary key (sensor_id, number)
);
create table silence (
  sensor_id text not null, since double precision not null, ended_at double precision,
  primary key (sensor_id, since)
);
