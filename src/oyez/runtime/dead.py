"""Dead letters of one service: listed, grouped by their cause, shown, redriven, discarded.

A dead letter of the outbox is an event that the broker refused. Its row remains in the outbox, and
the later events of its key wait for it. A redrive publishes it before them, a discard deletes it;
both release them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.causes import masked
from oyez.envelope import open_record, parse_time
from oyez.errors import InvalidEvent, NotRedriven
from oyez.ports import Changes, Parameters, Row, Store, StoreTransaction, Writes
from oyez.runtime.audit import Actor, audited, changed_fields, require_reason
from oyez.tables import INBOX_RETENTION, Letter

_LAST = 2**63 - 1


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters that are wanted: those that meet all of this; without any, every one."""

    handler: str | None = None
    type: str | None = None
    key: str | None = None
    group: str | None = None
    """The name of a `Group`."""
    text: str | None = None
    """Part of the reason, in upper or lower case."""

    @property
    def asked(self) -> dict[str, Any]:
        """The parameters of the conditions in `oyez.tables.WANTED` that this is."""
        found = {name: getattr(self, name) for name in tables.WANTED}
        if self.text is not None:
            text = self.text.lower()
            for special in "\\%_":
                text = text.replace(special, f"\\{special}")
            found["text"] = f"%{text}%"
        return {name: value for name, value in found.items() if value is not None}


ALL = Wanted()


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters of one handler and type that died of one cause."""

    group: str
    """Its name, which is the same in every service and at any time."""
    handler: str
    """Empty for events that could not be decoded."""
    type: str
    cause: str
    """Their reason, without what differs: ids, numbers, quoted values."""
    letters: int
    oldest: float
    newest: float
    """The times at which the first and the last of them died, in seconds since 1970."""
    example: int
    """The id of one of them, the newest in the store."""


async def list_dead(
    store: Store, *, every: bool = False, after: int = 0, limit: int = 100, wanted: Wanted = ALL
) -> list[Row]:
    """Return dead letters by id, without payloads; with ``every``, also settled ones."""
    asked = wanted.asked
    if not asked:
        sql = tables.ALL_LETTERS if every else tables.DEAD_LETTERS
        return await store.fetch(sql, {"after": after, "limit": limit})
    sql = tables.wanted_letters(asked, every=every)
    return await store.fetch(sql, {**asked, "after": after, "last": _LAST, "limit": limit})


async def count_dead(store: Store, wanted: Wanted = ALL, *, last: int = _LAST) -> int:
    """Return the number of dead letters with an id up to ``last``."""
    asked = wanted.asked
    (row,) = await store.fetch(tables.count_letters(asked), {**asked, "last": last})
    return int(row["letters"])


async def list_groups(
    store: Store,
    *,
    wanted: Wanted = ALL,
    after: tuple[int, str] | None = None,
    limit: int = 100,
) -> list[Group]:
    """Return the groups of dead letters, the largest first.

    ``after`` is how many letters the last one known has, and its name.
    """
    asked: Parameters = {
        **wanted.asked,
        "letters": _LAST if after is None else after[0],
        "after": "" if after is None else after[1],
        "limit": limit,
    }
    found = []
    for row in await store.fetch(tables.letter_groups(wanted.asked), asked):
        reason = row.pop("reason")
        found.append(Group(**row, cause=masked(reason)))
    return found


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
    by: Actor,
    handler: str | None = None,
    handlers: Collection[str] | None = None,
    data: bytes | None = None,
    old: bool = False,
) -> None:
    """Redrive a dead letter: pass it to its handler again, at once and with fresh attempts.

    The move is one transaction with the mark in ``oyez_dead`` and the row of the audit, so it can
    be neither lost nor repeated. ``data`` replaces the payload, and ``handler`` the handler (after
    a rename, or for an event that could not be decoded, which has none); both are recorded. An
    event that the broker refused is published again, before the later events of its key.

    Raises NotRedriven for a letter that does not exist or is settled, or whose handler is not among
    ``handlers``, those that the service has; and, unless ``old``, for one that is older than the
    inbox, since a duplicate could no longer be detected, and for a command that has expired, since
    its sender has gone on without it.
    """
    row = await show_dead(store, letter)
    now = ambient.now()
    refuse(row, letter, now, handler=handler, handlers=handlers, old=old)
    assert row is not None
    told = {"state": Letter.REDRIVEN, "handler": handler or row["handler"], "data": "as it was"}
    if data is not None:
        told |= {"data": "replaced", "changed": changed_fields(row["data"], data)}
    if old:
        told["old"] = True
    audit = audited(by, "dead.redrive", target_of(letter), now, _before(row), told)
    if _has_expired(row, now):
        _unlimit(row)
    if row["handler"] == tables.OUTBOX:
        await _announce_again(store, row, data, now, audit)
    else:
        await _park_again(store, row, handler, data, now, audit)


def refuse(
    row: Row | None,
    letter: int,
    now: float,
    *,
    handler: str | None = None,
    handlers: Collection[str] | None = None,
    old: bool = False,
) -> None:
    """Raise NotRedriven if `redrive` refuses the letter, of which ``row`` is `show_dead`'s."""
    if row is None:
        raise NotRedriven(f"there is no dead letter {letter}")
    if row["state"] != Letter.DEAD:
        raise NotRedriven(f"dead letter {letter} was {row['state']} already: {row['note']}")
    if now - row["time"] > INBOX_RETENTION and not old:
        days = INBOX_RETENTION / 86_400
        raise NotRedriven(
            f"dead letter {letter} is older than {days:.0f} days, for which duplicates are "
            "recognised: if the event can't arrive in another way, use --old",
            "old",
        )
    if _has_expired(row, now) and not old:
        raise NotRedriven(
            f"dead letter {letter} is a command that expired at {_expiry(row)}, and its sender has "
            "gone on without it: if it is to be done all the same, use --old",
            "expired",
        )
    if row["handler"] == tables.OUTBOX:
        if handler is not None:
            raise NotRedriven(
                f"dead letter {letter} was never published, so it has no handler: leave out "
                "--handler",
                "unpublished",
            )
        return
    target = handler or row["handler"]
    if not target:
        raise NotRedriven(
            f"dead letter {letter} could not be read, so no handler is known: name it with "
            "--handler, and replace the payload with --data",
            "unreadable",
        )
    if handlers is not None and target not in handlers:
        names = ", ".join(sorted(handlers)) or "none"
        raise NotRedriven(
            f"dead letter {letter} is of {target}, a handler that its service no longer has: "
            f"name another with --handler; there are: {names}",
            "renamed",
        )


