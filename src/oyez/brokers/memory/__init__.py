"""A broker in the memory of one process, for tests and simulations."""

from __future__ import annotations

from pathlib import Path

from oyez.ambient import Ambient
from oyez.endpoint import redact
from oyez.errors import ConfigurationError
from oyez.ports import Broker


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return a broker of its own, not opened yet; see `oyez.brokers.Connect`."""
    from oyez.brokers.memory.broker import MemoryBroker

    return MemoryBroker(ambient, partitions=partitions)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, the one of this process; see `oyez.sites.Site`."""
    if url.partition(":")[2]:
        raise ConfigurationError(f"{redact(url)}: expected memory: and nothing behind it")
    return "memory:"
