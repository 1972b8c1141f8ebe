"""Oyez's own tables in a service's store: their states, and the statements common to all stores.

A store creates ten tables; `STEPS` in each store module has the columns in its own SQL types.

- ``oyez_inbox``: one row for each event and handler, kept for deduplication; while the event is
  parked, the row also holds what its next attempt needs. Unique by (reader, event_id, source,
  handler).
- ``oyez_outbox``: announced events that the broker has not confirmed, in commit order by ``seq``.
- ``oyez_cursor``: the position, owner and epoch of each partition, by (stream, partition, reader).
- ``oyez_replica``: the lease of each process of the service.
- ``oyez_dead``: dead letters. ``cause`` is what `oyez.causes.cause_of` returns, written with each.
- ``oyez_audit``: one row for each act of a person, written in the transaction of the act; see
  `oyez.runtime.audit`.
- ``oyez_state``: keyed state, by (kind, key); see `oyez.state`. A saga's rows have a ``status`` as
  well, and are also the view ``oyez_saga``.
- ``oyez_saga_log``: one row for each transition of a saga, by (kind, key, version), where
  ``version`` is the number of the transition.
- ``oyez_timer``: what is to happen at a time, by (kind, key, name). ``part`` is the place
  (``oyez:timers``) that fires it, ``armed`` the time at which it was set, ``traceparent`` and
  ``tracestate`` the trace of what set it, and ``authid`` and ``authtype`` who began that.
- ``oyez_migration``: the migrations that have run, and marks of Oyez's own (names with ``oyez:``).

A *reader* is the name of a set of positions and inbox rows: empty for the service itself, another
one for a view that is rebuilt, say.

The statements here are written in the SQL that SQLite and PostgreSQL share, with ``:name``
parameters, for `Store.fetch`, `StoreTransaction.fetch` and ``Changes.writes``. A third party's
store only has to create these tables and run these statements. The statements of a store's own
methods (commit, leases, migrations) are in the store's module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from typing import TypeVar

T = TypeVar("T")

OUTBOX = "oyez:outbox"
"""The stream under which the relay claims the outbox, and the handler of its dead letters."""
TIMERS = "oyez:timers"
"""The stream under which the places that fire timers are claimed, and of the events they fire."""
PLACES = 8
"""The number of these places: the partitions of `TIMERS`."""
REPLAY = "replay:"
"""What the readers of replays begin with."""
POSITIONS = "oyez:broker"
"""The row of ``oyez_migration`` with the kind of broker that the positions belong to."""
INBOX_RETENTION = 7 * 86_400.0
"""Seconds for which inbox entries are kept, which is the age limit of a safe redrive."""


class Inbox(IntEnum):
    """``oyez_inbox.state``."""

    HANDLED = 0
    """Done or dead: kept for deduplication."""
    BEHIND = 1
    """Parked after an earlier event of its chain."""
    DUE = 2
    """Parked; its next attempt starts at ``due``."""


class Outbox(IntEnum):
    """``oyez_outbox.state``."""

    WAITING = 0
    """To be published at ``due``."""
    BEHIND = 1
    """Waits after a refused event of its stream and key."""
    REFUSED = 2
    """Refused by the broker for good: a dead letter until it is redriven or discarded."""


class Letter(StrEnum):
    """``oyez_dead.state``."""

    DEAD = "dead"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"


# -- replicas and claims ---------------------------------------------------------------------------

LIVING = "select owner from oyez_replica where until > :now order by owner"
FORGET_REPLICAS = "delete from oyez_replica where until < :then"
CURSORS = "select stream, partition, position, owner, epoch from oyez_cursor where reader = :reader"
ADD_CURSOR = """insert into oyez_cursor (stream, partition, reader)
 values (:stream, :partition, :reader) on conflict (stream, partition, reader) do nothing"""
ACQUIRE = """update oyez_cursor set epoch = epoch + 1,
  crashes = case when owner is null or owner = :owner then 0
    when crashed_at = position then crashes + 1 else 1 end,
  crashed_at = case when owner is null or owner = :owner then -1 else position end,
  owner = :owner
 where stream = :stream and partition = :partition and reader = :reader
  and (owner is null or owner = :owner
   or owner not in (select owner from oyez_replica where until > :now))"""
CLAIM = f"{ACQUIRE} returning position, epoch, crashes"
ACQUIRED = """select stream, partition, position, epoch, crashes from oyez_cursor
 where reader = :reader and owner = :owner"""
RELEASE = """update oyez_cursor set owner = null
 where stream = :stream and partition = :partition and reader = :reader
  and owner = :owner and epoch = :epoch"""

# -- parked events ---------------------------------------------------------------------------------

_OWNED = """oyez_inbox i join oyez_cursor c
 on c.stream = i.stream and c.partition = i.partition and c.reader = i.reader"""

BLOCKED = f"""select chain, count(*) as parked from oyez_inbox
 where stream = :stream and partition = :partition and reader = :reader
  and state > {Inbox.HANDLED:d} group by chain"""
IS_PARKED = f"select 1 as parked from oyez_inbox where seq = :seq and state > {Inbox.HANDLED:d}"
OLDEST_RETRY = f"""select min(case when due = 0 then seen else due end) as due from {_OWNED}
 where state = {Inbox.DUE:d} and c.owner = :owner"""
HASTEN = f"""update oyez_inbox set due = 0
 where state = {Inbox.DUE:d} and handler = :handler and due > :latest"""
_PARKED = f"""with recursive found (handler) as (
  select min(handler) from oyez_inbox where state = {Inbox.DUE:d}
  union all
  select (select min(i.handler) from oyez_inbox i
   where i.state = {Inbox.DUE:d} and i.handler > found.handler)
  from found where found.handler is not null)"""
PARKED_HANDLERS = f"{_PARKED} select handler from found where handler is not null"
"""The handlers that have parked events: one step in an index for each, however many events."""
PARKED_TIMES = f"""{_PARKED} select handler,
 (select min(i.due) from oyez_inbox i
  where i.state = {Inbox.DUE:d} and i.handler = found.handler) as earliest,
 (select min(i.due) from oyez_inbox i
  where i.state = {Inbox.DUE:d} and i.handler = found.handler and i.due > :now) as coming
 from found where handler is not null"""
"""These handlers, whoever owns the events, with the earliest due time and the next after now."""
DELETE_HANDLED = f"""delete from oyez_inbox where seq in
 (select seq from oyez_inbox where state = {Inbox.HANDLED:d} and seen < :then
  order by seq limit 1000) returning seq"""

# -- the outbox ------------------------------------------------------------------------------------

OUTBOX_HEAD = f"""select seq from oyez_outbox
 where due <= :now and state = {Outbox.WAITING:d} order by due, seq limit 1"""
NEXT_ANNOUNCEMENT = f"""select min(due) as due from oyez_outbox
 where due > :now and state = {Outbox.WAITING:d}"""
TAKE = f"""update oyez_outbox set due = 0, event_id = null, name = null
 where seq = :seq and due > 0 and state <> {Outbox.REFUSED:d}"""
"""From here on it is published as any other, and can't be cancelled."""
CANCEL = f"""delete from oyez_outbox
 where event_id = :id and due > 0 and state <> {Outbox.REFUSED:d} returning seq"""