async def discard(store: Store, letter: int, ambient: Ambient, *, by: Actor) -> None:
    """Mark a dead letter as discarded, for the actor's reason.

    Raises NotRedriven when it is missing or settled, and InvalidEvent without a reason.
    """
    require_reason(by, "it may be discarded")
    row = await show_dead(store, letter)
    now = ambient.now()
    begun = store.begin()
    try:
        if row is None or not await _mark(begun, letter, Letter.DISCARDED, by.why[:500]):
            raise NotRedriven(f"there is no dead letter {letter} that is still dead")
        told = {"state": Letter.DISCARDED}
        writes: Writes = [audited(by, "dead.discard", target_of(letter), now, _before(row), told)]
        refused = row["handler"] == tables.OUTBOX
        if refused:
            await begun.fetch(tables.WITHDRAW, {"seq": row["position"]}, [])
            writes += _let_go(row)
        await begun.commit(Changes(writes=writes, time=now, ring=refused))
    finally:
        await begun.rollback()


def target_of(letter: int) -> str:
    """Return what the audit calls a dead letter."""
    return f"dead letter {letter}"


def _before(row: Row) -> dict[str, Any]:
    return {"state": row["state"], "handler": row["handler"], "attempts": row["attempts"]}


async def _park_again(
    store: Store,
    row: Row,
    handler: str | None,
    data: bytes | None,
    now: float,
    audit: tuple[str, list[Parameters]],
) -> None:
    letter = row["id"]
    target = handler or row["handler"]
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
        await begun.commit(Changes(writes=[audit], time=now, ring=True))
    finally:
        await begun.rollback()


async def _announce_again(
    store: Store, row: Row, data: bytes | None, now: float, audit: tuple[str, list[Parameters]]
) -> None:
    letter = row["id"]
    begun = store.begin()
    try:
        marked = await _mark(begun, letter, Letter.REDRIVEN, _note(data))
        again = {"seq": row["position"], "data": row["data"] if data is None else data}
        if not marked or not await begun.fetch(tables.ANNOUNCE_AGAIN, again, []):
            raise NotRedriven(f"dead letter {letter} is being redriven already")
        await begun.commit(Changes(writes=[audit, *_let_go(row)], time=now, ring=True))
    finally:
        await begun.rollback()


def _expiry(row: Row) -> str | None:
    """Return the time by which the event of a letter was to be handled, if there is one."""
    try:
        return open_record(row["headers"], row["data"]).expires
    except InvalidEvent:
        return None


def _has_expired(row: Row, now: float) -> bool:
    expires = _expiry(row)
    return expires is not None and parse_time(expires, "expires").timestamp() < now


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
