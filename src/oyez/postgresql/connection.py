"""How the server is reached, and one connection to it."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Literal

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from oyez.endpoint import Count, Endpoint, Seconds, Tls

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

Ssl = ssl.SSLContext | Literal["prefer", "require", False]

PORT = 5432

_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


class ServerOptions(Tls, frozen=True, kw_only=True):
    """How PostgreSQL is reached."""

    schema: str = "oyez"
    """The schema that holds the tables; it is made when it is missing."""
    deadline: Seconds = 10.0
    """Seconds after which a call gives up as unavailable."""
    connections: Count = 8
    """Connections for calls, at most; one more listens."""
    sslmode: Literal["disable", "prefer", "require", "verify-full"] | None = None
    """As in PostgreSQL; ``verify-full`` when ``cafile`` is given, else ``prefer``."""
    listen: str = ""
    """HOST:PORT past a pooler, to hear of changes; ``poll`` never listens, only looks."""
    application_name: str = "oyez"
    """What pg_stat_activity shows."""


class Address:
    """Opens connections to one server."""

    def __init__(self, endpoint: Endpoint, options: ServerOptions) -> None:
        """Nothing is connected yet. Raises ConfigurationError."""
        if not _SCHEMA.fullmatch(options.schema):
            raise endpoint.error(
                f"option schema: expected 1 to 40 letters, digits or _, found {options.schema!r}"
            )
        self.name = ", ".join(f"{host}:{port}" for host, port in endpoint.hosts)
        """The server for people."""
        self._options = options
        self._endpoint = endpoint
        self._past_pooler = endpoint.hosts
        if options.listen not in ("", "poll"):
            self._past_pooler = Endpoint(f"{endpoint.scheme}://{options.listen}", port=PORT).hosts
        self._ssl: Ssl = _ssl(options)

    async def connect(self, *, cache: int, past_pooler: bool = False) -> Connection:
        """Connect and keep up to ``cache`` statements prepared. Raises what the driver does."""
        hosts = self._past_pooler if past_pooler else self._endpoint.hosts
        hostnames: list[str] = [host for host, _ in hosts]
        ports: list[int] = [port for _, port in hosts]
        connection: Connection = await asyncpg.connect(
            host=hostnames,
            port=ports,
            user=self._endpoint.user,
            password=self._endpoint.password,
            database=self._endpoint.path or None,
            ssl=self._ssl,
            timeout=self._options.deadline,
            statement_cache_size=cache,
            server_settings={"application_name": self._options.application_name},
            target_session_attrs=SessionAttribute.primary if len(hosts) > 1 else None,
        )
        return connection


def _ssl(options: ServerOptions) -> Ssl:
    mode = options.sslmode or ("verify-full" if options.cafile is not None else "prefer")
    if mode == "verify-full":
        return options.context()
    if options.certfile is None:
        return False if mode == "disable" else mode
    context = options.context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