DELETE_NAMED = f"""delete from oyez_outbox
 where name = :name and due > 0 and state <> {Outbox.REFUSED:d}"""
CANCEL_NAMED = f"{DELETE_NAMED} returning seq"
REFUSE = f"update oyez_outbox set state = {Outbox.REFUSED:d} where seq = :seq"
HOLD = f"""update oyez_outbox set state = {Outbox.BEHIND:d}
 where state = {Outbox.WAITING:d} and stream = :stream and key = :key
  and exists (select 1 from oyez_outbox r where r.stream = :stream and r.key = :key
   and r.state = {Outbox.REFUSED:d})"""
HELD = f"""select stream, key, max(state) as state from oyez_outbox
 where state > {Outbox.WAITING:d} and key is not null group by stream, key"""
UNHOLD = f"""update oyez_outbox set state = {Outbox.WAITING:d}
 where state = {Outbox.BEHIND:d} and stream = :stream and key = :key
  and not exists (select 1 from oyez_outbox r where r.stream = :stream and r.key = :key
   and r.state = {Outbox.REFUSED:d})"""
REFUSALS = f"select count(*) as events from oyez_outbox where state = {Outbox.REFUSED:d}"
ANNOUNCE_AGAIN = f"""update oyez_outbox set state = {Outbox.WAITING:d}, due = 0, data = :data
 where seq = :seq and state = {Outbox.REFUSED:d} returning seq"""
