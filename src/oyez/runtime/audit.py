"""The audit of a service: every act of a person on it, in its own store.

An act's row is written in the transaction of the act, so neither can be there without the other.
What takes many transactions, such as a replay, has its row in the first of them.

A row never has data of an event or of a row, nor text of an error: these may tell something of a
person, and the audit outlives what was erased. It names what was changed, by field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from oyez import strict_json, tables
from oyez.errors import InvalidEvent
from oyez.ports import Changes, Parameters, Store

MAX_WHO = 200
"""The limit of characters of a name."""
MAX_WHY = 500
"""The limit of characters of a reason."""
MAX_TARGET = 300
"""The limit of characters of a target."""
MAX_STATE = 2_000
"""The limit of bytes of what was before an act, and of what was after it."""
MAX_FIELDS = 50
"""The limit of names of changed fields that are kept."""
_NEWEST = 2**63 - 1


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """The person who acts, the face that they use, and their reason."""

    who: str
    via: Literal["command", "console", "service"]
    why: str = ""


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the audit."""

    id: int
    time: float
    """In seconds since 1970."""
    who: str
    via: str
    act: str
    """What was done, such as ``dead.redrive``."""
    target: str
    """What it was done to, such as ``dead letter 12``."""
    reason: str
    before: dict[str, Any]
    after: dict[str, Any]


def audited(
    by: Actor,
    act: str,
    target: str,
    now: float,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> tuple[str, list[Parameters]]:
    """Return the write that an act's transaction has as well."""
    row = {
        "time": now,
        "who": _text(by.who, MAX_WHO),
        "via": by.via,
        "act": act,
        "target": _text(target, MAX_TARGET),
        "reason": _text(by.why, MAX_WHY),
        "before": _state(before),
        "after": _state(after),
    }
    return tables.AUDIT, [row]


async def record(
    store: Store,
    by: Actor,
    act: str,
    target: str,
    now: float,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write the row of an act that takes many transactions, before the first. Raises StoreError."""
    writes = [audited(by, act, target, now, after=after)]
    await store.begin().commit(Changes(writes=writes, time=now))


async def list_acts(
    store: Store, *, target: str = "", before: int = _NEWEST, limit: int = 100
) -> list[Act]:
    """Return the newest acts with an id below ``before``, of one target or of all."""
    asked = {"target": target, "before": before, "limit": limit}
    found = []
    for row in await store.fetch(tables.ACTS, asked):
        states = {name: msgspec.json.decode(row[name]) for name in ("before", "after")}
        found.append(Act(**{**row, **states}))
    return found


def require_reason(by: Actor, what: str) -> None:
    """Raise InvalidEvent unless the actor gives a reason for ``what``, which can't be undone."""
    if not by.why.strip():
        raise InvalidEvent("why", f"state why {what}")


def changed_fields(old: bytes | None, new: bytes | None) -> list[str]:
    """Return the names of the fields in which two payloads differ; ``$`` if that has none.

    The names alone: a hash of a name or a birthday is soon guessed. And of the first level alone:
    below it a name may be a key of a map, and so data itself.
    """
    if old == new:
        return []
    one, other = _fields(old), _fields(new)
    if one is None or other is None:
        return ["$"]
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return [name[:100] for name in names[:MAX_FIELDS]]


def _fields(data: bytes | None) -> dict[str, str] | None:
    """Return the fields of a JSON object, each with its value in one spelling."""
    try:
        value = None if data is None else strict_json.read(data)
    except InvalidEvent:
        return None
    if not isinstance(value, dict):
        return None
    return {name: json.dumps(each, sort_keys=True) for name, each in value.items()}


def _state(state: Mapping[str, Any] | None) -> str:
    bounded = {
        name: _text(value, MAX_TARGET) if isinstance(value, str) else value
        for name, value in (state or {}).items()
    }
    data = msgspec.json.encode(bounded)
    if len(data) > MAX_STATE:
        data = msgspec.json.encode({"left out": f"{len(data)} bytes"})
    return data.decode()


def _text(text: str, most: int) -> str:
    """Return the text as every store takes it."""
    return text[:most].replace("\0", "?").encode(errors="replace").decode()
