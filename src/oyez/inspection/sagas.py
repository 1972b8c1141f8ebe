"""The instances of a system's sagas, running or not: listed and shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from oyez import tables
from oyez.contract import encode
from oyez.envelope import open_record, parse_time
from oyez.errors import NotCreated, OyezError, StateMismatch
from oyez.event import describe
from oyez.inspection import history
from oyez.inspection.form import utc_time
from oyez.inspection.reach import Gap, ask_stores
from oyez.ports import Parameters, Record, Row, Store
from oyez.project import Project
from oyez.saga import Progress, SagaType, Status, read_fields, read_progress
from oyez.service import Service
from oyez.timers import Timer

LATEST = 2**63 - 1
"""A number that no transition has."""
_LATEST = 1e300
"""A time that no instance was changed at."""
_URGENT = (Status.STUCK, Status.UNDOING, Status.RUNNING, Status.WAITING)
_TIMER = describe(Timer)


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of a saga. Times are in seconds since 1970."""

    service: str
    saga: str
    key: str
    status: str
    step: str
    """The steps whose answer it waits for."""
    started: float | None
    ended: float | None
    changed: float
    correlationid: str | None


class Instances(msgspec.Struct, frozen=True, kw_only=True):
    """Instances of several services."""

    instances: tuple[Instance, ...]
    """By service, the one that was not changed for longest first."""
    more: bool
    """Whether some were left out."""
    gaps: tuple[Gap, ...]
    """Stores that could not be read."""


class Logged(msgspec.Struct, frozen=True, kw_only=True):
    """A transition of an instance."""

    number: int
    at: float
    event_id: str
    type: str
    step: str
    effects: list[str]


class WholeInstance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance with its progress, its log and the timers that are set."""

    instance: Instance
    progress: Progress
    log: tuple[Logged, ...]
    timers: tuple[tuple[str, float], ...]
    """The names, and their times."""
    fields: bytes | None
    """Its fields, as JSON; None where they have no such form."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a listing, for the page that comes after it."""

    status: Status
    changed: float
    key: str


async def list_instances(
    project: Project,
    services: Iterable[str],
    *,
    status: str = "",
    older: float = 0.0,
    limit: int = 100,
) -> Instances:
    """Return the instances of each service, at most ``limit`` of each.

    Without a ``status``, those that have not ended. ``older`` leaves out what was changed in so
    many seconds. A service that never ran has none.
    """
    before = project.ambient.now() - older
    found: list[Instance] = []
    gaps: list[Gap] = []
    more = False
    asked = {"status": status, "before": before, "limit": limit + 1}
    answers = await ask_stores(
        project, services, lambda store: store.fetch(tables.SAGAS, asked), gaps
    )
    for name, rows in answers:
        more = more or len(rows) > limit
        found += [_instance(name, row) for row in rows[:limit]]
    return Instances(instances=tuple(found), more=more, gaps=tuple(gaps))


async def read_instances(
    service: str,
    store: Store,
    saga: str,
    *,
    status: Status | None = None,
    after: Place | None = None,
    limit: int = 100,
) -> tuple[list[Instance], Place | None]:
    """Return instances of a saga after a place, and the place of the last one if there are more.

    Without a ``status``, those that have not ended. What needs a person comes first; then the one
    that was not changed for longest, or of those that ended the one that ended last. Raises
    StoreError.
    """
    statuses: tuple[Status, ...] = _URGENT if status is None else (status,)
    if after is not None and after.status in statuses:
        statuses = statuses[statuses.index(after.status) :]
    found: list[Instance] = []
    for each in statuses:
        newest = each is Status.ENDED
        here = after is not None and after.status is each
        asked = {
            "kind": saga,
            "status": each.value,
            "changed": after.changed if after and here else (_LATEST if newest else -1.0),
            "key": after.key if after and here else "",
            "limit": limit + 1 - len(found),
        }
        statement = tables.SAGAS_BEFORE if newest else tables.SAGAS_AFTER
        found += [_instance(service, row) for row in await store.fetch(statement, asked)]
        if len(found) > limit:
            last = found[limit - 1]
            place = Place(status=Status(last.status), changed=last.changed, key=last.key)
            return found[:limit], place
    return found, None


