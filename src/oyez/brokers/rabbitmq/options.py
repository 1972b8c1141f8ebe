"""What the URL of RabbitMQ may set."""

from __future__ import annotations

from typing import Annotated, Literal

from oyez.brokers.kit.options import StreamOptions
from oyez.endpoint import Retention, Some, limits


class RabbitMqOptions(StreamOptions, frozen=True, kw_only=True):
    """How the RabbitMQ broker behaves."""

    retention: Retention = 7 * 86_400.0
    """Records older than this many seconds are deleted, a segment at a time."""
    segment_bytes: Annotated[int, limits(1, 3_000_000_000, "bytes")] = 64 * 1024 * 1024
    """Bytes of a segment; each partition keeps at least one."""
    queue: Literal["stream", "quorum"] = "stream"
    """``stream`` keeps history; ``quorum`` deletes what every group has handled."""
    replicas: Some = 0
    """Servers that keep each partition; 0 stands for all there are when it is made."""
    max_bytes: Annotated[int, limits(1, 2**29, "bytes")] = 16 * 1024 * 1024
    """The largest record; ``max_message_size`` of the server, whose default is 16 MiB since 4.0."""
    management: str | None = None
    """Where the management plugin answers (``http://HOST:15672``): `inspect` sees more with it."""
