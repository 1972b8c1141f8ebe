"""The brokers: one adapter a folder, each an `oyez.ports.Broker`; none imports another."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from oyez import adapters
from oyez.ambient import Ambient
from oyez.brokers.claim_check import ClaimCheck, ClaimCheckOptions, open_storage
from oyez.errors import ConfigurationError
from oyez.ports import Broker


class Connect(Protocol):
    """The function that an entry point of ``oyez.brokers`` names; see `oyez.adapters`."""

    def __call__(
        self,
        url: str,
        ambient: Ambient,
        *,
        root: Path,
        group: str,
        partitions: int,
        retention: float,
    ) -> Broker:
        """Return the broker of a URL, not open; parameters as in `connect`."""
        ...


def connect(
    url: str,
    ambient: Ambient,
    *,
    root: Path,
    group: str = "",
    partitions: int = 8,
    retention: float = 7 * 86_400.0,
    claim_check: str | None = None,
    claims: ClaimCheckOptions | None = None,
) -> Broker:
    """Return the broker of a URL, not open.

    Relative files are relative to ``root``. ``group`` is the consumer group (SYSTEM.SERVICE) that
    reads, empty for inspection. ``partitions`` is the number for new streams, ``retention`` is in
    seconds. ``claim_check`` is the URL of the storage for data that is too large for the broker.
    Raises ConfigurationError for a scheme without an adapter, an unknown option or an adapter
    whose driver is not installed.
    """
    scheme = url.partition(":")[0]
    make: Connect | None = adapters.load(adapters.BROKERS, scheme)
    if make is None:
        known = ", ".join(adapters.schemes(adapters.BROKERS))
        raise ConfigurationError(f"system.broker: expected one of {known}, found {scheme!r}")
    broker = make(url, ambient, root=root, group=group, partitions=partitions, retention=retention)
    if claim_check is None:
        return broker
    storage = open_storage(claim_check, ambient, root=root, retention=retention)
    return ClaimCheck(broker, storage, ambient, claims)
