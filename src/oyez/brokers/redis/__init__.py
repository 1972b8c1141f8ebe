"""Redis Streams: each partition is one stream, ``STREAM:P``, read by position.

A record is an entry with the fields ``key``, ``data`` and, for each CloudEvents attribute, ``ce_``
and its name. A producer in another language adds it to partition murmur2(key) mod P, where P
stands in the hash ``oyez:streams``; an entry without ``data`` is a tombstone. The consumer groups
are for display: their last-delivered-id follows what is committed, and ``XINFO GROUPS`` tells the
lag. Reading itself goes by position, so nothing is pending and nothing needs an ``XACK``.

Positions are entry ids: the milliseconds shifted left by 20 bits, and the sequence number.

::

    broker.py      the face, `oyez.ports.Broker`
    options.py     what the URL may set
    connection.py  a pool of links to the server, calls and their errors
    partition.py   what Redis tells about a partition: where it ends, what is trimmed
    reader.py      reading one partition by position, and waiting for what arrives
    wire.py        a record as an entry, and back
    inspection.py  what of the setup loses events
"""

from __future__ import annotations

from oyez.brokers.redis.broker import RedisBroker
from oyez.brokers.redis.options import RedisOptions

__all__ = ["RedisBroker", "RedisOptions"]
