"""A pool of links to one Redis server, which reconnects by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from redis.asyncio import Connection as Link
from redis.asyncio import SSLConnection
from redis.asyncio.connection import BlockingConnectionPool
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from oyez.brokers.kit.calls import Deadline
from oyez.brokers.redis.options import RedisOptions
from oyez.brokers.redis.wire import Command
from oyez.endpoint import Endpoint, mistrust
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable

__all__ = ["Connection", "Link"]

T = TypeVar("T")


class Connection:
    """The links to one server, for calls and for exclusive use."""

    def __init__(self, endpoint: Endpoint, options: RedisOptions) -> None:
        self.url = endpoint.url
        """The URL without secrets, for messages."""
        self._endpoint = endpoint
        self._deadline = options.deadline
        self._pool = _pool(endpoint, options)

    async def close(self) -> None:
        """Close every link; a later call connects again."""
        await self._pool.disconnect()

    async def call(self, commands: Sequence[Command], *, tolerant: bool = False) -> list[Any]:
        """Send commands in one round trip; return the replies in order.

        Raises BrokerError for the first that failed; ``tolerant`` returns a refusal as a reply.
        """
        return await self.guarded(self._exchange(commands, tolerant=tolerant))

    async def link(self) -> Link:
        """Return a link for exclusive use. Raises BrokerError."""
        link = _link_class(self._endpoint)(**self._pool.connection_kwargs)
        try:
            await self.guarded(link.connect())  # type: ignore[no-untyped-call]
        except BaseException:
            await link.disconnect(nowait=True)
            raise
        return link

    async def _exchange(self, commands: Sequence[Command], *, tolerant: bool) -> list[Any]:
        link = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        replies: list[Any] = []
        try:
            await link.send_packed_command(link.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(await link.read_response(disconnect_on_error=False))
                except ResponseError as error:
                    replies.append(error)
        finally:
            if len(replies) < len(commands):
                # Late replies would be taken for those to later commands of other callers.
                await link.disconnect(nowait=True)
            await self._pool.release(link)
        for reply in replies:
            if isinstance(reply, ResponseError) and not tolerant:
                raise reply
        return replies

    async def guarded(self, answer: Awaitable[T], *, silence: float = 0.0) -> T:
        """Return the reply of a link, at most ``silence`` seconds after the deadline.

        Raises BrokerError.
        """
        try:
            async with Deadline(self._deadline + silence, self.url):
                return await answer
        except (RedisError, OSError) as error:
            raise self.explain(error) from error
        except RuntimeError as error:
            # So uvloop calls a write to a connection that was reset, and the driver passes it on.
            raise self.explain(error) from error

    def explain(self, error: Exception) -> BrokerError:
        """Return the driver's error as a BrokerError."""
        if told := mistrust(error):
            return BrokerRefused(f"{self.url}: {told}")
        if isinstance(error, AuthenticationError | NoPermissionError):
            return BrokerRefused(f"{self.url}: {error}: check the URL's user and password")
        if isinstance(error, OutOfMemoryError):
            return BrokerUnavailable(f"{self.url} is out of memory: raise maxmemory, or trim")
        passing = isinstance(error, BusyLoadingError | ReadOnlyError)
        if isinstance(error, ResponseError) and not passing:
            return BrokerRefused(f"{self.url}: {error}")
        host, port = self._endpoint.hosts[0]
        return BrokerUnavailable(f"{self.url}: {host}:{port} is out of reach: {error}")


def _pool(endpoint: Endpoint, options: RedisOptions) -> BlockingConnectionPool:
    host, port = endpoint.hosts[0]
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "db": int(endpoint.path or 0),
        "username": endpoint.user or None,
        "password": endpoint.password,
        "socket_timeout": None,
        "socket_connect_timeout": options.deadline,
        "socket_keepalive": True,
        "protocol": 2,
        "client_name": "oyez",
    }
    if endpoint.scheme == "rediss":
        settings |= {
            "ssl_ca_certs": options.cafile,
            "ssl_certfile": options.certfile,
            "ssl_keyfile": options.keyfile,
            "ssl_check_hostname": True,
        }
    return BlockingConnectionPool(
        max_connections=options.connections,
        timeout=None,
        connection_class=_link_class(endpoint),
        **settings,
    )


def _link_class(endpoint: Endpoint) -> type[Link]:
    return SSLConnection if endpoint.scheme == "rediss" else Link