WITHDRAW = f"""delete from oyez_outbox
 where seq = :seq and state = {Outbox.REFUSED:d} returning seq"""

COUNTED = 100_000
"""Rows are counted so far in what is measured; parked events to `COUNTED_PARKED` alone."""
COUNTED_PARKED = 10_000
WAITING = f"""select
 (select count(*) from (select 1 as one from oyez_outbox
   where state = {Outbox.WAITING:d} and due <= :now limit {COUNTED}) as o) as outbox,
 (select min(due) from oyez_outbox
  where state = {Outbox.WAITING:d} and due > 0 and due <= :now) as late,
 (select count(*) from (select 1 as one from oyez_outbox
   where state > {Outbox.WAITING:d} and state = {Outbox.REFUSED:d} limit {COUNTED}) as r)
  as refused,
 (select count(*) from (select 1 as one from oyez_dead
   where state = '{Letter.DEAD}' limit {COUNTED}) as d) as dead,
 p.parked, p.oldest
 from (select count(*) as parked, min(seen) as oldest from (select seen from oyez_inbox
  where state > {Inbox.HANDLED:d} limit {COUNTED_PARKED}) as i) as p"""
"""What waits in the store. Each part is a bounded step in an index."""
OUTBOX_FIRST = f"""select headers from oyez_outbox
 where state = {Outbox.WAITING:d} and due = 0 order by due, seq limit 1"""
STUCK = f"""select count(*) as sagas from (select 1 as one from oyez_state
 where kind = :kind and status = 'stuck' limit {COUNTED}) as s"""

BUSY = f"""select
 (select count(*) from oyez_outbox where due <= :now and state = {Outbox.WAITING:d}) +
 (select count(*) from oyez_inbox where due <= :now and state = {Inbox.DUE:d}) as busy"""

# -- dead letters ----------------------------------------------------------------------------------

_LETTERS = """select id, event_id, type, handler, stream, partition, position, key, reason,
  attempts, time, state, note from oyez_dead"""

DEAD_LETTERS = f"""{_LETTERS} where state = '{Letter.DEAD}' and id > :after
 order by id limit :limit"""
ALL_LETTERS = f"{_LETTERS} where id > :after order by id limit :limit"
LETTER = "select * from oyez_dead where id = :id"
MARK_LETTER = f"""update oyez_dead set state = :state, note = :note
 where id = :id and state = '{Letter.DEAD}' returning id"""
PARK_AGAIN = f"""insert into oyez_inbox (event_id, source, handler, reader, seen, state, stream,
  partition, position, chain, due, attempt, history, key, headers, data)
 values (:event_id, :source, :handler, :reader, :now, {Inbox.DUE:d}, :stream, :partition,
  :position, null, 0, 0, :history, :key, :headers, :data)
 on conflict (reader, event_id, source, handler) do update set state = {Inbox.DUE:d},
  stream = excluded.stream, partition = excluded.partition, position = excluded.position,
  chain = null, due = excluded.due, attempt = 0, history = excluded.history, key = excluded.key,
  headers = excluded.headers, data = excluded.data
 where oyez_inbox.state = {Inbox.HANDLED:d} returning seq"""
