"""``/openapi.json`` and ``/reference``: made of what the services say when somebody asks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from oyez import strict_json
from oyez.ambient import Ambient
from oyez.config import Config, Listen, OpenapiSettings, Route
from oyez.config.checks import DESCRIPTIONS
from oyez.errors import InvalidEvent
from oyez.gateway.exchange import Exchange
from oyez.gateway.openapi.merged import Allowed, Description, Node, Unusable, merged
from oyez.gateway.step import Answer
from oyez.gateway.upstream import Broken, Unreachable

if TYPE_CHECKING:
    from oyez.gateway.openapi.page import Page

Fetch = Callable[[str, Listen, str, int], Awaitable[tuple[int, bytes]]]
"""See :meth:`oyez.gateway.forward.Forwarder.fetch`."""

MOST_BYTES = 1024 * 1024
"""Bytes of one service's description."""
FRESH = 60.0
"""Seconds after which the services are asked again."""
FRESH_IN_PART = 5.0
"""The same, where one of them was left out."""

_JSON = (b"content-type", b"application/json")


class _Made(NamedTuple):
    document: Node
    body: bytes
    until: float


class Openapi:
    """What the routes let through, as OpenAPI and as a page. ``fetch`` asks a service."""

    def __init__(
        self, config: Config, settings: OpenapiSettings, ambient: Ambient, fetch: Fetch
    ) -> None:
        assert config.gateway is not None
        self._gateway = config.gateway
        self._settings = settings
        self._title = settings.title or config.system.name
        self._ambient = ambient
        self._fetch = fetch
        named = dict.fromkeys(route.service for route in config.gateway.routes)
        found = {name: config.services[name].reached_at() for name in named}
        self._addresses = {name: address for name, address in found.items() if address is not None}
        self._allowed = Allowed(config.gateway.routes)
        self._made = _Made({}, b"", -math.inf)
        self._making: asyncio.Task[None] | None = None
        self._page: Page | None = None

    def resources(self) -> Iterable[tuple[Route, Answer]]:
        """Return what the gateway has of its own for it, as routes, and what answers there."""
        for path, answer in zip(DESCRIPTIONS, (self._document, self._reference), strict=True):
            yield Route(path=path, service="", access=self._settings.access, compress=True), answer

    async def open(self) -> None:
        """Do nothing: the services are asked when somebody asks."""

    async def close(self) -> None:
        """Ask the services no more."""
        if self._making is not None:
            self._making.cancel()

    async def _document(self, exchange: Exchange) -> None:
        await exchange.body()
        made = await self._present()
        await exchange.plain(200, [_JSON], made.body)

    async def _reference(self, exchange: Exchange) -> None:
        await exchange.body()
        made = await self._present()
        if self._page is None:
            # Loaded when the first page is asked for: it takes time and memory.
            from oyez.gateway.openapi.page import Page

            self._page = Page()
        base = f"{exchange.scheme}://{exchange.host}"
        headers, body = await asyncio.to_thread(self._page.of, made.document, base)
        await exchange.plain(200, headers, body)

    async def _present(self) -> _Made:
        if self._ambient.monotonic() >= self._made.until:
            if self._making is None:
                # A task of its own: it goes on when the client whose request began it is gone.
                self._making = asyncio.create_task(self._make())
            await asyncio.shield(self._making)
        return self._made

    async def _make(self) -> None:
        try:
            asked = [self._ask(*each) for each in self._addresses.items()]
            found = dict(zip(self._addresses, await asyncio.gather(*asked), strict=True))
            # Some megabytes take a while, in which other requests are to go on.
            document, body, whole = await asyncio.to_thread(self._merge, found)
            until = self._ambient.monotonic() + (FRESH if whole else FRESH_IN_PART)
            self._made = _Made(document, body, until)
        finally:
            self._making = None

    async def _ask(self, service: str, address: Listen) -> bytes | Unusable:
        try:
            status, content = await self._fetch(
                service, address, self._settings.document, MOST_BYTES
            )
        except (Unreachable, Broken, TimeoutError):
            return Unusable("its description can't be fetched")
        if status != 200:
            return Unusable(f"it has no description at {self._settings.document} ({status})")
        return content

    def _merge(self, found: dict[str, bytes | Unusable]) -> tuple[Node, bytes, bool]:
        described, left_out = [], {}
        for service, content in found.items():
            try:
                described.append(self._description(service, content))
            except Unusable as error:
                left_out[service] = f"{error}"
        document = merged(
            described,
            self._gateway,
            title=self._title,
            version=self._settings.version,
            left_out=left_out,
        )
        return document, msgspec.json.encode(document), not left_out

    def _description(self, service: str, content: bytes | Unusable) -> Description:
        if isinstance(content, Unusable):
            raise content
        try:
            document = strict_json.read(content, most=MOST_BYTES)
        except InvalidEvent as error:
            raise Unusable(f"its description {error.problem}") from None
        return Description(service, document, self._allowed)
