"""What carries the events: one adapter a folder, behind `oyez.ports.Broker`; none knows another."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple, Protocol

from oyez import adapters
from oyez.ambient import Ambient
from oyez.brokers.claim_check import ClaimCheck, ClaimCheckOptions, open_storage
from oyez.errors import ConfigurationError
from oyez.ports import Broker


class Connect(Protocol):
    """What an entry point of ``oyez.brokers`` names; see `oyez.adapters`."""

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
        """The broker that the URL names, not opened yet; parameters as in `connect`."""
        ...


class _Server(NamedTuple):
    """Where the adapter for a kind of server is; it is imported when it is chosen."""

    module: str


_SERVERS = {
    "kafka": _Server("kafka"),
    "nats": _Server("nats"),
    "amqp": _Server("rabbitmq"),
    "amqps": _Server("rabbitmq"),
    "redis": _Server("redis"),
    "rediss": _Server("redis"),
    "sns+sqs": _Server("sns_sqs"),
    "postgresql": _Server("postgres"),
}


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
    """The broker that a URL names; nothing is opened yet.

    ``root`` is what a relative file is relative to, ``group`` the consumer group (SYSTEM.SERVICE)
    that reads; empty for whoever only looks. ``partitions`` is what new streams get, ``retention``
    is in seconds. ``claim_check`` is the URL of the storage for what is too large for the broker.
    Raises ConfigurationError for a scheme that has no adapter, an unknown option or an adapter
    whose driver is not installed.
    """
    broker = _connect(url, ambient, root, group, partitions, retention)
    if claim_check is None:
        return broker
    storage = open_storage(claim_check, ambient, root=root, retention=retention)
    return ClaimCheck(broker, storage, ambient, claims)


def _connect(
    url: str, ambient: Ambient, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    scheme, _, rest = url.partition(":")
    if scheme == "embedded":
        from oyez.brokers.embedded.broker import EmbeddedBroker
        from oyez.brokers.embedded.options import EmbeddedOptions

        options = EmbeddedOptions(partitions=partitions, retention=retention)
        return EmbeddedBroker(root / rest, ambient, options)
    if scheme == "memory":
        from oyez.brokers.memory.broker import MemoryBroker

        return MemoryBroker(ambient, partitions=partitions)
    server = _SERVERS.get(scheme)
    if server is None:
        make: Connect | None = adapters.load(adapters.BROKERS, scheme)
        if make is not None:
            return make(
                url, ambient, root=root, group=group, partitions=partitions, retention=retention
            )
        known = ", ".join(("embedded", "memory", *_SERVERS, *adapters.found(adapters.BROKERS)))
        raise ConfigurationError(f"system.broker: expected one of {known}, found {scheme!r}")
    adapter = importlib.import_module(f"oyez.brokers.{server.module}")
    made: Broker = adapter.connect(
        url, ambient, root=root, group=group, partitions=partitions, retention=retention
    )
    return made
