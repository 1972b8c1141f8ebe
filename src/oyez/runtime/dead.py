"""Dead letters of one service: list, show, redrive, discard. Plain SQL, the same on every store."""

from __future__ import annotations

from typing import Any

import msgspec

from oyez.ambient import Ambient
from oyez.errors import InvalidEvent, OyezError
from oyez.ports import Changes, Row, Store

INBOX_RETENTION = 7 * 86_400.0
"""Seconds for which handled events are remembered, and so how old a safe redrive may be."""

_LIST = """select id, event_id, type, handler, stream, partition, position, key, reason, attempts,
  time, state, note from oyez_dead where state in (:state, :also) and id > :after
 order by id limit :limit"""
_SHOW = "select * from oyez_dead where id = :id"
_MARK = """update oyez_dead set state = :state, note = :note where id = :id and state = 'dead'
 returning id"""
_AGAIN = """insert into oyez_inbox (event_id, source, handler, seen, state, stream, partition,
  position, chain, due, attempt, history, key, headers, data)
 values (:event_id, :source, :handler, :now, 2, :stream, :partition, :position, null, :now, 0,
  :history, :key, :headers, :data)
 on conflict (event_id, source, handler) do update set state = 2, stream = excluded.stream,
  partition = excluded.partition, position = excluded.position, chain = null, due = excluded.due,
  attempt = 0, history = excluded.history, key = excluded.key, headers = excluded.headers,
  data = excluded.data
 where oyez_inbox.state = 0 returning seq"""


class NotRedriven(OyezError):
    """The dead letter can't be redriven; the message says why and what to do."""


async def list_dead(
    store: Store, *, every: bool = False, after: int = 0, limit: int = 100
) -> list[Row]:
    """Dead letters by id, without payloads; ``every`` includes redriven and discarded ones."""
    if not every:
        parameters = {"state": "dead", "also": "dead", "after": after, "limit": limit}
        return await store.fetch(_LIST, parameters)
    sql = _LIST.replace("state in (:state, :also) and ", "")
    return await store.fetch(sql, {"after": after, "limit": limit})


async def show_dead(store: Store, letter: int) -> Row | None:
    """One dead letter whole: headers and history decoded, ``data`` as the original bytes."""
    rows = await store.fetch(_SHOW, {"id": letter})
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
    """Give a dead letter to its handler again, at once and with fresh attempts.

    The move is one transaction with the mark in ``oyez_dead``, so it can neither be lost nor run
    twice. ``data`` replaces the payload and ``handler`` the handler (one that was renamed, say; an
    event that could not be read names none at all), which is recorded. Raises NotRedriven for one
    that is gone, done, or older than the inbox remembers (unless ``old``), since a duplicate could
    no longer be recognised.
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
            "recognised: if the event can't come again otherwise, say --old"
        )
    target = handler or row["handler"]
    if not target:
        raise NotRedriven(
            f"dead letter {letter} could not be read, so no handler is known: name it with "
            "--handler, and replace the payload with --data"
        )
    note = "payload replaced" if data is not None else "as it was"
    if target != row["handler"]:
        note += f", to {target}"
    begun = store.begin()
    try:
        marked = await begun.fetch(_MARK, {"id": letter, "state": "redriven", "note": note}, [])
        parameters: dict[str, Any] = {
            "event_id": row["event_id"],
            "source": row["source"],
            "handler": target,
            "stream": row["stream"],
            "partition": row["partition"],
            "position": row["position"],
            "history": msgspec.json.encode(row["history"]),
            "key": row["key"],
            "headers": msgspec.json.encode(row["headers"]),
            "data": row["data"] if data is None else data,
            "now": now,
        }
        moved = await begun.fetch(_AGAIN, parameters, [])
        if not marked or not moved:
            raise NotRedriven(f"dead letter {letter} is being redriven already")
        await begun.commit(Changes(time=now, ring=True))
    finally:
        await begun.rollback()


async def discard(store: Store, letter: int, why: str) -> None:
    """Mark a dead letter as settled by hand. Raises NotRedriven when it is gone or done."""
    if not why:
        raise InvalidEvent("why", "say why it may be discarded")
    begun = store.begin()
    try:
        row = {"id": letter, "state": "discarded", "note": why[:500]}
        if not await begun.fetch(_MARK, row, []):
            raise NotRedriven(f"there is no dead letter {letter} that is still dead")
        await begun.commit(Changes())
    finally:
        await begun.rollback()