WITHOUT_CAUSE = f"""select id, handler, type, reason from oyez_dead
 where state = '{Letter.DEAD}' and cause = '' limit 500"""
"""Letters of a former version, which may still run while this one does."""
SET_CAUSE = "update oyez_dead set cause = :cause where id = :id"
LAST_LETTER = "select coalesce(max(id), 0) as last from oyez_dead"
WANTED = {
    "handler": "handler = :handler",
    "type": "type = :type",
    "key": "substr(key, 1, 100) = substr(cast(:key as text), 1, 100) and key = :key",
    "group": "cause = :group",
    "text": "lower(reason) like :text escape '\\'",
}
"""The conditions that dead letters may be chosen by, each with a parameter of its name. Of the key,
which nobody bounds, an index holds the beginning."""


def wanted_letters(names: Iterable[str], *, every: bool = False) -> str:
    """Return the statement for the letters that meet these conditions of `WANTED`, by id.

    They are those after ``:after``, up to ``:last``, at most ``:limit``; without ``every`` only
    dead ones.
    """
    return f"{_LETTERS} where {_wanted(names, every)} and id > :after and id <= :last{_BY_ID}"


def count_letters(names: Iterable[str]) -> str:
    """Return the statement for the number of the dead letters that meet these conditions."""
    return f"select count(*) as letters from oyez_dead where {_wanted(names)} and id <= :last"


def letter_groups(names: Iterable[str]) -> str:
    """Return the statement for groups of the dead letters that meet these conditions.

    The largest come first: those after one of ``:letters`` letters and the name ``:after``, at most
    ``:limit``. Of each, its newest letter is read for what all of them share: handler and type.
    """
    shared = [name for name in names if name in ("handler", "type")]
    each = [name for name in names if name not in shared]
    # The index of groups is read from end to end, but only where it has all that is asked for.
    group = "cause || ''" if each else "cause"
    page = "order by letters desc, cause limit :limit"
    return f"""select g.cause as "group", d.handler, d.type, d.reason, g.letters, g.oldest,
  g.newest, g.example from (
 select {group} as cause, count(*) as letters, min(time) as oldest, max(time) as newest,
   max(id) as example from oyez_dead where {_wanted(each)} group by {group}
  having count(*) < :letters or (count(*) = :letters and {group} > :after)
  {"" if shared else page}
 ) g join oyez_dead d on d.id = g.example
 where {" and ".join(f"d.{WANTED[name]}" for name in shared) or "1 = 1"}
 order by g.letters desc, g.cause limit :limit"""


def _wanted(names: Iterable[str], every: bool = False) -> str:
    dead = [] if every else [f"state = '{Letter.DEAD}'"]
    return " and ".join([*dead, *(WANTED[name] for name in names)]) or "1 = 1"


_BY_ID = " order by id limit :limit"
DELETE_SETTLED_LETTERS = f"""delete from oyez_dead where id in
 (select id from oyez_dead where state <> '{Letter.DEAD}' and time < :then
  order by id limit 1000) returning id"""

# -- the audit -------------------------------------------------------------------------------------

AUDIT = """insert into oyez_audit (time, who, via, act, target, reason, before, after)
 values (:time, :who, :via, :act, :target, :reason, :before, :after)"""
ACTS = """select id, time, who, via, act, target, reason, before, after from oyez_audit
 where id < :before and (cast(:target as text) = '' or target = :target)
 order by id desc limit :limit"""
"""The newest first; with an empty target, of all."""
DELETE_AUDIT = """delete from oyez_audit where id in
 (select id from oyez_audit where time < :then order by time limit 1000) returning id"""

