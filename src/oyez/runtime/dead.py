"""Dead letters of one service: list, show, redrive, discard.

A dead letter of the outbox is an event that the broker refused. Its row remains in the outbox, and
the later events of its key wait for it. A redrive publishes it before them, a discard deletes it;
both release them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.envelope import open_record, parse_time
from oyez.errors import InvalidEvent, NotRedriven
from oyez.ports import Changes, Row, Store, StoreTransaction, Writes
from oyez.tables import INBOX_RETENTION, Letter


async def list_dead(
    store: Store, *, every: bool = False, after: int = 0, limit: int = 100
) -> list[Row]:
    """Return dead letters by id, without payloads; with ``every``, also settled ones."""
    sql = tables.ALL_LETTERS if every else tables.DEAD_LETTERS
    return await store.fetch(sql, {"after": after, "limit": limit})


async def show_dead(store: Store, letter: int) -> Row | None:
    """Return a whole dead letter: headers and history decoded, ``data`` as the original bytes."""
    rows = await store.fetch(tables.LETTER, {"id": letter})
    if not rows:
        return None
    row = rows[0]
    row["headers"] = msgspec.json.decode(row["headers"], type=dict[str, str])
    row["history"] = msgspec.json.decode(row["history"])
    return row


async def redrive(
    store: Store,
    letter: int,
    ambient: Ambient,
    *,
    handler: str | None = None,
    data: bytes | None = None,
    old: bool = False,
) -> None:
    """Redrive a dead letter: pass it to its handler again, at once and with fresh attempts.

    The move is one transaction with the mark in ``oyez_dead``, so it can be neither lost nor
    repeated. ``data`` replaces the payload, and ``handler`` the handler (after a rename, or for an
    event that could not be decoded, which has none); both are recorded. An event that the broker
    refused is published again, before the later events of its key. Raises NotRedriven for a letter
    that does not exist or is settled; and, unless ``old``, for one that is older than the inbox,
    since a duplicate could no longer be detected, and for a command that has expired, since its
    sender has gone on without it.
    """
    row = await show_dead(store, letter)
    now = ambient.now()
    if row is None:
        raise NotRedriven(f"there is no dead letter {letter}")
    if row["state"] != "dead":
        raise NotRedriven(f"dead letter {letter} was {row['state']} already: {row['note']}")
    if now - row["time"] > INBOX_RETENTION and not old:
        days = INBOX_RETENTION / 86_400
        raise NotRedriven(
            f"dead letter {letter} is older than {days:.0f} days, for which duplicates are "
            "recognised: if the event can't arrive in another way, use --old"
        )
    expires = _expiry(row)
    if expires is not None and parse_time(expires, "expires").timestamp() < now:
        if not old:
            raise NotRedriven(
                f"dead letter {letter} is a command that expired at {expires}, and its sender has "
                "gone on without it: if it is to be done all the same, use --old"
            )
        _unlimit(row)
    if row["handler"] == tables.OUTBOX:
        await _announce_again(store, row, handler, data, now)
    else:
        await _park_again(store, row, handler, data, now)


async def discard(store: Store, letter: int, why: str) -> None:
    """Mark a dead letter as discarded. Raises NotRedriven when it is missing or settled."""
    if not why:
        raise InvalidEvent("why", "state why it may be discarded")
    row = await show_dead(store, letter)
    begun = store.begin()
    try:
        if row is None or not await _mark(begun, letter, Letter.DISCARDED, why[:500]):
            raise NotRedriven(f"there is no dead letter {letter} that is still dead")
        if row["handler"] == tables.OUTBOX:
            await begun.fetch(tables.WITHDRAW, {"seq": row["position"]}, [])
            await begun.commit(Changes(writes=_let_go(row), ring=True))
        else:
            await begun.commit(Changes())
    finally:
        await begun.rollback()


async def _park_again(
    store: Store, row: Row, handler: str | None, data: bytes | None, now: float
) -> None:
    letter = row["id"]
    target = handler or row["handler"]
    if not target:
        raise NotRedriven(
            f"dead letter {letter} could not be read, so no handler is known: name it with "
            "--handler, and replace the payload with --data"
        )
    note = _note(data)
    if target != row["handler"]:
        note += f", to {target}"
    begun = store.begin()
    try:
        marked = await _mark(begun, letter, Letter.REDRIVEN, note)
        parameters: dict[str, Any] = {
            "event_id": row["event_id"],
            "source": row["source"],
            "handler": target,
            "reader": row["reader"],
            "stream": row["stream"],
            "partition": row["partition"],
            "position": row["position"],
            "history": msgspec.json.encode(row["history"]),
            "key": row["key"],
            "headers": msgspec.json.encode(row["headers"]),
            "data": row["data"] if data is None else data,
            "now": now,
        }
        if not marked or not await begun.fetch(tables.PARK_AGAIN, parameters, []):
            raise NotRedriven(f"dead letter {letter} is being redriven already")
        await begun.commit(Changes(time=now, ring=True))
    finally:
        await begun.rollback()


async def _announce_again(
    store: Store, row: Row, handler: str | None, data: bytes | None, now: float
) -> None:
    letter = row["id"]
    if handler is not None:
        raise NotRedriven(
            f"dead letter {letter} was never published, so it has no handler: leave out --handler"
        )
    begun = store.begin()
    try:
        marked = await _mark(begun, letter, Letter.REDRIVEN, _note(data))
        again = {"seq": row["position"], "data": row["data"] if data is None else data}
        if not marked or not await begun.fetch(tables.ANNOUNCE_AGAIN, again, []):
            raise NotRedriven(f"dead letter {letter} is being redriven already")
        await begun.commit(Changes(writes=_let_go(row), time=now, ring=True))
    finally:
        await begun.rollback()


def _expiry(row: Row) -> str | None:
    """Return the time by which the event of a letter was to be handled, if there is one."""
    try:
        return open_record(row["headers"], row["data"]).expires
    except InvalidEvent:
        return None


def _unlimit(row: Row) -> None:
    """Remove the expiry of a letter's event, which is written in binary form thereby."""
    envelope = open_record(row["headers"], row["data"])
    row["headers"] = msgspec.structs.replace(envelope, expires=None).headers()
    row["data"] = envelope.data


async def _mark(begun: StoreTransaction, letter: int, state: Letter, note: str) -> bool:
    row = {"id": letter, "state": state.value, "note": note}
    return bool(await begun.fetch(tables.MARK_LETTER, row, []))


def _let_go(row: Row) -> Writes:
    """Return the writes that release the events that waited for this one: none without a key."""
    if row["key"] is None:
        return []
    return [(tables.UNHOLD, [{"stream": row["stream"], "key": row["key"]}])]


def _note(data: bytes | None) -> str:
    return "as it was" if data is None else "payload replaced"
