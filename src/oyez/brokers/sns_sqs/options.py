"""What the URL of SNS and SQS may set."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from oyez.brokers.kit.options import StreamOptions
from oyez.endpoint import BatchBytes, Partitions, Retention, Seconds, limits


class SnsSqsOptions(StreamOptions, frozen=True, kw_only=True):
    """How the SNS and SQS broker behaves."""

    endpoint: str | None = None
    """Address of an emulator or a VPC endpoint for both services, e.g. http://127.0.0.1:5000."""
    partitions: Partitions = 8
    """How many a stream gets that is made by its first record: each is a topic, and a queue and a
    long poll for each group, so few are cheaper here."""
    retention: Retention = 7 * 86_400.0
    """Messages that nobody took for so many seconds are deleted by SQS; 14 days at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes of messages that a reader holds untaken, beyond which it receives no more."""
    deadline: Seconds = 10.0
    """Seconds after which a call, or a publish that makes no progress, gives up."""
    wait: Annotated[int, limits(1, 20, "seconds")] = 10
    """Seconds that a long poll lasts. A dead connection is noticed 5 s after."""
    visibility: Annotated[int, limits(3, 3600, "seconds")] = 5
    """Seconds after which what a dead reader held comes again; a living one extends them."""

    @property
    def emulated(self) -> bool:
        """Whether ``endpoint`` is something else than AWS."""
        host = urlsplit(self.endpoint or "").hostname or ""
        return self.endpoint is not None and not host.endswith(
            (".amazonaws.com", ".amazonaws.com.cn")
        )