# -- keyed state -----------------------------------------------------------------------------------

STATE = """select version, shape, data from oyez_state
 where kind = :kind and key = :key and version > 0"""

STATES = """select key, version, shape, data from oyez_state
 where kind = :kind and key > :after and version > 0 order by key limit :limit"""
COUNT_STATE = "select count(*) as rows from oyez_state where kind = :kind and version > 0"

# -- replays ---------------------------------------------------------------------------------------

IN_FLIGHT = f"""select seq, headers, data from oyez_inbox
 where reader = '' and handler = :handler and state > {Inbox.HANDLED:d} and seq > :after
 order by seq limit :limit"""
LETTERS_OF = f"""select count(*) as letters from oyez_dead
 where reader = :reader and handler = :handler and state <> '{Letter.REDRIVEN}'"""

HOLD_CURSORS = """update oyez_cursor set epoch = epoch where reader = :reader
 returning stream, partition, position"""
"""Until the transaction ends, no claim of the reader commits."""
REPLACED_STATE = "delete from oyez_state where kind = :kind"
RENAME_STATE = "update oyez_state set kind = :kind where kind = :made and version > 0"
KINDS_LIKE = "select distinct kind from oyez_state where kind like :kind"
DELETE_INBOX = """delete from oyez_inbox where seq in
 (select seq from oyez_inbox where reader = :reader order by seq limit 1000) returning seq"""
DELETE_LETTERS = """delete from oyez_dead where id in
 (select id from oyez_dead where reader = :reader order by id limit 1000) returning id"""
DELETE_MARK = "delete from oyez_migration where name = :name"
DEAD_OF_READER = f"""select count(*) as letters from oyez_dead
 where reader = :reader and state = '{Letter.DEAD}'"""

# -- timers ----------------------------------------------------------------------------------------

ARM = """insert into oyez_timer
  (kind, key, name, due, part, armed, traceparent, tracestate, authid, authtype)
 values (:kind, :key, :name, :due, :part, :armed, :traceparent, :tracestate, :authid, :authtype)
 on conflict (kind, key, name) do update set due = excluded.due, part = excluded.part,
  armed = excluded.armed, traceparent = excluded.traceparent, tracestate = excluded.tracestate,
  authid = excluded.authid, authtype = excluded.authtype"""
DISARM = "delete from oyez_timer where kind = :kind and key = :key and name = :name"
DISARM_ALL = "delete from oyez_timer where kind = :kind and key = :key"
NEXT_TIMER = """select :{kind} as kind, min(due) as due from oyez_timer
 where part = :part and kind = :{kind}"""
"""``{kind}`` is the name of a parameter. ``union all`` joins several, each a step in the index."""
TAKE_TIMERS = """delete from oyez_timer where part = :part and due <= :now
 and (kind, key, name) in (select kind, key, name from oyez_timer
  where part = :part and kind = :kind and due <= :now order by due limit :limit)
 returning key, name, due, traceparent, tracestate, authid, authtype,
 (select s.correlationid from oyez_state s
  where s.kind = oyez_timer.kind and s.key = oyez_timer.key) as correlationid"""
AHEAD = "select 1 as found from oyez_timer where part = :part and armed > :latest limit 1"
SHIFT_TIMERS = """update oyez_timer set due = due - (armed - :now), armed = :now
 where part = :part and armed > :latest and kind <> :calendar"""
SCHEDULES = "select key, name, due from oyez_timer where part = :part and kind = :kind"
NEWEST = "select owner from oyez_replica where until > :now order by started desc, owner limit 1"
OVERDUE_TIMERS = """select part, count(*) as timers, min(due) as oldest from oyez_timer
 where due <= :now group by part"""

# -- views -----------------------------------------------------------------------------------------

VIEW_MARKS = """select name, digest, applied from oyez_migration where name like 'oyez:view:%'
 order by name"""
