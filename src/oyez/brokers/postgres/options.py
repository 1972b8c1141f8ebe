"""What the URL of PostgreSQL may set, where it is a broker."""

from __future__ import annotations

from oyez.endpoint import BatchBytes, Count, Partitions, Retention, Seconds
from oyez.postgresql import ServerOptions


class PostgresOptions(ServerOptions, frozen=True, kw_only=True):
    """How the PostgreSQL broker behaves."""

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes of data in one batch, at most (one record may exceed it alone)."""
    poll: Seconds = 0.5
    """Seconds between two looks at the ends of all partitions."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of deleting, by whichever process is first."""
