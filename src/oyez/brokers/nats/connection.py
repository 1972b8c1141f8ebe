"""What keeps a link to one of the servers: it connects again when that ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from oyez.ambient import Ambient
from oyez.background import unforeseen
from oyez.brokers.kit.calls import Deadline, Pauses
from oyez.brokers.kit.watch import stop
from oyez.brokers.nats.link import Link
from oyez.endpoint import Endpoint, mistrust
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable

STABLE = 1.0
"""Seconds after which a link that ends is created again without a pause."""


class Connection:
    """Keeps one link to the first of the servers that lets us in, and makes it anew when it ends.

    ``tls`` is the context to encrypt with, or None; ``first`` does so before the server's greeting.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ambient: Ambient,
        *,
        tls: Callable[[], ssl.SSLContext] | None,
        first: bool,
        deadline: float,
    ) -> None:
        self.url = endpoint.url
        """For people, without secrets."""
        self._endpoint = endpoint
        self._ambient = ambient
        self._tls = tls
        self._first = first
        self._deadline = deadline
        self._context: ssl.SSLContext | None = None
        self._link: Link | None = None
        self._attempt: asyncio.Future[Link] | None = None
        self._keeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to connect. Raises ConfigurationError when a certificate can't be read."""
        if self._keeper is None:
            self._context = self._tls() if self._tls is not None else None
            self._attempt = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep(), name=f"nats {self.url}")

    async def close(self) -> None:
        """Let go; waiting for a link is over."""
        keeper, self._keeper = self._keeper, None
        await stop(keeper)

    async def link(self) -> Link:
        """The link, or what comes of the attempt to make one that ends next.

        Raises BrokerUnavailable when none of the servers is in reach, BrokerRefused when they do
        not let us in.
        """
        link = self._link
        if link is not None and not link.ended.is_set():
            return link
        if self._attempt is None:
            raise BrokerUnavailable(f"{self.url} is not open")
        return await asyncio.shield(self._attempt)

    async def _keep(self) -> None:
        pauses = Pauses(self._ambient)
        try:
            while True:
                try:
                    link = await self._connect()
                except Exception as error:  # noqa: BLE001 - nobody else tries again
                    self._settle().set_exception(self._explain(error))
                    await pauses.wait()
                    continue
                self._link = link
                self._settle().set_result(link)
                since = self._ambient.monotonic()
                await link.ended.wait()
                if self._ambient.monotonic() - since < STABLE:
                    await pauses.wait()
                else:
                    pauses.failures = 0
        finally:
            attempt, self._attempt = self._attempt, None
            if attempt is not None and not attempt.done():
                attempt.set_exception(BrokerUnavailable(f"{self.url} is closed"))
                attempt.exception()
            if self._link is not None:
                self._link.end(f"{self.url} is closed")
                await self._link.ended.wait()

    def _settle(self) -> asyncio.Future[Link]:
        attempt = self._attempt
        assert attempt is not None
        attempt.add_done_callback(lambda done: done.exception())  # nobody need be waiting
        self._attempt = asyncio.get_running_loop().create_future()
        return attempt

    def _explain(self, error: Exception) -> BrokerError:
        if isinstance(error, BrokerError):
            return error
        unforeseen(f"nats {self.url}")
        return BrokerUnavailable(f"{self.url} is out of reach: {error!r}")

    async def _connect(self) -> Link:
        errors: list[BrokerError] = []
        hosts = self._endpoint.hosts
        turn = int(self._ambient.chance() * len(hosts))
        for host, port in hosts[turn:] + hosts[:turn]:
            try:
                return await self._connect_to(host, port)
            except BrokerError as error:
                errors.append(error)
        refused = [error for error in errors if isinstance(error, BrokerRefused)]
        if len(errors) == 1 or refused:
            raise (refused or errors)[0]
        raise BrokerUnavailable("; ".join(map(str, errors)))

    async def _connect_to(self, host: str, port: int) -> Link:
        place = f"{host}:{port}"
        link = Link(place)
        context = self._context
        try:
            async with Deadline(self._deadline / (2 * len(self._endpoint.hosts)), place):
                early = context if self._first else None
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: link, host, port, ssl=early)
                await link.greeted
                if context is not None and not self._first:
                    await link.encrypt(context, host)
                elif link.info.tls_required and context is None:
                    raise BrokerRefused(f"{place} asks for TLS: add tls=true to system.broker")
                link.greet(self._introduction())
                await link.accepted
        except ssl.SSLError as error:
            link.end()
            told = mistrust(error) or error.reason or error
            raise BrokerRefused(f"{place}: TLS failed: {told}") from error
        except OSError as error:
            link.end()
            raise BrokerUnavailable(
                f"{place} is out of reach: {error.strerror or error}"
            ) from error
        except BaseException:
            link.end()
            raise
        if not link.info.headers:
            link.end()
            raise BrokerRefused(
                f"{place}: NATS {link.info.version} has no headers: use 2.10 or newer"
            )
        link.keep_alive()
        return link

    def _introduction(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "name": "oyez",
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "verbose": False,
            "pedantic": False,
            "echo": False,
            "headers": True,
            "no_responders": True,
            "tls_required": self._context is not None,
        }
        user, password = self._endpoint.user, self._endpoint.password
        if password is not None:
            told |= {"user": user, "pass": password}
        elif user:
            told |= {"auth_token": user}
        return told
