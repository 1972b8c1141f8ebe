"""PostgreSQL as an append log: rows of one table, numbered without gaps in each partition.

An append takes the advisory locks of the partitions that it goes to, always in the same order, and
numbers on from the last record of each: so commit order is position order, a reader never passes a
record that is not committed yet, and publishers of different partitions do not wait for each other.
No row counts, since each change of one leaves a dead version behind that the next has to walk past
while any old transaction is open (a backup, say). Calls of one process that wait while an append is
under way go together into the next. Readers are told by a notification that is sent after the
commit, since one within it would make all commits of the server wait for each other; a slow look at
the ends of all partitions is the safety net.

A producer in another language calls one function, in a transaction of its own if it likes, and
gets the position; it computes the partition from the key as Kafka does. While that transaction is
open, others who publish to the same partition wait::

    select oyez.publish('shop.orders', 'order-1', '{"specversion": "1.0", …}', '{"total": 5}')

``record.headers`` is a JSON object of CloudEvents attributes in UTF-8, ``key`` is UTF-8, ``data``
is null for a tombstone; ``progress`` shows what each consumer group has handled, for tools such as
KEDA. ``select oyez.forget_stream('shop.orders')`` deletes a stream.

::

    broker.py      the face, `oyez.ports.Broker`
    options.py     what the URL may set
    schema.py      the tables, and the functions that append and delete
    connection.py  statements, and the schema that is made where it is missing
    ends.py        where partitions end, as far as is known, and who waits for more
    publisher.py   appending, and telling others of it
    reader.py      reading one partition by position
    wire.py        a record as a row, and back
"""

from __future__ import annotations

from oyez.brokers.postgres.broker import PostgresBroker
from oyez.brokers.postgres.options import PostgresOptions
from oyez.brokers.postgres.wire import MAX_BYTES

__all__ = ["MAX_BYTES", "PostgresBroker", "PostgresOptions"]
