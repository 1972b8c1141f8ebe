"""The views of a service's process: their tables, their lanes, and which version is active.

The version in the code is filled beside the active one. When it has read as far, in every
partition, and nothing of it is parked or dead, one transaction makes the SQL view show it.

A broker that keeps no history can't fill a version. There the service's own lanes apply a view's
events, from the service's first event on, and the first version is the only one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerRefused, StoreRefused
from oyez.handler import Handler
from oyez.ports import (
    BEGINNING,
    Broker,
    Changes,
    Parameters,
    Position,
    Row,
    Store,
    Writes,
)
from oyez.runtime.audit import Actor, audited
from oyez.runtime.calls import Calls
from oyez.runtime.claims import Place
from oyez.runtime.commits import Commits
from oyez.runtime.handlers import Handlers
from oyez.runtime.lane import Lane
from oyez.runtime.loop import Loop
from oyez.runtime.rebuild import Pace, Rebuild
from oyez.runtime.reports import Reports
from oyez.runtime.staleness import Staleness
from oyez.signals import ViewMeasured
from oyez.view import ViewType

ROUND = 1.0
"""Seconds between two looks at the versions."""
MEASURE = 5.0
"""Seconds between two measurements of how far the views are behind."""
SWEEP = 60.0
"""Seconds between two looks for versions to be dropped."""
KEPT = 86_400.0
"""Seconds for which a version is kept after another one has taken its place."""
_DROPPING = "dropping"
_AT_ONCE = 10_000


class Versions(msgspec.Struct, frozen=True):
    """The versions of one view in a store."""

    active: int
    """The version that the SQL view shows; 0 for none."""
    since: float
    """When it became active."""
    left: int
    """The version that an operator went back from, which stays inactive; 0 for none."""
    tables: tuple[int, ...]
    """The versions that have a table, in order."""


def versions_in(rows: Sequence[Row]) -> dict[str, Versions]:
    """Return the versions of each view from the rows of `oyez.tables.VIEW_MARKS`."""
    active: dict[str, Row] = {}
    left: dict[str, int] = {}
    kept: dict[str, set[int]] = {}
    for row in rows:
        name = row["name"].removeprefix("oyez:view:")
        view, at, version = name.partition("@")
        if not at:
            active[view] = row
        elif version == "left":
            left[view] = int(row["digest"])
        else:
            kept.setdefault(view, set()).add(int(version.partition(" ")[0]))
    return {
        view: Versions(
            int(active[view]["digest"]) if view in active else 0,
            active[view]["applied"] if view in active else 0.0,
            left.get(view, 0),
            tuple(sorted(kept.get(view, ()))),
        )
        for view in {*active, *kept}
    }


class Begun(msgspec.Struct, frozen=True):
    """A version that began behind what retention has deleted; see `oyez.inspection.beginning`."""

    until: dict[str, list[Position]]
    """The positions by stream that it must reach before it is whole."""


def begun_mark(reader: str) -> str:
    """Return the name of the row in ``oyez_migration`` with the `Begun` of a version."""
    return f"oyez:{reader} (begun after a backfill)"


async def lacks(
    fetch: Callable[[str, Parameters], Awaitable[list[Row]]], view: str, version: int, active: int
) -> dict[str, int]:
    """Return what a version lacks to take the place of the active one; empty if it is whole.

    They are numbers of partitions ``behind``, of ``parked`` events and of ``dead`` letters.
    """
    reader = f"view:{view}@{version}"
    asked = {"reader": reader, "active": f"view:{view}@{active}"}
    (row,) = await fetch(tables.FILLED, asked)
    for mark in await fetch(tables.ACTIVE, {"name": begun_mark(reader)}):
        until = msgspec.json.decode(mark["version"], type=Begun).until
        at = {
            (each["stream"], each["partition"]): each["position"]
            for each in await fetch(tables.CURSORS, {"reader": reader})
        }
        row["behind"] += sum(
            at.get((stream, partition), BEGINNING) < end
            for stream, ends in until.items()
            for partition, end in enumerate(ends)
        )
    return {what: count for what, count in row.items() if count}


async def prepare(store: Store, kinds: Sequence[ViewType], ambient: Ambient) -> None:
    """Create the tables of the versions in the code, and the SQL views that do not exist yet.

    Raises StoreRefused for a version whose columns or indexes were changed.
    """
    for kind in await lacking(store, kinds):
        await store.migrate(kind.migrations())
        await _show_first(store, kind, ambient.now())


async def lacking(store: Store, kinds: Sequence[ViewType]) -> list[ViewType]:
    """Return the versions in the code that lack a table, an index or a SQL view.

    Raises StoreRefused for a version whose columns or indexes were changed.
    """
    if not kinds:
        return []
    known = {row["name"]: row["digest"] for row in await store.fetch(tables.VIEW_MARKS, {})}
    found = []
    for kind in kinds:
        scripts = kind.migrations()
        if known.get(f"oyez:{kind.name}") == _DROPPING:
            raise StoreRefused(
                f"view {kind.view}: version {kind.version} is being dropped: start again soon"
            )
        for name, sql in scripts:
            if known.get(name, "") not in ("", sha256(sql.encode()).hexdigest()):
                raise StoreRefused(
                    f"view {kind.view}: version {kind.version} has a table of other columns: set "
                    f"version={kind.version + 1}, so that it is filled again beside this one"
                )
        needed = {f"oyez:view:{kind.view}", *(name for name, _ in scripts)}
        if not needed <= known.keys():
            found.append(kind)
    return found


async def _show_first(store: Store, kind: ViewType, now: float) -> None:
    begun = store.begin()
    try:
        added = await begun.fetch(tables.MARK_FIRST, _mark(kind.view, kind.version, now), [])
        if added:
            await begun.commit(Changes(writes=showing(kind.view, kind.version), time=now))
    finally:
        await begun.rollback()


def showing(view: str, version: int) -> Writes:
    """Return the statements that make the SQL view show that version."""
    return [
        (f"drop view if exists {view}", [{}]),
        (f"create view {view} as select * from {view}__{version}", [{}]),
    ]


def _mark(view: str, version: int, now: float) -> Parameters:
    return {"name": f"oyez:view:{view}", "mark": str(version), "now": now}


class Views:
    """The views of this process."""

    def __init__(
        self,
        views: Mapping[ViewType, Handler],
        owner: str,
        *,
        system: str,
        calls: Callable[[Handlers], Calls],
        broker: Broker,
        commits: Commits,
        ambient: Ambient,
        reports: Reports,
        grace: float,
        lanes: Mapping[Place, Lane],
        alone: bool,
    ) -> None:
        """``lanes`` are those of the process's handlers; ``alone`` if it has none."""
        self.versions: dict[str, Versions] = {}
        """The versions of each view, as the last look found them."""
        history = broker.capabilities.history
        self.live: dict[ViewType, Handler] = {} if history else dict(views)
        """The views whose events the process's own lanes apply; all, or none."""
        self._broker = broker
        self._store = commits.store
        self._ambient = ambient
        pace = Pace(ambient, lanes, alone=alone)
        self._rebuilds = [
            Rebuild(
                kind,
                handler,
                owner,
                system=system,
                calls=calls,
                broker=broker,
                commits=commits,
                ambient=ambient,
                reports=reports,
                grace=grace,
                pace=pace,
            )
            for kind, handler in views.items()
            if history
        ]
        self._reports = reports
        self._measured = self._swept = ambient.monotonic()
        self._loop = Loop("views", self._step, ambient, reports.trouble)

    @property
    def rebuilds(self) -> Sequence[Rebuild]:
        """The views, each with its lanes."""
        return self._rebuilds

    async def prepare(self) -> None:
        """Look at the versions, before anything is read or answered."""
        if self._rebuilds or self.live:
            await self._look()

    def check(self) -> None:
        """Raise BrokerRefused for a version that a broker without history can't fill."""
        for kind in self.live:
            if (active := self.versions[kind.view].active) != kind.version:
                raise BrokerRefused(
                    f"view {kind.view}: version {active} is active, and version {kind.version} "
                    "can't take its place, since this broker keeps no history to fill it from: "
                    f"keep version={active}, or give it the name of another table, which begins "
                    "empty, and let the owner of its facts offer a backfill"
                )

    def start(self) -> None:
        """Start to read and to look at the versions."""
        for each in self._rebuilds:
            each.start()
        if self._rebuilds:
            self._loop.start()

    def ring(self) -> None:
        """Look for parked events soon: another replica has committed."""
        for each in self._rebuilds:
            each.work.ring()

    async def stop(self) -> None:
        """Finish and save every lane."""
        await self._loop.cancel()
        for each in self._rebuilds:
            await each.stop()

    async def end_parked(self, grace: float) -> None:
        """Start no more parked events; cancel the running ones after ``grace`` seconds."""
        for each in self._rebuilds:
            await each.parked.stop(grace)

    def kill(self) -> None:
        """End everything at once but the parked events that run."""
        self._loop.kill()
        for each in self._rebuilds:
            each.kill()

    def problems(self) -> list[str]:
        """Return why a view can't be filled; empty when all can."""
        return [
            f"view {each.kind.view} version {each.kind.version} can't be filled: retention has "
            f"deleted the first {missed} records of {stream}[{partition}]: see `oyez view begin "
            f"{self._reports.service} {each.kind.view}`"
            for each in self._rebuilds
            for (stream, partition), missed in sorted(each.missing.items())
            if (lane := each.lanes.get((stream, partition))) and lane.position == BEGINNING
        ]

    async def staleness(self, kind: ViewType, version: int) -> float:
        """Return how many seconds a version of a view is behind, whoever reads for it.

        Raises BrokerError, StoreError, and BrokerRefused where no history tells it.
        """
        if kind in self.live:
            raise BrokerRefused(
                f"how far view {kind.view} is behind is told by the history, and this broker keeps "
                "none: see `oyez lag`"
            )
        (rebuild,) = (each for each in self._rebuilds if each.kind is kind)
        measure = Staleness(
            kind.of(version),
            rebuild.handlers,
            broker=self._broker,
            store=self._store,
            ambient=self._ambient,
        )
        lanes = list(rebuild.lanes.items()) if version == kind.version else []
        return await measure.seconds({place: lane.position for place, lane in lanes})

    async def _step(self) -> float:
        await self._look()
        for each in self._rebuilds:
            await self._swap(each.kind)
        now = self._ambient.monotonic()
        if now - self._measured >= MEASURE:
            self._measured = now
            await self._measure()
        if now - self._swept >= SWEEP:
            self._swept = now
            for each in self._rebuilds:
                await drop_old(self._store, each.kind.view, self._ambient)
        return self._ambient.poll(ROUND)

    async def _measure(self) -> None:
        for each in self._rebuilds:
            self._reports.emit(
                ViewMeasured(
                    service=self._reports.service,
                    view=each.kind.view,
                    version=each.kind.version,
                    seconds=await each.staleness(),
                )
            )

    async def _look(self) -> None:
        self.versions = versions_in(await self._store.fetch(tables.VIEW_MARKS, {}))

    async def _swap(self, kind: ViewType) -> None:
        """Make the version in the code the active one, if it is newer and has caught up."""
        found = self.versions[kind.view]
        if not found.active < kind.version or kind.version == found.left:
            return
        if not await lacks(self._store.fetch, kind.view, kind.version, found.active):
            await show(self._store, kind, self._ambient.now())
            await self._look()


