"""Where the buckets are that replicas share: what is asked of it, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Ask(NamedTuple):
    """What a replica wants of a bucket. Times are in nanoseconds."""

    bucket: str
    every: int
    """The time in which one token is filled in."""
    size: int
    """The tokens of a full bucket."""
    want: int


class Grant(NamedTuple):
    """What it gets: ``tokens`` of a bucket that is full again in ``ahead`` nanoseconds."""

    tokens: int
    ahead: int


class Store(Protocol):
    """Where buckets are kept for all replicas. Time is the store's own."""

    async def open(self) -> None:
        """Connect, and make what is missing. Raises OyezError."""
        ...

    async def take(self, asks: Sequence[Ask]) -> list[Grant]:
        """Take of each bucket as many tokens as are there, up to what is wanted.

        It is one round trip; no two asks are of one bucket. Raises OyezError.
        """
        ...

    async def sweep(self) -> None:
        """Delete buckets that are full, where the store does not do so itself. Raises OyezError."""
        ...

    async def close(self) -> None:
        """Disconnect. Safe when never opened, and when called twice."""
        ...
