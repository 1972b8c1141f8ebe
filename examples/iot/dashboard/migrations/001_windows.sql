create table ten (
  sensor_id text not null, start double precision not null, readings integer not null,
  mean double precision not null, highest double precision not null,
  primary key (sensor_id, start)
);
create table minute (
  site_id text not null, start double precision not null, readings integer not null,
  mean double precision not null, median double precision not null, p95 double precision not null,
  primary key (site_id, start)
);
create table late (
  size integer not null, sensor_id text not null, number bigint not null,
  primary key (size, sensor_id, number)
);
