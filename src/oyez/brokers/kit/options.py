"""Options that every broker with a server has."""

from __future__ import annotations

from oyez.endpoint import BatchBytes, Count, Partitions, Retention, Seconds, Tls


class StreamOptions(Tls, frozen=True, kw_only=True):
    """How streams on a server are made and read.

    An adapter's options extend it, as this extends `Tls`: a struct takes the fields of one other.
    A field that means more there, or has other bounds, is written again with its docstring.
    """

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes that one reader holds, at most; one record may exceed it alone."""
    deadline: Seconds = 10.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    poll: Seconds = 1.0
    """Seconds between two looks for streams that others made."""
