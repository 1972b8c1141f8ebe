"""The step that begins flows: the answer says where to follow the work, or how it has ended.

By the standards (RFC 9110, RFC 8631, RFC 7240):

- An answer 2xx gets a ``Link`` with ``rel="status"`` to the flow.
- 201 stays 201, and the service's own ``Location`` stays; any other 2xx becomes 202, with the flow
  as its ``Location`` where the service named none.
- With ``Prefer: wait=N`` the answer waits for the end: if that comes in time it is 200 with the
  status of the flow, else it is as without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from oyez.ambient import Ambient
from oyez.config import GatewaySettings, Route
from oyez.gateway.exchange import FLOW, ClientGone, Exchange, Filter, Refusal
from oyez.gateway.flows.ident import Begun, Seal, route_key
from oyez.gateway.flows.prefer import applied, preferred_wait
from oyez.gateway.flows.status import Ending, Status, url_of
from oyez.gateway.http1 import Headers
from oyez.gateway.step import Answer

_SAFE = ("GET", "HEAD", "OPTIONS")
_LARGEST = 65_536
"""Bytes of an answer that are held back until the end."""

_RETRY: Headers = [(b"retry-after", b"1")]
_LATE = Refusal(504, "gateway_timeout", "the answer was not accepted in time", _RETRY)

Wait = Callable[[Begun, Ending, float], Awaitable[Status | None]]
"""Waits for the end of a flow, at most so many seconds; None where too many wait."""
Show = Callable[[Exchange, Status, Headers], Awaitable[None]]
"""Answers with the status of a flow, and headers beside it."""


class Begins:
    """The step of routes whose work goes on after the answer."""

    def __init__(
        self, settings: GatewaySettings, ambient: Ambient, seal: Seal, wait: Wait, show: Show
    ) -> None:
        self._settings = settings
        self._ambient = ambient
        self._seal = seal
        self._wait = wait
        self._show = show

    def before(self, route: Route, onward: Answer) -> Answer:
        """Begin a flow with each request that changes something."""
        if not route.until:
            return onward
        ending = Ending.of(route)

        async def begin(exchange: Exchange) -> None:
            if exchange.method in _SAFE:
                await onward(exchange)
                return
            begun = self._begin(exchange, route)
            seconds = preferred_wait(exchange, self._settings.wait)
            answer = Held(exchange, begun, hold=seconds > 0)
            await onward(answer)
            if not answer.passed:
                if not answer.complete:
                    raise _broken()
                await self._ended(exchange, answer, ending, seconds)

        return begin

    def _begin(self, exchange: Exchange, route: Route) -> Begun:
        uuid = self._ambient.new_id()
        exchange.request_id = FLOW + uuid
        return self._seal.close(uuid, route_key(exchange.method, route.path), exchange.principal)

    async def _ended(self, exchange: Exchange, answer: Held, ending: Ending, seconds: int) -> None:
        exchange.within(None, _LATE)
        status = await self._wait(answer.begun, ending, seconds)
        exchange.within(self._settings.timeout, _LATE)
        if status is None or status.state != "done":
            await answer.pass_on(applied(seconds) if status is not None else [])
            return
        await self._show(exchange, status, [*answer.besides(), *applied(seconds)])


class Held(Exchange):
    """The same request, whose answer says where its flow is; it may be held back until that ends.

    Only a success is held, and none that has more than `_LARGEST` bytes.
    """

    def __init__(self, exchange: Exchange, begun: Begun, *, hold: bool) -> None:
        self.same(exchange)
        self.begun = begun
        self.passed = False
        """Whether the answer has gone to the client."""
        self._outer = exchange
        self._hold = hold
        self._answered: Headers = []
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def interruption(self) -> Refusal | ClientGone | None:
        """Why the work on the request was cancelled."""
        return self._outer.interruption

    async def body(self) -> bytes:
        """See :class:`Exchange`."""
        return await self._outer.body()

    def within(self, seconds: float | None, late: Refusal) -> None:
        """See :class:`Exchange`."""
        self._outer.within(seconds, late)

    def interrupt(self, cause: Refusal | ClientGone) -> None:
        """See :class:`Exchange`."""
        self._outer.interrupt(cause)

    def through(self, filter: Filter) -> None:  # noqa: A002
        """See :class:`Exchange`."""
        self._outer.through(filter)

    def say(self, name: bytes, value: bytes) -> None:
        """See :class:`Exchange`."""
        self._outer.say(name, value)

    def start(self, status: int, headers: Headers) -> None:
        """Hold the answer back, or let it pass to the client."""
        self.status, self._answered = status, headers
        if not self._hold or not 200 <= status < 300:
            self._pass_on([])

    async def write(self, content: bytes) -> None:
        """Hold the next part, or let it pass."""
        if self.passed:
            await self._outer.write(content)
        elif not self._is_held(content):
            self._pass_on([])
            await self._outer.write(b"".join(self._parts))

    async def end(self, content: bytes = b"") -> None:
        """Hold the last part, or let it pass."""
        if self.passed:
            await self._outer.end(content)
        elif not self._is_held(content):
            await self.pass_on([])
        self.complete = True

    async def pass_on(self, headers: Headers) -> None:
        """Let what was held pass, with headers beside its own."""
        self._pass_on(headers)
        await self._outer.end(b"".join(self._parts))

    def besides(self) -> Headers:
        """Return the headers of the service's answer that are not about its body, and the link."""
        kept = [header for header in self._answered if not _is_of_body(header[0])]
        return [*kept, self._link()]

    def _is_held(self, content: bytes) -> bool:
        """Hold a part; return whether all of them are not too large for that."""
        self._parts.append(content)
        self._size += len(content)
        return self._size <= _LARGEST

    def _pass_on(self, headers: Headers) -> None:
        self.passed = True
        if not 200 <= self.status < 300:
            self._outer.start(self.status, self._answered)
            return
        names = dict(self._answered)
        added = [*headers, self._link()]
        if self.status != 201 and b"location" not in names:
            added.append((b"location", url_of(self.begun).encode()))
        if self.status in (204, 205) and b"content-length" not in names:
            added.append((b"content-length", b"0"))
        self._outer.start(201 if self.status == 201 else 202, [*self._answered, *added])

    def _link(self) -> tuple[bytes, bytes]:
        return b"link", f'<{url_of(self.begun)}>; rel="status"'.encode()


def _is_of_body(name: bytes) -> bool:
    """Return whether a header says what the body of its answer is."""
    return name.startswith(b"content-") or name in (b"etag", b"last-modified", b"accept-ranges")


def _broken() -> Refusal:
    return Refusal(502, "service_broken", "the service's answer broke off", _RETRY)
