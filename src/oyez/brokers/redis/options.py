"""The options of Redis."""

from __future__ import annotations

from oyez.brokers.kit.options import StreamOptions
from oyez.endpoint import BatchBytes, Count, Seconds


class RedisOptions(StreamOptions, frozen=True, kw_only=True):
    """The options of the Redis broker."""

    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """The limit of bytes that a reader requests at once; a single record may exceed it."""
    connections: Count = 8
    """The limit of connections for calls; one more waits for new entries."""
    block: Seconds = 2.0
    """The longest silence of the waiting connection, in seconds, while it works."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of trimming."""
