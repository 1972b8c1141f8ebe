"""What the URL of Redis may set."""

from __future__ import annotations

from oyez.brokers.kit.options import StreamOptions
from oyez.endpoint import BatchBytes, Count, Seconds


class RedisOptions(StreamOptions, frozen=True, kw_only=True):
    """How the Redis broker behaves."""

    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes of data that a reader asks for at once; one record may exceed it alone."""
    connections: Count = 8
    """Connections for calls, at most; one more waits for what arrives."""
    block: Seconds = 2.0
    """Seconds that the waiting connection stays silent, at most, while all is well."""
    housekeeping: Seconds = 60.0
    """Seconds between two rounds of trimming."""
