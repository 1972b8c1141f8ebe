"""The options of every broker with a server."""

from __future__ import annotations

from oyez.endpoint import BatchBytes, Count, Partitions, Retention, Seconds, Tls


class StreamOptions(Tls, frozen=True, kw_only=True):
    """The options of streams on a server.

    An adapter's options extend it, as this extends `Tls`: a struct takes the fields of one other.
    A field that means more there, or has other bounds, is written again with its docstring.
    """

    partitions: Partitions = 8
    """The number of partitions of a stream that is created by its first record."""
    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted."""
    batch: Count = 256
    """The limit of records in one batch."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """The limit of bytes that a reader prefetches; a single record may exceed it."""
    deadline: Seconds = 10.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    poll: Seconds = 1.0
    """Seconds between two queries for streams that other processes created."""
