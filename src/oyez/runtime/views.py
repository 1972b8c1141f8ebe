"""The views of a service's process: their tables, their lanes, and which version is active.

The version in the code is filled beside the active one. When it has read as far, in every
partition, and nothing of it is parked or dead, one transaction makes the SQL view show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import BrokerRefused, StoreRefused
from oyez.handler import Handler
from oyez.ports import Broker, Changes, Parameters, Row, Store, StoreTransaction, Writes
from oyez.runtime.calls import Calls
from oyez.runtime.commits import Commits
from oyez.runtime.handlers import Handlers
from oyez.runtime.loop import Loop
from oyez.runtime.rebuild import Rebuild
from oyez.runtime.reports import Reports
from oyez.view import ViewType

ROUND = 1.0
"""Seconds between two looks at the versions."""


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


async def prepare(store: Store, kinds: Sequence[ViewType], ambient: Ambient) -> None:
    """Create the tables of the versions in the code, and the SQL views that do not exist yet.

    Raises StoreRefused for a version whose columns or indexes were changed.
    """
    if not kinds:
        return
    known = {row["name"]: row["digest"] for row in await store.fetch(tables.VIEW_MARKS, {})}
    for kind in kinds:
        scripts = kind.migrations()
        for name, sql in scripts:
            if known.get(name, "") not in ("", sha256(sql.encode()).hexdigest()):
                raise StoreRefused(
                    f"view {kind.view}: version {kind.version} has a table of other columns: set "
                    f"version={kind.version + 1}, so that it is filled again beside this one"
                )
        await store.migrate(scripts)
        if f"oyez:view:{kind.view}" not in known:
            await _show_first(store, kind, ambient.now())


async def _show_first(store: Store, kind: ViewType, now: float) -> None:
    begun = store.begin()
    try:
        added = await begun.fetch(tables.MARK_FIRST, _mark(kind.view, kind.version, now), [])
        if added:
            await begun.commit(Changes(writes=showing(kind), time=now))
    finally:
        await begun.rollback()


def showing(kind: ViewType) -> Writes:
    """Return the statements that make the SQL view show the version of ``kind``."""
    return [(sql, [{}]) for sql in kind.show()]


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
    ) -> None:
        self.versions: dict[str, Versions] = {}
        """The versions of each view, as the last look found them."""
        self._broker = broker
        self._store = commits.store
        self._ambient = ambient
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
            )
            for kind, handler in views.items()
        ]
        self._loop = Loop("views", self._step, ambient, reports.trouble)

    @property
    def rebuilds(self) -> Sequence[Rebuild]:
        """The views, each with its lanes."""
        return self._rebuilds

    async def prepare(self) -> None:
        """Create tables and SQL views, before anything is read or answered.

        Raises StoreRefused, and BrokerRefused for a broker that keeps no history.
        """
        kinds = [each.kind for each in self._rebuilds]
        await prepare(self._store, kinds, self._ambient)
        if kinds:
            await self._look()

    def check(self) -> None:
        """Raise BrokerRefused for a broker that keeps no history, which a view is made of."""
        if self._rebuilds and not self._broker.capabilities.history:
            names = ", ".join(each.kind.view for each in self._rebuilds)
            raise BrokerRefused(
                f"views are made of the history, and this broker keeps none: move {names} to a "
                "service on one that does, or use a State"
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
        self._loop.kill()
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
            f"deleted the first {missed} records of {stream}[{partition}]"
            for each in self._rebuilds
            for (stream, partition), missed in sorted(each.missing.items())
        ]

    async def _step(self) -> float:
        await self._look()
        for each in self._rebuilds:
            await self._swap(each.kind)
        return ROUND

    async def _look(self) -> None:
        self.versions = versions_in(await self._store.fetch(tables.VIEW_MARKS, {}))

    async def _swap(self, kind: ViewType) -> None:
        """Make the version in the code the active one, if it is newer and has caught up."""
        found = self.versions[kind.view]
        if not found.active < kind.version or kind.version == found.left:
            return
        asked = {"reader": kind.name, "active": f"view:{kind.view}@{found.active}"}
        (row,) = await self._store.fetch(tables.FILLED, asked)
        if any(row.values()):
            return
        begun = self._store.begin()
        try:
            if await _still(begun, kind.view, found.active, asked):
                await begun.commit(Changes(writes=switch(kind, self._ambient.now())))
        finally:
            await begun.rollback()
        await self._look()


async def _still(begun: StoreTransaction, view: str, active: int, asked: Parameters) -> bool:
    """Return whether the version to be replaced is still the active one, and has no lead."""
    found = versions_in(await begun.fetch(tables.VIEW_MARKS, {}, []))[view]
    (row,) = await begun.fetch(tables.FILLED, asked, [])
    return found.active == active and not any(row.values())


def switch(kind: ViewType, now: float) -> Writes:
    """Return the statements that make the version of ``kind`` the active one."""
    return [*showing(kind), (tables.CHANGE_MARK, [_mark(kind.view, kind.version, now)])]
