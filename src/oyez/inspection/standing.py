"""Where the instances of a service's sagas stand: how many, at which step, and which are stuck.

The work is bounded, however many instances there are: of each status, `MOST` are counted and
`SAMPLE` are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from oyez import tables
from oyez.errors import StateMismatch
from oyez.inspection.plan import Plan, plan_of
from oyez.ports import Row, Store
from oyez.saga import Progress, SagaType, Status, read_progress
from oyez.service import Service

MOST = 5_000
"""The most instances of a status that are counted: a count of so many means so many or more."""
SAMPLE = 200
"""The instances that are read for what their columns do not tell."""
LARGEST = 65_536
"""The limit of bytes of an instance that is read for that."""


class Stuck(msgspec.Struct, frozen=True, kw_only=True):
    """The instances that are stuck on one step."""

    step: str
    undoing: bool
    """Whether they were being undone."""
    instances: int
    key: str
    """That of the one that has been stuck for longest, as are the next two."""
    since: float
    reason: str


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where the instances of one saga stand."""

    service: str
    saga: str
    plan: Plan | None
    """None for a saga that the running version does not declare."""
    counts: dict[str, int]
    """By status; each is at most `MOST`."""
    asked: dict[str, int]
    """How many wait for the answer of a step, by step."""
    undoing: dict[str, int]
    """How many wait for the answer of what undoes a step, by step."""
    stuck: tuple[Stuck, ...]
    """As far as the first `SAMPLE` tell; the one that lasts longest first."""
    ends: dict[str, int]
    """At which end the last `SAMPLE` that ended have arrived."""


async def standing(
    name: str, service: Service, store: Store, sagas: Iterable[str] = ()
) -> list[Standing]:
    """Return where the instances of these sagas stand, by default of all: declared or stored.

    ``name`` is the service's. Raises StoreError.
    """
    kinds = service.kinds.values()
    plans = {kind.name: plan_of(kind) for kind in kinds if isinstance(kind, SagaType)}
    stored = [row["kind"] for row in await store.fetch(tables.SAGA_KINDS, {})]
    known = list(dict.fromkeys([*plans, *stored]))
    wanted = set(sagas) or set(known)
    return [await _standing(name, saga, plans.get(saga), store) for saga in known if saga in wanted]


async def _standing(name: str, saga: str, plan: Plan | None, store: Store) -> Standing:
    counts: dict[str, int] = {}
    waiting: dict[str, Counter[str]] = {}
    for status in (Status.STUCK, Status.UNDOING, Status.RUNNING, Status.WAITING):
        place = {"kind": saga, "status": status.value, "limit": MOST}
        rows = await store.fetch(tables.COUNT_SAGAS, place)
        counts[status.value] = sum(row["sagas"] for row in rows)
        steps = waiting[status.value] = Counter()
        for row in rows:
            for step in filter(None, row["step"].split(", ")):
                steps[step] += row["sagas"]
    (row,) = await store.fetch(tables.COUNT_ENDED, {"kind": saga, "limit": MOST})
    counts[Status.ENDED.value] = row["sagas"]
    ended = await _read(store, tables.NEWEST_WITH_DATA, saga, Status.ENDED) if row["sagas"] else []
    return Standing(
        service=name,
        saga=saga,
        plan=plan,
        counts=counts,
        asked=dict(waiting[Status.RUNNING.value]),
        undoing=dict(waiting[Status.UNDOING.value]),
        stuck=await _stuck(store, saga) if counts[Status.STUCK.value] else (),
        ends=dict(Counter(progress.end for _, progress in ended if progress.end)),
    )


async def _stuck(store: Store, saga: str) -> tuple[Stuck, ...]:
    groups: dict[tuple[str, bool], list[tuple[Row, Progress]]] = {}
    for row, progress in await _read(store, tables.LONGEST_WITH_DATA, saga, Status.STUCK):
        place = (progress.stuck_on, progress.phase is Status.UNDOING)
        groups.setdefault(place, []).append((row, progress))
    return tuple(
        Stuck(
            step=step,
            undoing=undoing,
            instances=len(group),
            key=group[0][0]["key"],
            since=group[0][0]["changed"],
            reason=group[0][1].stuck,
        )
        for (step, undoing), group in groups.items()
    )


async def _read(
    store: Store, statement: str, saga: str, status: Status
) -> list[tuple[Row, Progress]]:
    asked = {"kind": saga, "status": status.value, "bytes": LARGEST, "limit": SAMPLE}
    found = []
    for row in await store.fetch(statement, asked):
        try:
            found.append((row, read_progress(row["data"])))
        except StateMismatch:
            continue  # its own page says so
    return found