async def read_instance(
    service: str, store: Store, saga: str, key: str, *, before: int = LATEST, limit: int = 200
) -> WholeInstance | None:
    """Return an instance from an open store, with the last transitions before a number.

    None where there is no such instance. Raises StoreError, and StateMismatch for one that can't be
    read.
    """
    rows = await store.fetch(tables.SAGAS_OF_KEY, {"key": key})
    place = {"kind": saga, "key": key}
    for row in rows:
        if row["kind"] == saga:
            asked = {**place, "before": before, "limit": limit}
            log = await store.fetch(tables.SAGA_LOG_BEFORE, asked)
            timers = await store.fetch(tables.TIMERS_OF, place)
            return _whole(service, row, log[::-1], timers)
    return None


async def find_instance(
    project: Project, key: str, *, service: str = "", saga: str = ""
) -> WholeInstance:
    """Return the instance of a key, in any service unless one is named.

    Raises OyezError when there is none, or more than one.
    """
    names = [project.settings(service).name] if service else list(project.config.services)
    found: list[WholeInstance] = []
    for name in names:
        try:
            async with project.opened_store(name) as store:
                for row in await store.fetch(tables.SAGAS_OF_KEY, {"key": key}):
                    if saga and row["kind"] != saga:
                        continue
                    place = {"kind": row["kind"], "key": key}
                    log = await store.fetch(tables.SAGA_LOG, place)
                    timers = await store.fetch(tables.TIMERS_OF, place)
                    found.append(_whole(name, row, log, timers))
        except NotCreated:
            continue
    if not found:
        of = f" of {saga}" if saga else ""
        raise OyezError(f"no saga{of} has the key {key}: `oyez saga list` shows what there is")
    if len(found) > 1:
        places = ", ".join(f"{each.instance.service} {each.instance.saga}" for each in found)
        raise OyezError(
            f"{len(found)} sagas have the key {key} ({places}): name one with --service or --saga"
        )
    return found[0]


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """One event of an instance's history, with what it led to."""

    at: float
    """The time at which it was handled, in seconds since 1970."""
    event_id: str
    type: str
    data: msgspec.Raw
    effects: list[str]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """All events of an instance, for `oyez.testing.sagas.assert_replays`."""

    service: str
    saga: str
    key: str
    events: list[Happened]


async def export(project: Project, whole: WholeInstance) -> History:
    """Return the history of an instance, with the data that its broker still has.

    Raises OyezError when some of it is gone, or the work of a person.
    """
    of = whole.instance
    by_hand = [each for each in whole.log if not each.event_id]
    if by_hand:
        raise OyezError(
            f"{of.saga} {of.key}: transition {by_hand[0].number} was made by hand "
            f"({by_hand[0].type}), so its history can't be replayed"
        )
    data = {each.event_id: _timer(of, each) for each in whole.log if each.type == _TIMER.name}
    wanted = {each.event_id for each in whole.log} - data.keys()

    def look(record: Record) -> None:
        if record.headers.get("id", "") in wanted:
            envelope = open_record(record.headers, record.data)
            data[envelope.id] = envelope.data

    async with project.opened(project.site(project.broker_url(of.service))) as broker:
        if not broker.capabilities.history:
            raise OyezError("this broker keeps no history, so an instance's can't be exported")
        places = await history.ends(broker, await history.streams(broker))
        await history.scan(broker, places, look)
    missing = sum(each.event_id not in data for each in whole.log)
    if missing:
        raise OyezError(
            f"{of.saga} {of.key}: the broker no longer has {missing} of its {len(whole.log)} events"
        )
    return History(
        service=of.service,
        saga=of.saga,
        key=of.key,
        events=[
            Happened(
                at=each.at,
                event_id=each.event_id,
                type=each.type,
                data=msgspec.Raw(data[each.event_id]),
                effects=each.effects,
            )
            for each in whole.log
        ],
    )


