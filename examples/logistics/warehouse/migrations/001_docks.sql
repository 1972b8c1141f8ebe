-- What was given (+1) and freed (-1) at each depot, in order: the docks in use are the sum.
create table dock_log (
    depot text not null,
    number integer not null,
    round_id text not null,
    change integer not null,
    primary key (depot, number)
);
