"""The views of a system's services: their versions, and how far each is behind."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, Literal

import msgspec

from oyez import tables
from oyez.errors import BrokerError, NotCreated, OyezError
from oyez.inspection.form import utc_time
from oyez.inspection.reach import Gap
from oyez.ports import BEGINNING, Broker, Position, Store
from oyez.project import Project
from oyez.runtime.views import Versions, versions_in

State = Literal["active", "filling", "old", "left"]


class ViewVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a view."""

    service: str
    view: str
    version: int
    state: State
    """``active``: the SQL view shows it. ``filling``: it will be shown when it has caught up.
    ``old``: it was shown before. ``left``: an operator went back from it."""
    since: float | None
    """Since when the active version is shown, in seconds since 1970; None for others."""
    read: bool
    """Whether a living process reads its events; otherwise it stands still."""
    behind: int | None
    """The number of records that it has not read; None where the broker did not say."""
    parked: int
    dead: int
    """The number of its dead letters; they stop a version from being shown."""
    missing: int
    """The number of first records that retention has deleted: it can't be filled."""


class SystemViews(msgspec.Struct, frozen=True, kw_only=True):
    """The views of several services."""

    versions: tuple[ViewVersion, ...]
    gaps: tuple[Gap, ...]
    """Brokers and stores that could not be read."""


async def list_views(project: Project, services: Iterable[str]) -> SystemViews:
    """Return every version of each view. A service that never ran has none."""
    found: list[ViewVersion] = []
    gaps: list[Gap] = []
    for name in services:
        async with AsyncExitStack() as stack:
            try:
                store = await stack.enter_async_context(project.opened_store(name))
                views = await store.fetch(tables.VIEW_MARKS, {})
            except NotCreated:
                continue
            except OyezError as error:
                gaps.append(Gap.of("store", name, error, name))
                continue
            broker: Broker | None = None
            if views:
                try:
                    broker = await stack.enter_async_context(project.opened_broker(name))
                except OyezError as error:
                    gaps.append(Gap.of("broker", name, error, f"what {name} has not read"))
            found += await read_views(name, store, broker, project.ambient.now())
    return SystemViews(versions=tuple(found), gaps=tuple(gaps))


async def read_views(
    service: str, store: Store, broker: Broker | None, now: float
) -> list[ViewVersion]:
    """Return every version of a service's views, on a store and a broker that are open.

    Raises StoreError. What a broker does not say is unknown.
    """
    views = versions_in(await store.fetch(tables.VIEW_MARKS, {}))
    return [
        await _measure(now, service, view, version, versions, store, broker)
        for view, versions in sorted(views.items())
        for version in versions.tables
    ]


async def _measure(
    now: float,
    service: str,
    view: str,
    version: int,
    versions: Versions,
    store: Store,
    broker: Broker | None,
) -> ViewVersion:
    reader = f"view:{view}@{version}"
    positions: dict[str, dict[int, Position]] = {}
    for row in await store.fetch(tables.CURSORS, {"reader": reader}):
        positions.setdefault(row["stream"], {})[row["partition"]] = row["position"]
    # Without history, the service itself reads for the view.
    live = broker is not None and not broker.capabilities.history
    asked = {"reader": "" if live else reader, "now": now}
    (living,) = await store.fetch(tables.LIVE_READERS, asked)
    (lacks,) = await store.fetch(tables.FILLED, {"reader": reader, "active": reader})
    behind, missing = await _behind(None if live else broker, positions)
    active = version == versions.active
    return ViewVersion(
        service=service,
        view=view,
        version=version,
        state=_state(version, versions),
        since=versions.since if active else None,
        read=bool(living["living"]),
        behind=behind,
        parked=lacks["parked"],
        dead=lacks["dead"],
        missing=missing,
    )


def _state(version: int, versions: Versions) -> State:
    if version == versions.active:
        return "active"
    if version < versions.active:
        return "old"
    return "left" if version == versions.left else "filling"


async def _behind(
    broker: Broker | None, positions: dict[str, dict[int, Position]]
) -> tuple[int | None, int]:
    """Return the number of records not read, and of those that are gone."""
    if broker is None:
        return None, 0
    behind = missing = 0
    try:
        for stream, asked in sorted(positions.items()):
            behind += sum((await broker.lag(stream, asked)).values())
            starts = await broker.starts(stream)
            missing += sum(
                starts[partition]
                for partition, position in asked.items()
                if position == BEGINNING and partition < len(starts)
            )
    except BrokerError:
        return None, missing
    return behind, missing


def as_value(views: SystemViews) -> dict[str, Any]:
    """Return the views as a value for JSON."""
    return {
        "views": [
            {**msgspec.structs.asdict(each), "since": utc_time(each.since)}
            for each in views.versions
        ]
    }