"""The active version of each view, and the scripts of the tables of all versions."""
MARK_FIRST = """insert into oyez_migration (name, digest, applied) values (:name, :mark, :now)
 on conflict (name) do nothing returning name"""
_OF_A_VIEW = "(reader = :reader or reader = '' and handler = :reader)"
FILLED = f"""select
 (select count(*) from oyez_cursor a left join oyez_cursor n
   on n.stream = a.stream and n.partition = a.partition and n.reader = :reader
  where a.reader = :active and coalesce(n.position, -1) < a.position) as behind,
 (select count(*) from oyez_inbox where {_OF_A_VIEW} and state > {Inbox.HANDLED:d}) as parked,
 (select count(*) from oyez_dead where {_OF_A_VIEW} and state = '{Letter.DEAD}') as dead"""
"""What a version of a view lacks to take the place of the active one.

The service itself, whose reader is empty, reads for it where there is no history.
"""
ACTIVE = "select digest as version from oyez_migration where name = :name"
"""The version that a view shows; ``name`` is ``oyez:view:`` and the view's name."""
LIVE_READERS = """select count(*) as living from oyez_cursor c
 join oyez_replica r on r.owner = c.owner and r.until > :now where c.reader = :reader"""
SET_MARK = """insert into oyez_migration (name, digest, applied) values (:name, :mark, :now)
 on conflict (name) do update set digest = excluded.digest, applied = excluded.applied"""
DELETE_STATE = """delete from oyez_state where kind = :kind and key in
 (select key from oyez_state where kind = :kind order by key limit 1000) returning key"""
LAST_READ = "select coalesce(max(seq), 0) as last from oyez_inbox"
DELETE_READ = """delete from oyez_inbox
 where reader = :reader and seq > :after and seq <= :last"""
BEGIN_AT = """update oyez_cursor
 set position = :position, owner = null, epoch = epoch + 1, crashes = 0, crashed_at = -1
 where stream = :stream and partition = :partition and reader = :reader and position = 0"""
"""Begins a reader that has read nothing behind what retention has deleted."""
UNAPPLIED = f"""select event_id, source from oyez_inbox
 where reader = :reader and state > {Inbox.HANDLED:d}
 union select event_id, source from oyez_dead
 where reader = :reader and state <> '{Letter.REDRIVEN}'"""
DELETE_CURSORS = "delete from oyez_cursor where reader = :reader"
DELETE_MARKS = """delete from oyez_migration where name = :name
 or substr(name, 1, length(cast(:name as text)) + 2) = cast(:name as text) || ' ('"""
"""The marks of a version's table and of its indexes."""
APPLIED = f"""select count(*) as applied from oyez_inbox
 where reader in (:reader, '') and handler = :reader and event_id = :event_id and source = :source
  and state = {Inbox.HANDLED:d}"""

# -- backfills -------------------------------------------------------------------------------------

BACKFILLS = """select name, digest as version from oyez_migration
 where name like 'oyez:backfill:%'"""
HOLD_MARK = """update oyez_migration set digest = digest where name = :name
 returning digest as version"""
"""Until the transaction ends, no other one changes the mark."""

# -- sagas -----------------------------------------------------------------------------------------

LOG_SAGA = """insert into oyez_saga_log (kind, key, version, at, event_id, type, step, outputs)
 values (:kind, :key, :number, :at, :event_id, :type, :step, :outputs)"""
SAGA_LOG = """select version as number, at, event_id, type, step, outputs from oyez_saga_log
 where kind = :kind and key = :key order by version"""
_SAGAS = """select kind, key, status, step, started, ended, changed, correlationid{more}
 from oyez_saga"""
SAGAS = f"""{_SAGAS.format(more="")}
 where changed <= :before and (status = :status or (status <> 'ended'
  and cast(:status as text) = '')) order by changed, kind, key limit :limit"""
