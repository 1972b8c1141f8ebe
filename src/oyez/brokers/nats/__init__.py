"""NATS JetStream: a stream of ours is one of JetStream's, its partitions are its subjects.

The stream ``shop.orders`` is JetStream's ``shop_orders`` on the subjects ``shop.orders.0`` to
``shop.orders.7``; how many there are is its number of partitions. A producer in another language
publishes to ``STREAM.`` and murmur2(key) mod P as Kafka computes it, with CloudEvents headers
(``ce-id`` …) or one structured event, and waits for JetStream's acknowledgement. A subject beyond
the last partition has no stream, so that such a record is refused rather than lost.

Positions are JetStream's sequence numbers. A stream that we make starts at the microseconds since
1970: a stream created again under an old name has higher positions, so old ones are detected.

::

    broker.py      the face, `oyez.ports.Broker`
    options.py     what the URL may set
    connection.py  what connects, and connects again
    link.py        one socket, and the client protocol on it
    jetstream.py   what is asked of JetStream
    publisher.py   publishing to one stream, in order
    reader.py      reading one partition by position
    wire.py        a record as a message, and back
    inspection.py  what of the setup loses events
"""

from __future__ import annotations

from pathlib import Path

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.ports import Broker

PORT = 4222


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return the broker at a URL, not opened yet; see `oyez.brokers.Connect`."""
    with driver("oyez[nats]"):
        from oyez.brokers.nats.broker import NatsBroker
        from oyez.brokers.nats.options import NatsOptions
    endpoint = Endpoint(url, port=PORT)
    options = endpoint.options(NatsOptions, partitions=partitions, retention=retention)
    return NatsBroker(endpoint, ambient, options, group)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its account; see `oyez.sites.Site`."""
    # The user determines the account, and accounts are isolated from each other.
    endpoint = Endpoint(url, port=PORT)
    return f"nats://{endpoint.user or ''}@{endpoint.servers}/{endpoint.path}"
