"""An entry: one use of a key, what is found of it, and what keeps entries."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from hashlib import sha256
from typing import NamedTuple, Protocol

import msgspec

from oyez.gateway.exchange import Exchange
from oyez.gateway.reply import Reply
from oyez.principal import Principal

_encode = msgspec.msgpack.encode
_reply = msgspec.msgpack.Decoder(Reply).decode


class Entry(NamedTuple):
    """One use of a key. Digests, so that neither keys nor names are kept."""

    id: bytes
    """For whom, on which route and by which method, under which key."""
    holder: bytes
    """For whom: of each holder only so many answers are kept."""
    payload: bytes
    """What was sent with it."""


class State(Enum):
    """What a request finds of its entry, unless it was answered before."""

    BEGUN = "begun"
    """It is the first of its entry, or the first since that was released: it has begun it."""
    RUNNING = "running"
    """An earlier one is in progress."""
    REUSED = "reused"
    """The key was used for another payload."""


class Answered(NamedTuple):
    """What it finds if an earlier one was answered."""

    reply: Reply


class Owned(NamedTuple):
    """An entry that a request has begun, and the mark by which it knows that it still owns it."""

    entry: Entry
    mark: bytes


class Entries(Protocol):
    """What keeps entries, for all replicas of the gateway. Raises StoreError or BrokerError."""

    async def open(self) -> None:
        """Connect, and make what is missing."""
        ...

    async def close(self) -> None:
        """Let go. Safe when never opened and when called twice."""
        ...

    async def begin(self, entry: Entry, mark: bytes) -> State | Answered:
        """Begin the entry, or return what is found of it. When it returns, all replicas know.

        Of several requests at once, one begins it.
        """
        ...

    async def end(self, owned: Owned, answer: bytes | None) -> None:
        """Store the answer durably, or release the entry without one; then the next may begin it.

        Nothing happens to an entry that another request has begun since. Of the holder's entries
        that have ended, the oldest above the limit go.
        """
        ...

    async def renew(self, running: Sequence[Owned]) -> None:
        """Renew the leases of entries that are still in progress."""
        ...

    async def sweep(self) -> bool:
        """Delete some of what has expired. Returns whether there may be more."""
        ...


def entry_of(
    exchange: Exchange, system: str, principal: Principal, route: str, key: str, body: bytes
) -> Entry:
    """Return the entry that a request belongs to."""
    kinds = b",".join(exchange.fields.get(b"content-type", ()))
    head = b"%b %b\n%b\n" % (exchange.method.encode(), exchange.target, kinds)
    return Entry(
        id=_digest(system, principal.name, route, exchange.method, key),
        holder=_digest(system, principal.name),
        payload=sha256(head + body).digest(),
    )


def encoded(reply: Reply) -> bytes:
    """Return an answer as it is stored."""
    return _encode(reply)


def answered(answer: bytes) -> Answered:
    """Return what was stored."""
    return Answered(_reply(answer))


def _digest(*parts: str) -> bytes:
    return sha256(_encode(parts)).digest()
