"""Requests that are safe to repeat: the answer to an ``Idempotency-Key`` is given again.

What happens to a request with a key, on a route that asks for it::

    new ──► in progress ──► answered ──► expired
               │    ▲
               ▼    │ the same payload again
            released: not answered for good, or its gateway was killed

A request begins an entry, or finds one: answered, its answer is given again; in progress, it is
refused (409); with another payload, it is refused (422). An entry in progress belongs to the
gateway that began it for as long as that renews its lease. What became of the work of a gateway
that was killed is not known here: the repeat goes to the service, whose transaction is the judge.

The answer is stored before its first byte goes to the client. So what any client has seen is what
every repeat is given.

::

    step.py        the step on a request's way
    key.py         the header, read
    entry.py       an entry, what is found of it, and the protocol of the stores
    sqlite.py      entries in a SQLite file
    postgresql.py  entries in PostgreSQL
    redis.py       entries in Redis
"""

from __future__ import annotations

from functools import partial

from oyez.ambient import Ambient
from oyez.config import Config
from oyez.gateway import store
from oyez.gateway.idempotency.entry import Entries
from oyez.gateway.idempotency.step import Idempotency

__all__ = ["Idempotency", "entries", "idempotency"]


def idempotency(config: Config, ambient: Ambient) -> Idempotency:
    """Return the step, not opened yet."""
    return Idempotency(config, ambient, partial(entries, config, ambient))


def entries(config: Config, ambient: Ambient) -> Entries:
    """Return the entries in the gateway's store, not opened yet. Raises ConfigurationError."""
    settings = config.gateway
    if settings is None:
        raise ValueError(config)
    kept = settings.idempotency
    match store.scheme(config):
        case "sqlite":
            from oyez.gateway.idempotency.sqlite import SqliteEntries

            return SqliteEntries(store.sqlite_file(config), ambient, kept)
        case "postgresql":
            from oyez.gateway.idempotency.postgresql import PostgresEntries

            return PostgresEntries(store.postgres_server(config, ambient), kept)
        case _:
            from oyez.gateway.idempotency.redis import RedisEntries

            return RedisEntries(store.redis_connection(config), kept)
