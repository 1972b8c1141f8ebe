create table reading (
  sensor_id text not null, number bigint not null, site_id text not null,
  measured_at double precision not null, celsius double precision not null,
  sent_at text not null, accepted_at text not null,
  primary key (sensor_id, number)
);
create table refused (
  event text primary key, sensor_id text not null, number bigint not null, why text not null
);
