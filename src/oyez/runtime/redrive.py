"""Many dead letters at once: redriven, discarded, or only looked at as the code sees them today.

Each letter is settled by a transaction of its own, so the work can be stopped between two, and
what is refused stays dead while the others go on. A refusal is a value here, not an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence

import msgspec

from oyez import strict_json, tables
from oyez.ambient import Ambient
from oyez.contract import encode
from oyez.envelope import open_record
from oyez.errors import InvalidEvent, NotRedriven, OyezError
from oyez.event import MAX_DATA, describe
from oyez.ports import Row, Store
from oyez.runtime.audit import Actor, require_reason
from oyez.runtime.dead import Wanted, count_dead, discard, redrive, refuse, show_dead
from oyez.runtime.execution import decode_for
from oyez.service import Service

MAX_REFUSED = 100
"""The limit of refusals that are returned; all of them are counted."""
_PAGE = 500
"""The ids that are held in memory."""


class Refused(msgspec.Struct, frozen=True):
    """A letter that was refused, and why."""

    letter: int
    why: str
    cause: str = ""
    """See `oyez.errors.NotRedriven`."""


class Step(msgspec.Struct, frozen=True):
    """What became of one letter; ``refused`` is None if it was settled.

    ``count`` says how many letters there were with this one, ``total`` how many there are in all.
    """

    letter: int
    refused: Refused | None
    count: int
    total: int


class Settled(msgspec.Struct, kw_only=True):
    """What became of all letters."""

    done: int = 0
    refusals: int = 0
    refused: list[Refused] = []
    """The first `MAX_REFUSED` of them."""
    stopped: bool = False
    """Whether it was stopped before the last one."""


Told = Callable[[Step], None]
"""Called after each letter."""


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a redrive of a letter would do, by the code of today."""

    letter: int
    refused: str = ""
    """Why it would be refused, or its handler could not read it; then the rest is empty."""
    cause: str = ""
    """See `oyez.errors.NotRedriven`."""
    handler: str = ""
    """The handler that it would be handed to; `oyez.tables.OUTBOX` if it would be published."""
    event: str = ""
    """The name of the class that the handler would get."""
    key: str | None = None
    data: bytes | None = None
    """The event's fields as the code reads them, with its defaults, as JSON."""


def handlers_of(service: Service) -> set[str]:
    """Return the names of what a letter of the service may be handed to."""
    return {handler.name for handler in service.subscriptions}


async def redrive_letters(
    store: Store,
    letters: Sequence[int] | Wanted,
    ambient: Ambient,
    *,
    by: Actor,
    handler: str | None = None,
    handlers: Collection[str] | None = None,
    data: bytes | None = None,
    old: bool = False,
    rate: float = 0.0,
    told: Told | None = None,
    stopped: asyncio.Event | None = None,
) -> Settled:
    """Redrive these letters, by their ids or all that are wanted, in the order of their ids.

    Letters that die meanwhile are not among them. ``rate`` is the limit of letters in a second, 0
    for none; ``stopped``, once it is set, ends the work before the next letter. For the rest see
    `oyez.runtime.dead.redrive`. Raises InvalidEvent for ``data`` that is not JSON or is meant for
    several letters, and StoreError.
    """
    if data is not None:
        if isinstance(letters, Wanted) or len(letters) != 1:
            raise InvalidEvent("data", "replaces the data of one dead letter: name one")
        strict_json.read(data, most=MAX_DATA)

    async def one(letter: int) -> None:
        await redrive(
            store,
            letter,
            ambient,
            by=by,
            handler=handler,
            handlers=handlers,
            data=data,
            old=old,
        )

    return await _each(store, letters, ambient, one, rate, told, stopped)


async def discard_letters(
    store: Store,
    letters: Sequence[int] | Wanted,
    ambient: Ambient,
    *,
    by: Actor,
    told: Told | None = None,
    stopped: asyncio.Event | None = None,
) -> Settled:
    """Discard these letters, as `redrive_letters` redrives them.

    Raises InvalidEvent without a reason, and StoreError.
    """
    require_reason(by, "they may be discarded")

    async def one(letter: int) -> None:
        await discard(store, letter, ambient, by=by)

    return await _each(store, letters, ambient, one, 0.0, told, stopped)


async def preview_letters(
    store: Store,
    letters: Sequence[int] | Wanted,
    service: Service,
    ambient: Ambient,
    *,
    handler: str | None = None,
    data: bytes | None = None,
    old: bool = False,
) -> AsyncGenerator[Preview, None]:
    """Yield what `redrive_letters` would do with each letter; do nothing."""
    async for letter in _ids(store, letters, await _last(store)):
        row = await show_dead(store, letter)
        now = ambient.now()
        try:
            refuse(row, letter, now, handler=handler, handlers=handlers_of(service), old=old)
            assert row is not None
            preview = _preview(row, service, 0.0 if old else now, handler, data)
        except NotRedriven as error:
            preview = Preview(letter=letter, refused=str(error), cause=error.cause)
        except OyezError as error:
            preview = Preview(letter=letter, refused=str(error))
        yield preview


def _preview(
    row: Row, service: Service, now: float, handler: str | None, data: bytes | None
) -> Preview:
    envelope = open_record(row["headers"], row["data"] if data is None else data)
    target = handler or row["handler"]
    name, shown = envelope.type, envelope.data
    if target != tables.OUTBOX:
        (found,) = (each for each in service.subscriptions if each.name == target)
        event = decode_for(found, envelope, now)
        name, shown = type(event).__name__, encode(describe(type(event)), event)
    return Preview(letter=row["id"], handler=target, event=name, key=row["key"], data=shown)


async def _each(
    store: Store,
    letters: Sequence[int] | Wanted,
    ambient: Ambient,
    one: Callable[[int], Awaitable[None]],
    rate: float,
    told: Told | None,
    stopped: asyncio.Event | None,
) -> Settled:
    settled, count = Settled(), 0
    last = await _last(store)
    if isinstance(letters, Wanted):
        total = await count_dead(store, letters, last=last)
    else:
        total = len(letters)
    began = ambient.monotonic()
    stopped = stopped or asyncio.Event()
    async for letter in _ids(store, letters, last):
        if rate and count:
            await _pause(began + count / rate, ambient, stopped)
        if stopped.is_set():
            settled.stopped = True
            break
        refused = None
        try:
            await one(letter)
            settled.done += 1
        except NotRedriven as error:
            refused = Refused(letter, str(error), error.cause)
            settled.refusals += 1
            if len(settled.refused) < MAX_REFUSED:
                settled.refused.append(refused)
        count += 1
        if told is not None:
            told(Step(letter, refused, count, max(total, count)))
    return settled


async def _pause(until: float, ambient: Ambient, stopped: asyncio.Event) -> None:
    """Wait until a time of the monotonic clock, or until it is stopped."""
    seconds = until - ambient.monotonic()
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with ambient.timeout(seconds):
                await stopped.wait()


async def _last(store: Store) -> int:
    (row,) = await store.fetch(tables.LAST_LETTER, {})
    return int(row["last"])


async def _ids(store: Store, letters: Sequence[int] | Wanted, last: int) -> AsyncIterator[int]:
    if not isinstance(letters, Wanted):
        for letter in dict.fromkeys(letters):
            yield letter
        return
    asked, after = letters.asked, 0
    sql = tables.wanted_letters(asked)
    while rows := await store.fetch(sql, {**asked, "after": after, "last": last, "limit": _PAGE}):
        for row in rows:
            yield row["id"]
        after = rows[-1]["id"]
