"""What the URL of NATS may set."""

from __future__ import annotations

from typing import Annotated, Literal

from oyez.brokers.kit.options import StreamOptions
from oyez.endpoint import BatchBytes, Retention, limits


class NatsOptions(StreamOptions, frozen=True, kw_only=True):
    """How the NATS broker behaves."""

    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted, in streams that we make."""
    replicas: Annotated[int, limits(1, 5)] = 1
    """Servers that keep a copy of each stream that we make: 3 in a cluster."""
    sync: Literal["", "always"] = ""
    """Say ``always`` when the servers run with ``sync_interval: always``; they tell it to few."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes that one reader holds, about; one record may exceed it alone."""
    tls: bool = False
    """Encrypt the connection, as the server offers it in its greeting."""
    tls_first: bool = False
    """Encrypt before the server's greeting (its option ``handshake_first``)."""
