"""The status resources of flows: what became of a request, told to who sent it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from oyez.ambient import Ambient
from oyez.background import lasting
from oyez.config import Config, GatewaySettings, Route
from oyez.gateway import after
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.flows.begin import Begins
from oyez.gateway.flows.ident import Begun, Seal, route_key
from oyez.gateway.flows.index import Index, Records
from oyez.gateway.flows.prefer import applied, preferred_wait
from oyez.gateway.flows.status import PATH, Ending, Status
from oyez.gateway.flows.watch import Told
from oyez.gateway.http1 import Headers
from oyez.gateway.sessions import refuse_other_origins
from oyez.gateway.step import Answer
from oyez.gateway.tunnel import asks_for_websocket

BEAT = 15.0
"""Seconds of silence after which a watcher is told that the connection is open."""
GOODBYE = 1.0
"""Seconds that a WebSocket has to answer that it is closed."""
ROUTE = Route(path=PATH, service="", access="public")
"""How the status resources are reached: whose a flow is, its id says."""

_A_MOMENT = 0.01
"""Seconds past its time after which a flow has surely expired."""
_JSON = (b"content-type", b"application/json")
_STREAM: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_LATE = Refusal(504, "gateway_timeout", "the answer was not accepted in time")


class Flows:
    """Requests whose work goes on after the answer, until an event ends it."""

    def __init__(
        self, config: Config, settings: GatewaySettings, ambient: Ambient, secret: bytes,
        records: Records,
    ) -> None:  # fmt: skip
        self._system = config.system.name
        self._settings = settings
        self._ambient = ambient
        self._seal = Seal(secret)
        self._endings = {
            route_key(method, route.path): Ending.of(route)
            for route in settings.routes
            if route.until
            for method in route.methods
        }
        show = frozenset[str]().union(*(ending.show for ending in self._endings.values()))
        self._index = Index(ambient, records, show=show, watchers=settings.watchers)
        self._begins = Begins(settings, ambient, self._seal, self._wait, self._show)
        self._reading: asyncio.Task[None] | None = None

    @property
    def watchers(self) -> int:
        """How many clients wait for more of a flow."""
        return self._index.watchers

    async def open(self) -> None:
        """Begin to read the events of flows."""
        reading = lasting("the events of flows", self._index.read, self._ambient)
        self._reading = asyncio.create_task(reading, name="flows")

    def drain(self) -> None:
        """End those who wait, so that they ask another gateway."""
        self._index.drain()

    async def close(self) -> None:
        """Read no more. Safe to call twice."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def before(self, route: Route, onward: Answer) -> Answer:
        """See :class:`Begins`."""
        return self._begins.before(route, onward)

    async def answer(self, exchange: Exchange) -> None:
        """``GET /flows/{id}``: the flow as JSON, as server-sent events, or by WebSocket."""
        given = exchange.path.decode("latin-1").removeprefix(PATH).removeprefix("/")
        begun = self._seal.open(given, exchange.principal)
        ending = self._endings.get(begun.route) if begun is not None else None
        if begun is None or ending is None:
            raise Refusal(404, "not_found", "there is no such flow of yours")
        await exchange.body()
        if exchange.method == "GET" and asks_for_websocket(exchange.fields):
            await self._talk(exchange, begun, ending)
        elif exchange.method == "GET" and _accepts_a_stream(exchange.values(b"accept")):
            await self._stream(exchange, begun, ending)
        else:
            await self._tell(exchange, begun, ending)

    async def _status(self, begun: Begun, ending: Ending) -> Status:
        flow = await self._index.find(begun)
        return Status(begun, ending, flow, self._system, self._ambient.now())

    async def _wait(self, begun: Begun, ending: Ending, seconds: float) -> Status | None:
        """Return the status once the flow is over, or after so many seconds.

        None where too many wait already.
        """
        end = self._ambient.monotonic() + seconds
        try:
            with self._index.watching(begun) as changed:
                while True:
                    changed.clear()
                    status = await self._status(begun, ending)
                    left = end - self._ambient.monotonic()
                    if status.over or self._index.draining or left <= 0:
                        return status
                    await self._until(changed, min(left, self._pause(status)))
        except Refusal:
            return None

    async def _until(self, changed: asyncio.Event, seconds: float) -> bool:
        """Wait until there may be more to tell; return whether there may, after so many seconds."""
        try:
            async with self._ambient.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    async def _tell(self, exchange: Exchange, begun: Begun, ending: Ending) -> None:
        seconds = preferred_wait(exchange, self._settings.wait)
        status = None
        if seconds:
            exchange.within(None, _LATE)
            status = await self._wait(begun, ending, seconds)
            exchange.within(self._settings.timeout, _LATE)
        headers = applied(seconds) if status is not None else []
        await self._show(exchange, status or await self._status(begun, ending), headers)

    async def _show(self, exchange: Exchange, status: Status, headers: Headers) -> None:
        """Answer with a status; a view that is read then shows what ended the flow."""
        own = [_JSON, (b"content-location", status.url.encode())]
        if not status.over:
            own.append((b"retry-after", b"%d" % status.pause))
        body = msgspec.json.encode(status.document())
        await exchange.plain(200, [*own, *_with_token(exchange, headers, status.token)], body)

    async def _stream(self, exchange: Exchange, begun: Begun, ending: Ending) -> None:
        told = Told(exchange.value(b"last-event-id") or "")
        with self._index.watching(begun) as changed:
            status = await self._status(begun, ending)
            if told.over and status.over:
                await exchange.plain(204, [])  # so that a browser does not come back
                return
            exchange.within(None, _LATE)
            exchange.start(200, [*_STREAM, *_with_token(exchange, [], status.token)])
            await exchange.write(b"retry: 1000\n\n")
            while True:
                messages = told.next(status)
                if messages:
                    await exchange.write(b"".join(each.as_event() for each in messages))
                if status.over or self._index.draining:
                    break
                if not await self._until(changed, self._pause(status)):
                    await exchange.write(b": still here\n\n")
                changed.clear()
                status = await self._status(begun, ending)
        await exchange.end()

    async def _talk(self, exchange: Exchange, begun: Begun, ending: Ending) -> None:
        # Loaded when it is first used: most gateways never are.
        from oyez.gateway.websocket import GOING_AWAY, NORMAL, WebSocket

        refuse_other_origins(exchange, self._settings.friends)
        told = Told("")
        with self._index.watching(begun) as changed:
            socket = WebSocket(self._ambient, changed)
            socket.open(exchange)
            exchange.within(None, _LATE)
            while not socket.closed:
                changed.clear()
                status = await self._status(begun, ending)
                for message in told.next(status):
                    await socket.send(message.as_text(), self._settings.timeout)
                if status.over or self._index.draining:
                    socket.close(NORMAL if status.over else GOING_AWAY)
                elif not await self._until(changed, self._pause(status)):
                    if self._ambient.monotonic() - socket.heard > 3 * BEAT:
                        socket.abort()
                    socket.ping()
        exchange.complete = True
        await socket.goodbye(GOODBYE)

    def _pause(self, status: Status) -> float:
        """Return the seconds after which there is something to tell, if only that all is well."""
        left = status.expires - self._ambient.now()
        return min(BEAT, left + _A_MOMENT) if left > 0 else BEAT


def _accepts_a_stream(accept: Iterable[str]) -> bool:
    kinds = [each.partition(";")[0].strip().lower() for each in ",".join(accept).split(",")]
    return "text/event-stream" in kinds


def _with_token(exchange: Exchange, headers: Headers, token: str) -> Headers:
    """Return headers with what a client's next requests are to have read: one token of all."""
    if not token:
        return headers
    answered = [value for name, value in headers if name == after.HEADER] + [token.encode()]
    cookie = after.COOKIE.encode() + b"="
    kept = [
        (name, value)
        for name, value in headers
        if name != after.HEADER and not (name == b"set-cookie" and value.startswith(cookie))
    ]
    named = (after.HEADER, b", ".join(answered))
    return [*kept, named, *after.cookie_for(exchange, answered)]