async def show(store: Store, kind: ViewType, now: float, *, by: Actor | None = None) -> bool:
    """Make the version in the code the active one; False, with nothing done, if it is not whole.

    ``by`` is who asked for it, if not the service itself.
    """
    begun = store.begin()

    async def fetch(sql: str, parameters: Parameters) -> list[Row]:
        return await begun.fetch(sql, parameters, [])

    try:
        active = versions_in(await fetch(tables.VIEW_MARKS, {}))[kind.view].active
        if active > kind.version or await lacks(fetch, kind.view, kind.version, active):
            return False
        if active < kind.version:
            writes = _switch(kind.view, kind.version, now)
            if by is not None:
                writes.append(_audited(by, "view.swap", kind.view, now, active, kind.version))
            await begun.commit(Changes(writes=writes, time=now))
    finally:
        await begun.rollback()
    return True


def _switch(view: str, version: int, now: float) -> Writes:
    """Return the statements that make a version the active one."""
    return [*showing(view, version), (tables.CHANGE_MARK, [_mark(view, version, now)])]


def _audited(
    by: Actor, act: str, view: str, now: float, before: int, after: int
) -> tuple[str, list[Parameters]]:
    return audited(by, act, f"view {view}", now, {"version": before}, {"version": after})


async def go_back(store: Store, view: str, now: float, *, by: Actor) -> int:
    """Make the version before the active one the active one again; return it.

    The one that it was stays inactive. Raises StoreRefused where there is no older one.
    """
    begun = store.begin()
    try:
        rows = await begun.fetch(tables.VIEW_MARKS, {}, [])
        whole = [row for row in rows if row["digest"] != _DROPPING]
        found = versions_in(whole).get(view)
        older = [] if found is None else [each for each in found.tables if each < found.active]
        if found is None or not older:
            raise StoreRefused(
                f"view {view} has no older version to go back to: each is kept for "
                f"{KEPT / 3600:.0f} hours after it was replaced"
            )
        left: Parameters = {"name": f"oyez:view:{view}@left", "mark": str(found.active), "now": now}
        writes = [
            *_switch(view, older[-1], now),
            (tables.SET_MARK, [left]),
            _audited(by, "view.back", view, now, found.active, older[-1]),
        ]
        await begun.commit(Changes(writes=writes, time=now))
    finally:
        await begun.rollback()
    return older[-1]