"""The sagas of a status; with an empty one, those that have not ended."""
SAGAS_OF_KEY = f"{_SAGAS.format(more=', data')} where key = :key order by kind"
SAGAS_OF_KEYS = f"""{_SAGAS.format(more=", data")}
 where kind = :kind and key in ({{keys}}) order by key"""
"""``{keys}`` stands for the names of as many parameters as there are keys."""
_FIRST_SAGA = "select kind from oyez_saga{more} order by kind, status, changed limit 1"
SAGA_KINDS = f"""with recursive known (kind) as (
 select kind from ({_FIRST_SAGA.format(more="")}) one union all
 select ({_FIRST_SAGA.format(more=" where kind > known.kind")}) from known
  where known.kind is not null)
 select kind from known where kind is not null order by kind"""
"""Each kind once, for one look each at the index of sagas, whose order is asked for."""
COUNT_SAGAS = """select step, count(*) as sagas from (
  select step from oyez_saga where kind = :kind and status = :status
  order by changed limit :limit) looked_at
 group by step order by step"""
"""What the sagas of a status wait for, of those that were not changed for longest."""
COUNT_ENDED = """select count(*) as sagas from (
  select 1 as one from oyez_saga where kind = :kind and status = 'ended'
  order by changed limit :limit) looked_at"""
_WITH_DATA = """select key, changed, data from oyez_saga
 where kind = :kind and status = :status and length(data) <= :bytes"""
LONGEST_WITH_DATA = f"{_WITH_DATA} order by changed limit :limit"
NEWEST_WITH_DATA = f"{_WITH_DATA} order by changed desc limit :limit"
_OF_STATUS = f"{_SAGAS.format(more='')} where kind = :kind and status = :status"
SAGAS_AFTER = f"""{_OF_STATUS} and (changed, key) > (:changed, :key)
 order by changed, key limit :limit"""
"""The sagas of a status, the one that was not changed for longest first."""
SAGAS_BEFORE = f"""{_OF_STATUS} and (changed, key) < (:changed, :key)
 order by changed desc, key desc limit :limit"""
"""The other way round."""
SAGA_LOG_BEFORE = """select version as number, at, event_id, type, step, outputs from oyez_saga_log
 where kind = :kind and key = :key and version < :before order by version desc limit :limit"""
TIMERS_OF = "select name, due from oyez_timer where kind = :kind and key = :key order by due"
FORGET_SAGA = "delete from oyez_saga_log where kind = :kind and key = :key"
_ENDED = """(kind, key) in
 (select kind, key from oyez_state where ended < :then order by ended limit 1000)"""
DELETE_ENDED_LOG = f"delete from oyez_saga_log where {_ENDED}"
DELETE_ENDED = f"delete from oyez_state where {_ENDED} and ended < :then returning key"

# -- marks -----------------------------------------------------------------------------------------

MARK = """insert into oyez_migration (name, digest, applied) values (:name, :mark, :now)
 on conflict (name) do nothing"""
CHANGE_MARK = "update oyez_migration set digest = :mark, applied = :now where name = :name"
MARK_AND_POSITION = """select digest as mark, (select max(position) from oyez_cursor) as last
 from oyez_migration where name = :name"""
FORGET_POSITIONS = f"""delete from oyez_cursor; \
delete from oyez_migration where name = '{POSITIONS}';"""
"""SQL for operators, who run it when a service moves to another kind of broker."""
MIGRATIONS = """select name, digest, applied from oyez_migration where name not like 'oyez:%'
 order by name"""

# -- queries of inspection -------------------------------------------------------------------------

REPLICAS = "select owner, until, started, note from oyez_replica"
PARKED = f"""select stream, partition, count(*) as events, min(seen) as oldest from oyez_inbox
 where state > {Inbox.HANDLED:d} and reader = :reader group by stream, partition"""
FIRST_PARKED = f"""select headers from oyez_inbox
 where state > {Inbox.HANDLED:d} and reader = :reader order by seen, seq limit 1"""
