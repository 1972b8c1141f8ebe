"""Apache Kafka: a stream is a topic, a position is the offset behind a record.

A producer in another language writes binary or structured CloudEvents (Kafka protocol binding
1.0.2) with the key as the message key. The default partitioner of Kafka's own clients computes
``murmur2(key) mod P`` as Oyez does; for clients of librdkafka set ``partitioner=murmur2_random``.
Positions belong to the service's own store; the consumer group's offsets only show them to
``kafka-consumer-groups`` and to scalers. Every topic that is not internal counts as a stream.

::

    broker.py      the face, `oyez.ports.Broker`
    options.py     what the URL may set
    connection.py  the settings of the driver that follow from it, and its errors
    cluster.py     what is asked of the cluster as a whole: topics, offsets, configuration
    publisher.py   one producer: in order, or not at all
    reader.py      one consumer for many readers
    wire.py        a record as a Kafka message, and back
    inspection.py  what of a cluster's configuration loses events
"""

from __future__ import annotations

from pathlib import Path

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.ports import Broker

PORT = 9092


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return the broker at a URL, not opened yet; see `oyez.brokers.Connect`."""
    with driver("oyez[kafka]"):
        from oyez.brokers.kafka.broker import KafkaBroker
        from oyez.brokers.kafka.options import KafkaOptions
    endpoint = Endpoint(url, port=PORT)
    options = endpoint.options(KafkaOptions, partitions=partitions, retention=retention)
    return KafkaBroker(endpoint, ambient, options, group)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its cluster; see `oyez.sites.Site`."""
    endpoint = Endpoint(url, port=PORT)
    return f"kafka://{endpoint.servers}/{endpoint.path}"
