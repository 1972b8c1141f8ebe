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

    It connects by itself at the first call. The caller sets the deadline. Every call raises
    BrokerUnavailable when the storage is out of reach and BrokerRefused when it refuses.
    """

    where: str
    """The storage, for messages."""
    prefix: str
    """The address of stored data, up to its name."""

    async def put(self, name: str, data: bytes) -> None:
        """Store data durably under a name, also as new if it exists."""
        ...

    async def get(self, name: str, most: int) -> bytes | None:
        """Return the data of a name, truncated to ``most`` + 1 bytes; None if it does not exist.

        None is for data that was never stored or is deleted, not for data out of reach.
        """
        ...

    async def sweep(self) -> None:
        """Delete data older than the retention and `MARGIN`, unless the storage does so itself."""
        ...

    async def inspect(self) -> Sequence[Finding]:
        """Return the faults of the storage's configuration, with their remedies."""
        ...

    async def close(self) -> None:
        """Close all connections. Safe at any time; a later call connects again."""
        ...
