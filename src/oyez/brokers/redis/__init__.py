"""Redis Streams: each partition is one stream, ``STREAM:P``, read by position.

A record is an entry with the fields ``key``, ``data`` and, for each CloudEvents attribute, ``ce_``
and its name. A producer in another language adds it to partition murmur2(key) mod P, where P
is in the hash ``oyez:streams``; an entry without ``data`` is a tombstone. The consumer groups are
for display: their last-delivered-id is the committed position, and ``XINFO GROUPS`` shows the lag.
Reading itself goes by position, so no entry is pending and none needs an ``XACK``.

Positions are entry ids: the milliseconds shifted left by 20 bits, and the sequence number.

::

    broker.py      the `oyez.ports.Broker`
    options.py     the options of the URL
    connection.py  a pool of links to the server, calls and their errors
    partition.py   the state of a partition: its end, and what is trimmed
    reader.py      reading one partition by position, and waiting for new entries
    wire.py        a record as an entry, and back
    inspection.py  the faults of the server's configuration
"""

from __future__ import annotations

from pathlib import Path

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.ports import Broker

PORT = 6379


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return the broker at a URL, not opened yet; see `oyez.brokers.Connect`."""
    with driver("oyez[redis]"):
        from oyez.brokers.redis.broker import RedisBroker
        from oyez.brokers.redis.options import RedisOptions
    endpoint = Endpoint(url, port=PORT)
    options = endpoint.options(RedisOptions, partitions=partitions, retention=retention)
    return RedisBroker(endpoint, ambient, options, group)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its database; see `oyez.sites.Site`."""
    endpoint = Endpoint(url, port=PORT)
    path = endpoint.path or "0"
    return f"redis://{endpoint.servers}/{int(path) if path.isdecimal() else path}"
