"""PostgreSQL as an append log: rows of one table, numbered without gaps in each partition.

An append takes the advisory locks of its partitions, always in the same order, and numbers its
records from the last one of each. So commit order is position order, a reader never passes a record
that is not committed yet, and publishers of different partitions do not wait for each other. There
is no row as a counter: each update would leave a dead version that the next one has to skip while
any old transaction is open (a backup, say). Calls of one process during an append are combined into
the next. Readers are woken by a notification after the commit, since one within it would serialize
all commits of the server; they also poll the ends of all partitions, slowly.

A producer in another language calls one function, also in a transaction of its own, and receives
the position; the function computes the partition from the key as Kafka does. While that transaction
is open, other publishers to the same partition wait::

    select oyez.publish('shop.orders', 'order-1', '{"specversion": "1.0", …}', '{"total": 5}')

``record.headers`` is a JSON object of CloudEvents attributes in UTF-8, ``key`` is UTF-8, ``data``
is null for a tombstone; ``progress`` shows what each consumer group has handled, for tools such as
KEDA. ``select oyez.forget_stream('shop.orders')`` deletes a stream.

::

    broker.py      the `oyez.ports.Broker`
    options.py     the options of the URL
    schema.py      the tables, and the functions that append and delete
    connection.py  statements, and the creation of the schema
    ends.py        the known ends of partitions, and the readers that wait for more
    publisher.py   appending, and notifying other processes
    reader.py      reading one partition by position
    wire.py        a record as a row, and back
"""

from __future__ import annotations

from pathlib import Path

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.ports import Broker

PORT = 5432


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return the broker at a URL, not opened yet; see `oyez.brokers.Connect`."""
    with driver("oyez[postgresql]"):
        from oyez.brokers.postgres.broker import PostgresBroker
        from oyez.brokers.postgres.options import PostgresOptions
    endpoint = Endpoint(url, port=PORT)
    options = endpoint.options(PostgresOptions, partitions=partitions, retention=retention)
    return PostgresBroker(endpoint, ambient, options, group)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its schema; see `oyez.sites.Site`."""
    # Without a database in the URL it is that of the environment, or that named as the user.
    endpoint = Endpoint(url, port=PORT)
    database = endpoint.path or f"?{endpoint.user or ''}"
    return f"postgresql://{endpoint.servers}/{database}/{endpoint.given.get('schema', 'oyez')}"
