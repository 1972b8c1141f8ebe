"""The options of PostgreSQL as a broker."""

from __future__ import annotations

from oyez.endpoint import BatchBytes, Count, Partitions, Retention, Seconds
from oyez.postgresql import ServerOptions


class PostgresOptions(ServerOptions, frozen=True, kw_only=True):
    """The options of the PostgreSQL broker."""

    partitions: Partitions = 8
    """The number of partitions of a stream that is created by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted."""
    batch: Count = 256
    """The limit of records in one batch."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """The limit of bytes of data in one batch (a single record may exceed it)."""
    poll: Seconds = 0.5
    """Seconds between two queries of the ends of all partitions."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of deletion, made by the first process."""
