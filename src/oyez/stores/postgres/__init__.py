"""PostgreSQL as a service's store: its own tables and Oyez's in one schema.

From its first read on, a transaction is exclusive, as on SQLite: it holds an exclusive lock of the
schema, which write-only transactions share. So what it read remains true until it commits, and no
handler gets a serialization failure. ``isolation=read-committed`` takes no such lock: then a
handler locks the rows it reads by ``select … for update``.

A commit is a few statements over sets of rows (`oyez.stores.postgres.changes`), whatever the number
of events, and mostly one call of a function that holds them (`oyez.stores.postgres.routine`).

::

    store.py       the face, `oyez.ports.Store`, and its transactions
    changes.py     what a commit writes, as statements over sets of rows
    routine.py     all of that, and the service's own statements, in one call
    lease.py       the lease of an owner, and what becomes of the dead
    schema.py      Oyez's tables
    statements.py  a service's own statements
"""

from __future__ import annotations

from pathlib import Path

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.ports import Store

PORT = 5432


def connect(url: str, ambient: Ambient, *, root: Path) -> Store:
    """Return the store at a URL, not opened yet; see `oyez.stores.Connect`."""
    with driver("oyez[postgresql]"):
        from oyez.stores.postgres.store import PostgresOptions, PostgresStore
    endpoint = Endpoint(url, port=PORT)
    return PostgresStore(endpoint, ambient, endpoint.options(PostgresOptions))
