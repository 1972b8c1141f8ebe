"""What carries the events: one adapter a file, behind `oyez.ports.Broker`; none knows another."""

from __future__ import annotations

from pathlib import Path

from oyez.ambient import Ambient
from oyez.errors import ConfigurationError
from oyez.ports import Broker


def connect(
    url: str, ambient: Ambient, *, root: Path, partitions: int = 8, retention: float = 7 * 86_400.0
) -> Broker:
    """The broker that a URL names; nothing is opened yet.

    ``root`` is what a relative file is relative to, ``partitions`` what new streams get,
    ``retention`` is in seconds. Raises ConfigurationError for a scheme that has no adapter.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "embedded":
        from oyez.brokers.embedded import EmbeddedBroker, EmbeddedOptions

        options = EmbeddedOptions(partitions=partitions, retention=retention)
        return EmbeddedBroker(root / rest, ambient, options)
    if scheme == "memory":
        from oyez.brokers.memory import MemoryBroker

        return MemoryBroker(ambient, partitions=partitions)
    raise ConfigurationError(
        f"system.broker: expected embedded:FILE or memory:, found {scheme!r}, which this version "
        "has no adapter for"
    )
