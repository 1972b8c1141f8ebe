"""One PostgreSQL server: under the broker and the store that live in it.

It promises: a bounded number of connections, and none that failed is used again; every piece of
work ends within its deadline; commits are on the disk when they return, also where the server's
default is ``synchronous_commit=off``; a listener connects again by itself; errors are StoreErrors,
without passwords or parameters in them.

A pooler such as PgBouncer is recognised by the process id that it makes up. Through one, no
statement stays prepared and nothing can be listened to: ``listen`` names an address that goes past.
"""

from oyez.postgresql.connection import PORT, Connection, ServerOptions
from oyez.postgresql.failures import as_broker_error
from oyez.postgresql.listener import KEEPALIVE, Listener
from oyez.postgresql.server import PostgresServer

__all__ = [
    "KEEPALIVE",
    "PORT",
    "Connection",
    "Listener",
    "PostgresServer",
    "ServerOptions",
    "as_broker_error",
]