PARKED_EVENTS = f"""select seq, event_id, handler, reader, seen, state, stream, partition, position,
  key, due, attempt, history, headers, (select h.event_id from oyez_inbox h
  where h.stream = i.stream and h.partition = i.partition and h.chain = i.chain
   and h.reader = i.reader and h.state > {Inbox.HANDLED:d} and h.state = {Inbox.DUE:d}
  order by h.seq limit 1) as first
 from oyez_inbox i where seq in (select seq from oyez_inbox
  where state > {Inbox.HANDLED:d} and seq + 0 > :after order by seq + 0 limit :limit)
 order by seq"""
"""Parked events by row. ``first`` is the event of its chain that is tried next.

The sum, and the state asked for twice, keep it to the index of parked events, which are few beside
the handled.
"""
DEAD_BY_PARTITION = f"""select stream, partition, count(*) as letters from oyez_dead
 where state = '{Letter.DEAD}' and handler <> '{OUTBOX}' group by stream, partition"""
OUTBOX_SIZE = f"""select count(*) as events,
 sum(case when due > :now then 1 else 0 end) as later,
 sum(case when state = {Outbox.REFUSED:d} then 1 else 0 end) as refused from oyez_outbox"""
OLDEST_ANNOUNCED = """select due, headers from oyez_outbox where due <= :now
 order by seq limit 1"""
ANNOUNCED = """select seq, due, stream, headers, state from oyez_outbox where seq > :after
 order by seq limit :limit"""
TIMER_KINDS = "select distinct kind from oyez_timer order by kind"
KIND_VERSIONS = "select kind, max(shape) as version from oyez_state group by kind order by kind"
STUCK_SAGAS = """select kind, count(*) as sagas, min(key) as key from oyez_saga
 where status = 'stuck' group by kind order by kind"""
SCHEDULED = f"""select event_id, name, due, key, headers from oyez_outbox
 where due > 0 and state = {Outbox.WAITING:d} order by due, seq limit :limit"""
NEXT_TIMERS = "select kind, key, name, due from oyez_timer order by due limit :limit"
HANDLED_BY = f"""select event_id, source, handler, seen, state, position, due, attempt, history
 from oyez_inbox where event_id in ({{ids}}) and reader not like '{REPLAY}%'"""
"""``{ids}`` stands for the names of as many parameters as there are event ids."""
DEAD_OF = f"""select id, event_id, source, handler, reason, attempts, time, state, note, history
 from oyez_dead where event_id in ({{ids}}) and reader not like '{REPLAY}%' order by id"""
"""As `HANDLED_BY`."""

FOUND_LETTERS = f"""{_LETTERS} where id = :number
 union all {_LETTERS} where id > (select coalesce(max(id), 0) from oyez_dead) - :newest
  and id <> :number and (event_id = :identity or key = :identity
   or (cast(:ending as text) <> '' and event_id like :ending)) order by id desc limit :limit"""
"""Of the newest letters, those of an identity."""
WAITING_EVENTS = f"""select stream, partition, position, key, seen as time, headers
 from oyez_inbox where state > {Inbox.HANDLED:d} and reader = '' order by seq + 0 limit :limit"""
"""The sum keeps it to the index of parked events, which are few beside the handled."""
BURIED_EVENTS = f"""select stream, partition, position, key, time, headers from oyez_dead
 where handler <> '{OUTBOX}' order by id desc limit :limit"""


def reserved(limit: int) -> int:
    """Return how many of ``limit`` outbox rows are delayed ones, if so many are due."""
    return max(1, limit // 8)


def halves(at_once: Sequence[T], due: Sequence[T], limit: int) -> list[T]:
    """Return ``limit`` parked events, half of each sort; what one leaves free is the other's."""
    first = min(len(at_once), max(limit - limit // 2, limit - len(due)))
    return [*at_once[:first], *due[: limit - first]]