def _timer(of: Instance, entry: Logged) -> bytes:
    """Return the data of a timer's event, which was never on the broker, from its id."""
    name, _, time = entry.event_id.removeprefix(f"{of.saga}/{of.key}/").rpartition("@")
    due = parse_time(time.partition("#")[0]).timestamp()
    return encode(_TIMER, Timer(kind=of.saga, key=of.key, name=name, due=due))


def as_value(instance: Instance) -> dict[str, Any]:
    """Return an instance as a value for JSON."""
    return {
        **msgspec.structs.asdict(instance),
        "started": utc_time(instance.started),
        "ended": utc_time(instance.ended),
        "changed": utc_time(instance.changed),
    }


def whole_as_value(whole: WholeInstance) -> dict[str, Any]:
    """Return a whole instance as a value for JSON."""
    progress = whole.progress
    return {
        **as_value(whole.instance),
        "end": progress.end,
        "stuck": progress.stuck,
        "failure": None if progress.failure is None else msgspec.to_builtins(progress.failure),
        "steps": [
            {
                "name": name,
                "stage": asked.stage.value,
                "asked": utc_time(asked.at),
                "tries": asked.tries,
                "command": asked.command,
            }
            for name, asked in progress.steps.items()
        ],
        "early": [each.headers for each in progress.early],
        "timers": [{"name": name, "due": utc_time(due)} for name, due in whole.timers],
        "log": [{**msgspec.structs.asdict(each), "at": utc_time(each.at)} for each in whole.log],
    }


STATUSES = tuple(each.value for each in Status if each.value)
"""Every status that an instance in a store may have."""


def _instance(service: str, row: Row) -> Instance:
    names = [name for name in Instance.__struct_fields__ if name not in ("service", "saga")]
    return Instance(service=service, saga=row["kind"], **{name: row[name] for name in names})


def _whole(service: str, row: Row, log: list[Row], timers: list[Row]) -> WholeInstance:
    return WholeInstance(
        instance=_instance(service, row),
        progress=read_progress(row["data"]),
        log=tuple(
            Logged(
                number=each["number"],
                at=each["at"],
                event_id=each["event_id"],
                type=each["type"],
                step=each["step"],
                effects=msgspec.json.decode(each["outputs"], type=list[str]),
            )
            for each in log
        ),
        timers=tuple((each["name"], each["due"]) for each in timers),
        fields=_fields(row["data"]),
    )


class InstanceSeen(msgspec.Struct, frozen=True, kw_only=True):
    """An instance, and why it is stuck."""

    instance: Instance
    stuck: str
    """Empty unless it is."""
    stuck_on: str
    """The step that it is stuck on."""


def saga_kinds(service: Service) -> list[str]:
    """Return the kinds of the sagas of a service."""
    return [name for name, kind in service.kinds.items() if isinstance(kind, SagaType)]


async def sagas_of(
    service: str, store: Store, kinds: Iterable[str], keys: Iterable[str]
) -> list[InstanceSeen]:
    """Return the instances of these sagas and keys in an open store. Raises StoreError."""
    named: Parameters = {f"key{number}": key for number, key in enumerate(keys)}
    if not named:
        return []
    sql = tables.SAGAS_OF_KEYS.replace("{keys}", ", ".join(f":{name}" for name in named))
    found = []
    for kind in kinds:
        for row in await store.fetch(sql, {"kind": kind, **named}):
            progress = read_progress(row["data"])
            found.append(
                InstanceSeen(
                    instance=_instance(service, row),
                    stuck=progress.stuck,
                    stuck_on=progress.stuck_on,
                )
            )
    return found


def _fields(data: bytes) -> bytes | None:
    try:
        return msgspec.json.encode(read_fields(data))
    except (StateMismatch, msgspec.MsgspecError, TypeError, ValueError):
        return None
