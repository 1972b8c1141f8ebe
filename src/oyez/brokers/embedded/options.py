"""How the embedded broker behaves."""

from __future__ import annotations

from typing import Annotated

import msgspec

from oyez.endpoint import BatchBytes, Count, Partitions, Retention, Seconds, limits


class EmbeddedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the embedded broker behaves."""

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted."""
    retention_bytes: Annotated[int, limits(1, 2**50, "bytes")] = 4 * 1024**3
    """When the file holds more than this many bytes, the oldest records are deleted."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes of data in one batch, at most (one record may exceed it alone)."""
    poll: Seconds = 0.5
    """Seconds between two looks at the file when no datagram comes."""
    deadline: Seconds = 30.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of deleting, by whichever process is first."""
