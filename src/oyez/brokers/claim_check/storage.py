"""Where large data is kept: the face of every storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from oyez.ports import Finding

CONCURRENT = 8
"""What is stored or fetched at once, at most."""
MARGIN = 86_400.0
"""Seconds for which data is kept beyond the records that name it, for clocks and slow relays."""


class Storage(Protocol):
    """Bytes under names; several processes put and get at once.

    It connects by itself when it is first asked. Whoever calls sets the deadline. Every call raises
    BrokerUnavailable where the storage is out of reach and BrokerRefused where it says no.
    """

    where: str
    """The storage, for people."""
    prefix: str
    """A name behind it is the address of what is stored under that name."""

    async def put(self, name: str, data: bytes) -> None:
        """Return when the data is durable under the name, as new as if it had never been there."""
        ...

    async def get(self, name: str, most: int) -> bytes | None:
        """What is stored under the name, of something longer ``most`` + 1 bytes; None for nothing.

        Nothing is what was never stored or is deleted, not what can't be seen for the moment.
        """
        ...

    async def sweep(self) -> None:
        """Delete what is older than the retention and `MARGIN`, if nothing else does that here."""
        ...

    async def inspect(self) -> Sequence[Finding]:
        """What is wrong with how the storage is set up; empty when all is well."""
        ...

    async def close(self) -> None:
        """Let go of everything. Safe at any time; what is asked for later connects again."""
        ...
