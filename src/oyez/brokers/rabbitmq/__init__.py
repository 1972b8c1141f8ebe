"""RabbitMQ: each partition is a stream queue, read by offset over AMQP 0.9.1.

A stream ``shop.orders`` is the direct exchange ``shop.orders`` and one queue a partition,
``shop.orders.0``, ``shop.orders.1`` and so on, bound under its number; how many there are stands in
the stream queue ``oyez.streams`` as JSON, ``{"stream": "shop.orders", "partitions": 8}``, where
the first entry of a name counts. A producer in another language publishes to the exchange, with the
routing key ``(murmur2(KEY) & 0x7fffffff) mod PARTITIONS``, persistent, with the headers of the
CloudEvents AMQP binding (``cloudEvents:id`` …) and the key in ``cloudEvents:partitionkey`` or
``cloudEvents:subject``. A structured event has the content type ``application/cloudevents+json``.

A position is the stream's offset plus one; the server keeps notes of its own between the records,
so some are left out. RabbitMQ confirms a message of a stream when most
replicas have it, but leaves the flush to the system: an acknowledged record survives the crash of
a server. ``queue=quorum`` trades history for queues that are empty once all is handled: each
consumer group has queues of its own then, ``shop.orders.0@GROUP``, in every stream from the moment
the group is first opened; what was published before is not for it. Positions count on from what the
reader asked for, and `handled` deletes. RabbitMQ says that quorum queues flush before they confirm;
a power cut was not tried here, so no more than the crash of a server is promised for them either.

The time of a record is its publisher's clock (``timestamp_in_ms``, else ``timestamp``).

::

    broker.py      the face, `oyez.ports.Broker`
    options.py     what the URL may set
    connection.py  what connects, and connects again
    amqp.py        one socket, the protocol on it, and its channels
    registry.py    which streams and groups there are
    topology.py    exchanges and queues, and how they come to be
    publisher.py   publishing with confirms
    reader.py      reading one partition, over a tail of its queue
    tail.py        one consumer, which never holds more than so many bytes
    look.py        where a stream begins and ends, and what is in it by now
    wire.py        a record as a message, and back
    inspection.py  what of the setup loses events
"""

from __future__ import annotations

from pathlib import Path

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.ports import Broker

PORTS = {"amqp": 5672, "amqps": 5671}


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return the broker at a URL, not opened yet; see `oyez.brokers.Connect`."""
    with driver("oyez[rabbitmq]"):
        from oyez.brokers.rabbitmq.broker import RabbitMqBroker
        from oyez.brokers.rabbitmq.options import RabbitMqOptions
    endpoint = _endpoint(url)
    options = endpoint.options(RabbitMqOptions, partitions=partitions, retention=retention)
    return RabbitMqBroker(endpoint, ambient, options, group)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its virtual host; see `oyez.sites.Site`."""
    endpoint = _endpoint(url)
    return f"amqp://{endpoint.servers}/{endpoint.path or '/'}"


def _endpoint(url: str) -> Endpoint:
    return Endpoint(url, port=PORTS[url.partition(":")[0].lower()])