async def drop_old(store: Store, view: str, ambient: Ambient) -> list[int]:
    """Drop the versions that were replaced `KEPT` seconds ago and are read by no replica.

    Returns those.
    """
    now = ambient.now()
    found = versions_in(await store.fetch(tables.VIEW_MARKS, {}))[view]
    if now - found.since < KEPT:
        return []
    dropped = []
    for version in found.tables:
        reader = f"view:{view}@{version}"
        if version >= found.active:
            continue
        (row,) = await store.fetch(tables.LIVE_READERS, {"reader": reader, "now": now})
        if not row["living"]:
            await _drop(store, f"{view}__{version}", reader, ambient)
            dropped.append(version)
    return dropped


async def _drop(store: Store, table: str, reader: str, ambient: Ambient) -> None:
    """Drop a version's table and all that is kept of it, a part at a time.

    Until the last part nobody can begin it anew: half of its inbox would be half of its rows.
    """
    now = ambient.now()
    mark = {"name": f"oyez:{reader}", "mark": _DROPPING, "now": now}
    await store.begin().commit(Changes(writes=[(tables.CHANGE_MARK, [mark])], time=now))
    while await _fetch(store, tables.DELETE_STATE, {"kind": reader}):
        await ambient.sleep(0)  # other transactions may write between two parts
    (row,) = await store.fetch(tables.LAST_READ, {})
    for after in range(0, row["last"], _AT_ONCE):
        part = {"reader": reader, "after": after, "last": after + _AT_ONCE}
        await store.begin().commit(Changes(writes=[(tables.DELETE_READ, [part])], time=now))
        await ambient.sleep(0)
    last: Writes = [
        (f"drop table if exists {table}", [{}]),
        (tables.DELETE_CURSORS, [{"reader": reader}]),
        (tables.DELETE_MARKS, [{"name": f"oyez:{reader}"}]),
    ]
    await store.begin().commit(Changes(writes=last, time=now))


async def _fetch(store: Store, sql: str, parameters: Parameters) -> list[Row]:
    begun = store.begin()
    try:
        rows = await begun.fetch(sql, parameters, [])
        await begun.commit(Changes())
    finally:
        await begun.rollback()
    return rows
