"""The dead letters of a system's services, running or not."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable
from typing import Any

import msgspec

from oyez import tables
from oyez.inspection.form import payload_json, utc_time
from oyez.inspection.reach import Gap, ask_stores
from oyez.ports import Position, Row, Store
from oyez.project import Project
from oyez.runtime.dead import ALL, Group, Wanted, list_dead, list_groups, show_dead

SEARCHED = 25_000
"""The newest dead letters of a store, which are searched."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter, without its payload."""

    service: str
    id: int
    """Its number in the service's store."""
    time: float
    """The time at which its handler gave up, in seconds since 1970."""
    type: str
    """Empty if the event could not be decoded."""
    key: str | None
    handler: str
    """Empty if the event could not be decoded."""
    event_id: str
    stream: str
    partition: int
    position: Position
    attempts: int
    reason: str
    state: str
    """``dead``, ``redriven`` or ``discarded``."""
    note: str
    """The reason of its redrive or discard; else empty."""


class WholeLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter with its payload, headers, history and traceback."""

    letter: Letter
    source: str
    traceback: str
    history: tuple[dict[str, Any], ...]
    """The outcome of each attempt: ``attempt``, ``at`` (seconds since 1970) and ``error``."""
    headers: dict[str, str]
    data: bytes | None


class Letters(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of several services."""

    letters: tuple[Letter, ...]
    """By service, the oldest first."""
    more: bool
    """Whether some were left out."""
    gaps: tuple[Gap, ...]
    """Stores that could not be read."""


async def list_letters(
    project: Project,
    services: Iterable[str],
    *,
    every: bool = False,
    limit: int = 100,
    wanted: Wanted = ALL,
) -> Letters:
    """Return the oldest dead letters of each service, at most ``limit`` of each.

    ``every`` includes redriven and discarded ones. A service that never ran has none.
    """
    letters: list[Letter] = []
    gaps: list[Gap] = []
    more = False

    def ask(store: Store) -> Awaitable[list[Row]]:
        return list_dead(store, every=every, limit=limit + 1, wanted=wanted)

    answers = await ask_stores(project, services, ask, gaps)
    for name, rows in answers:
        more = more or len(rows) > limit
        letters += [_letter(name, row) for row in rows[:limit]]
    return Letters(letters=tuple(letters), more=more, gaps=tuple(gaps))


class Groups(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of dead letters of several services."""

    groups: tuple[tuple[str, Group], ...]
    """Each with its service, by service, the largest first."""
    more: bool
    """Whether some were left out."""
    gaps: tuple[Gap, ...]
    """Stores that could not be read."""


async def group_letters(
    project: Project, services: Iterable[str], *, wanted: Wanted = ALL, limit: int = 100
) -> Groups:
    """Return the largest groups of dead letters of each service, at most ``limit`` of each.

    A service that never ran has none.
    """
    gaps: list[Gap] = []
    answers = await ask_stores(
        project, services, lambda store: list_groups(store, wanted=wanted, limit=limit + 1), gaps
    )
    return Groups(
        groups=tuple((name, each) for name, found in answers for each in found[:limit]),
        more=any(len(found) > limit for _, found in answers),
        gaps=tuple(gaps),
    )


async def show_letter(project: Project, service: str, letter: int) -> WholeLetter | None:
    """Return a whole dead letter; None if the service does not have it.

    Raises StoreError, and NotCreated where the service never ran.
    """
    async with project.opened_store(service) as store:
        return await read_letter(service, store, letter)


async def read_letters(
    service: str,
    store: Store,
    *,
    every: bool = False,
    after: int = 0,
    limit: int = 100,
    wanted: Wanted = ALL,
) -> tuple[list[Letter], bool]:
    """Return a service's dead letters after a number, and whether there are more.

    Raises StoreError.
    """
    rows = await list_dead(store, every=every, after=after, limit=limit + 1, wanted=wanted)
    return [_letter(service, row) for row in rows[:limit]], len(rows) > limit


async def find_letters(service: str, store: Store, identity: str, *, limit: int) -> list[Letter]:
    """Return a service's newest dead letters of an identity, in any state.

    It is a letter's number, or of the last `SEARCHED` an event id (or its end) or a key. Raises
    StoreError.
    """
    number = int(identity) if re.fullmatch(r"[0-9]{1,18}", identity) else -1
    ending = f"%{identity}" if re.fullmatch(r"[0-9a-f-]{8,36}", identity) else ""
    asked = {
        "number": number,
        "newest": SEARCHED,
        "identity": identity,
        "ending": ending,
        "limit": limit,
    }
    return [_letter(service, row) for row in await store.fetch(tables.FOUND_LETTERS, asked)]


async def read_letter(service: str, store: Store, letter: int) -> WholeLetter | None:
    """Return a whole dead letter from an open store; None without it. Raises StoreError."""
    row = await show_dead(store, letter)
    if row is None:
        return None
    return WholeLetter(
        letter=_letter(service, row),
        source=row["source"],
        traceback=row["traceback"],
        history=tuple(row["history"]),
        headers=row["headers"],
        data=row["data"],
    )


def as_value(letter: Letter) -> dict[str, Any]:
    """Return a dead letter as a value for JSON."""
    return {**msgspec.structs.asdict(letter), "time": utc_time(letter.time)}


def groups_as_value(found: Groups) -> dict[str, Any]:
    """Return groups as a value for JSON."""
    return {
        "groups": [
            {
                "service": name,
                **msgspec.structs.asdict(each),
                "oldest": utc_time(each.oldest),
                "newest": utc_time(each.newest),
            }
            for name, each in found.groups
        ],
        "more": found.more,
    }


def whole_as_value(whole: WholeLetter) -> dict[str, Any]:
    """Return a whole dead letter as a value for JSON."""
    return {
        **as_value(whole.letter),
        "source": whole.source,
        "traceback": whole.traceback,
        "history": [{**entry, "at": utc_time(entry["at"])} for entry in whole.history],
        "headers": whole.headers,
        **payload_json(whole.data),
    }


def _letter(service: str, row: Row) -> Letter:
    names = Letter.__struct_fields__[1:]
    return Letter(service=service, **{name: row[name] for name in names})
