"""What the replicas of a gateway share: the file, the database or the Redis of ``gateway.store``.

Each part of the gateway that keeps something there opens it for itself, and has tables whose names
begin with ``oyez_gateway_``, or keys that begin with ``oyez:gateway:``. Nothing is opened unless
something uses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.config import Config
from oyez.endpoint import Endpoint, located

if TYPE_CHECKING:
    from oyez.brokers.redis.connection import Connection as RedisConnection
    from oyez.postgresql import PostgresServer
    from oyez.sqlite import SqliteFile

_POSTGRESQL_PORT = 5432
_REDIS_PORT = 6379


def scheme(config: Config) -> str:
    """Return the kind of store that is set: ``sqlite``, ``postgresql``, ``redis`` or ``rediss``."""
    return _url(config).partition(":")[0]


def place(config: Config) -> Path | None:
    """Return where the SQLite file is; None for another kind of store."""
    url = _url(config)
    return Path(located(url, config.root)) if url.startswith("sqlite:") else None


def sqlite_file(config: Config) -> SqliteFile:
    """Return the SQLite file, not opened yet.

    Its parts share it, so it has no version, and each makes its tables if they are missing.
    """
    from oyez.sqlite import SqliteFile

    return SqliteFile(Path(located(_url(config), config.root)), steps=())


def postgres_server(config: Config, ambient: Ambient) -> PostgresServer:
    """Return the PostgreSQL server, not connected yet. Raises ConfigurationError."""
    with driver("oyez[postgresql]"):
        from oyez.postgresql import PostgresServer, ServerOptions
    endpoint = Endpoint(_url(config), port=_POSTGRESQL_PORT)
    return PostgresServer(endpoint, ambient, endpoint.options(ServerOptions))


def redis_connection(config: Config) -> RedisConnection:
    """Return the links to Redis, none of which is connected yet. Raises ConfigurationError."""
    with driver("oyez[redis]"):
        from oyez.brokers.redis.connection import Connection
        from oyez.brokers.redis.options import RedisOptions
    endpoint = Endpoint(_url(config), port=_REDIS_PORT)
    return Connection(endpoint, endpoint.options(RedisOptions))


async def reach(config: Config, ambient: Ambient) -> str:
    """Return what was reached, for people. Nothing is created or changed.

    Raises ConfigurationError, StoreError or BrokerError.
    """
    file = place(config)
    if file is not None:
        return f"{file}" if file.exists() else f"{file}, not created yet"
    if scheme(config) == "postgresql":
        server = postgres_server(config, ambient)
        try:
            async with server.connection() as connection:
                await connection.fetchval("select 1")
        finally:
            await server.close()
        return server.name
    redis = redis_connection(config)
    try:
        await redis.call([("PING",)])
    finally:
        await redis.close()
    return redis.url


def _url(config: Config) -> str:
    if config.gateway is None:
        raise ValueError(config)
    return config.gateway.store
