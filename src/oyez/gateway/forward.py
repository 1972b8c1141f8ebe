"""Forwards requests to services: headers are rewritten, the response is streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import lru_cache
from typing import Final

from oyez.ambient import Ambient
from oyez.config import GatewaySettings, Listen, Route
from oyez.gateway import after
from oyez.gateway.exchange import UNDERWAY, Beginning, Errand, Exchange, Refusal, raising
from oyez.gateway.health import Health
from oyez.gateway.http1 import AnswerHead, Fields, Headers
from oyez.gateway.sessions import COOKIE, HOST, LOGIN, cookies, refuse_other_origins
from oyez.gateway.step import Answer
from oyez.gateway.tunnel import CHANGES, Tunnels, asks_for_websocket, switches
from oyez.gateway.upstream import Broken, Disconnected, ServiceConnection, Unreachable, Upstream
from oyez.signals import Listener, RequestRepeated
from oyez.spans import Failure, Span, Tracer

# They belong to one connection, not to the request (RFC 9110, section 7.6.1).
_HOP_BY_HOP: Final = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
# The gateway sets them itself, or they are for the gateway alone.
_REPLACED: Final = {
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"proxy",
    b"traceparent",
    b"via",
    b"x-api-key",
    b"x-real-ip",
    b"x-request-id",
}
# With these a client names another method, path, host or address than those that were judged:
# frameworks and proxies believe some of them.
_OVERRIDING: Final = {
    b"cf-connecting-ip",
    b"client-ip",
    b"fastly-client-ip",
    b"true-client-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-host",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    b"x-original-forwarded-for",
    b"x-original-host",
    b"x-original-method",
    b"x-original-uri",
    b"x-original-url",
    b"x-override-url",
    b"x-remote-addr",
    b"x-remote-ip",
    b"x-rewrite-url",
}
_DROPPED: Final = _HOP_BY_HOP | _REPLACED | _OVERRIDING
_ANSWER_REPLACED: Final = {b"server", b"date", b"x-request-id"}
_WITH_BODY: Final = ("POST", "PUT", "PATCH")
_OURS: Final = (b"x-oyez-", b"x-forwarded-")
_REMEMBERED: Final = 256
_passing_on: Final[dict[bytes, bool]] = {}
_passing_back: Final[dict[bytes, bool]] = {}
"""Whether a header of that name is forwarded, to a service and to a client."""
_OUR_NAMES = (COOKIE, f"{HOST}{COOKIE}", LOGIN, f"{HOST}{LOGIN}", after.COOKIE)
_OUR_COOKIES: Final = frozenset(name.encode() for name in _OUR_NAMES)

# Twice is as good as once (RFC 9110, section 9.2.2).
_IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")

_RETRY: Headers = [(b"retry-after", b"1")]
_DRAINING = Refusal(503, "service_unavailable", "the gateway is about to stop", _RETRY)
_LATE = Refusal(504, "service_timeout", "the service did not answer in time", _RETRY)


class Target:
    """A route, and where its service is."""

    def __init__(self, route: Route, address: Listen, upstream: Upstream, health: Health) -> None:
        self.route = route
        self.address = address
        self.shown = f"{address}"
        self.upstream: Upstream = upstream
        self.health = health
        self.stream: bool = route.stream


class Forwarder:
    """A client of the services.

    It follows no redirect, keeps no cookie and uses no proxy: all addresses are from the
    configuration.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        ambient: Ambient,
        tracer: Tracer | None = None,
        tell: Listener | None = None,
    ) -> None:
        self._settings = settings
        self._timeout: float = settings.timeout
        self._ambient = ambient
        self._tracer = tracer
        self._tell = tell
        self._upstreams: dict[Listen, tuple[Upstream, Health]] = {}
        self._endless: set[Exchange] = set()
        self.tunnels = Tunnels(settings, ambient)
        """The WebSockets of clients with services."""

    def drain(self) -> None:
        """End endless responses, so that their clients connect to another gateway."""
        for exchange in self._endless:
            exchange.interrupt(_DRAINING)
        self.tunnels.drain()

    async def open(self) -> None:
        """Connect to nothing: a service is connected to when it is asked."""

    async def close(self) -> None:
        """Close the connections to the services."""
        for upstream, _ in self._upstreams.values():
            upstream.close()

    async def fetch(self, service: str, address: Listen, path: str, most: int) -> tuple[int, bytes]:
        """Return the status and the body of what a service has at a path, for the gateway itself.

        Raises :class:`Unreachable`, :class:`Broken`, also for more than ``most`` bytes, and
        ``TimeoutError``.
        """
        upstream, content = self._upstream(service, address)[0], b""
        request = f"GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: application/json\r\n\r\n"
        async with self._ambient.timeout(self._timeout):
            connection = upstream.kept() or await upstream.connect()
            try:
                answer = await connection.ask(request.encode(), to_head=False)
                while not connection.complete and len(content) <= most:
                    content += connection.take()
                    await connection.more()
                content += connection.take()
            finally:
                connection.release()
        if len(content) > most:
            raise Broken("too large")
        return answer.status, content

    def to(self, route: Route, address: Listen) -> Answer:
        """Return what answers the requests of a route: its service, at that address."""
        target = Target(route, address, *self._upstream(route.service, address))

        def send(exchange: Exchange) -> Awaitable[None]:
            return self._begin(exchange, target)

        def send_or_switch(exchange: Exchange) -> Awaitable[None]:
            if exchange.method == "GET" and asks_for_websocket(exchange.fields):
                return self._switch(exchange, target)
            return self._begin(exchange, target)

        return send_or_switch if route.websocket else send

    def _begin(self, exchange: Exchange, target: Target) -> Awaitable[None]:
        """Send a request; where nothing has to be waited for, its answer is left to an errand."""
        if not exchange.unawaited or target.stream or target.health.state != "closed":
            return self._forward(exchange, target)
        body = exchange.whole_body()
        if body is None:
            return self._forward(exchange, target)
        target.health.admit(exchange)
        exchange.within(self._timeout, _LATE)
        connection = target.upstream.kept()
        if connection is None:
            return self.go_on(exchange, target, body)
        request = _request(exchange, target, body, exchange.traceparent)
        errand = _Forwarding(self, exchange, target, body, connection)
        exchange.leave(errand)
        connection.send(request, to_head=exchange.method == "HEAD", heard=errand.heard)
        return UNDERWAY

    async def _forward(self, exchange: Exchange, target: Target) -> None:
        body = await exchange.body()
        target.health.admit(exchange)
        exchange.within(self._timeout, _LATE)
        await self.go_on(exchange, target, body)

    async def go_on(
        self,
        exchange: Exchange,
        target: Target,
        body: bytes,
        asked: ServiceConnection | None = None,
    ) -> None:
        """Respond with the service's response; raises :class:`Refusal` (502, 503, 504).

        ``asked`` is the connection by which the request was sent already.

        If the service disconnects halfway, the response remains incomplete and the client's
        connection is closed; before that, an idempotent request is sent once more. If the client
        disconnects, so does the gateway.
        """
        upstream, health = target.upstream, target.health
        if target.stream:
            self._endless.add(exchange)
        span = self._begin_span(exchange, target)
        parent = exchange.traceparent if span is None else span.traceparent
        request = _request(exchange, target, body, parent)
        repeated = False
        try:
            while True:
                connection = asked or (None if repeated else upstream.kept())
                if connection is None:
                    connection = await upstream.connect()
                try:
                    if asked is None:
                        connection.send(request, to_head=exchange.method == "HEAD")
                    asked = None
                    if exchange.interruption is not None:
                        raise asyncio.CancelledError
                    answer = await connection.answered()
                    if health.failing:
                        health.well()
                    if target.stream:
                        exchange.within(None, _LATE)
                    await _pass_back(exchange, target, answer, connection)
                    return
                except Disconnected:
                    if repeated or not self._may_repeat(exchange, target):
                        raise
                    repeated = True
                finally:
                    connection.release()
        except Unreachable:
            health.failed(exchange)
            raise _unreachable() from None
        except Broken:
            if not exchange.status:
                health.failed(exchange)
                raise _broken() from None
        except asyncio.CancelledError:
            if exchange.interruption is _LATE and not exchange.status:
                health.failed(exchange)
            if exchange.interruption is not _DRAINING or not exchange.status:
                raise
            await exchange.end()
        finally:
            self._endless.discard(exchange)
            if health.failing:
                health.ended(exchange)
            if span is not None:
                self._end_span(exchange, span)

    def _may_repeat(self, exchange: Exchange, target: Target) -> bool:
        """Return whether a request that was broken off is sent once more, and tell if so.

        That is one whose method is idempotent, of whose answer nothing was passed on.
        """
        if exchange.status or exchange.method not in _IDEMPOTENT or not target.health.may_repeat():
            return False
        if self._tell is not None:
            self._tell(RequestRepeated(service="gateway", route=target.route.path))
        return True

    async def _switch(self, exchange: Exchange, target: Target) -> None:
        """Have the service change to WebSocket, and carry what both sides send.

        Raises :class:`Refusal` as `_send` does, and where the page of another site asks.
        """
        refuse_other_origins(exchange, self._settings.friends)
        if exchange.unread:
            raise Refusal(400, "unexpected_body", "a request for a WebSocket has no body")
        with self.tunnels.counted():
            health = target.health
            health.admit(exchange)
            exchange.within(self._timeout, _LATE)
            span = self._begin_span(exchange, target)
            parent = exchange.traceparent if span is None else span.traceparent
            try:
                connection = await target.upstream.connect()
                try:
                    request = _switching(_request(exchange, target, b"", parent))
                    answer = await connection.ask(request, to_head=False, switches=True)
                    if health.failing:
                        health.well()
                    if answer.status == 101:
                        await self._carry(exchange, target, answer, connection)
                    else:
                        await _pass_back(exchange, target, answer, connection)
                finally:
                    if exchange.status != 101:
                        connection.release()
            except Unreachable:
                health.failed(exchange)
                raise _unreachable() from None
            except Broken:
                if not exchange.status:
                    health.failed(exchange)
                    raise _broken() from None
            finally:
                if health.failing:
                    health.ended(exchange)
                if span is not None:
                    self._end_span(exchange, span)

    async def _carry(
        self, exchange: Exchange, target: Target, answer: AnswerHead, connection: ServiceConnection
    ) -> None:
        if not switches(answer):
            raise Broken("a change to another protocol")
        exchange.within(None, _LATE)
        headers = [*CHANGES, *_for_the_client(exchange, target, answer.fields)]
        await self.tunnels.carry(exchange, connection, headers)

    def _begin_span(self, exchange: Exchange, target: Target) -> Span | None:
        if self._tracer is None:
            return None
        host, port = target.address.host, target.address.port
        return self._tracer.ask(
            exchange.method,
            target.route.path,
            host,
            port,
            exchange.traceparent,
            exchange.tracestate,
            self._ambient.now(),
        )

    def _end_span(self, exchange: Exchange, span: Span) -> None:
        status = exchange.status  # the service's, once its answer has begun
        failure = None
        if not exchange.complete:
            failure = Failure("incomplete" if status else "no_answer")
        elif status >= 400:
            failure = Failure(str(status))
        found = {"http.response.status_code": status} if status else {}
        span.end(self._ambient.now(), failure, found)

    def _upstream(self, service: str, address: Listen) -> tuple[Upstream, Health]:
        found = self._upstreams.get(address)
        if found is None:
            upstream = Upstream(address, self._settings, self._ambient)
            found = upstream, Health(service, self._ambient, self._tell)
            self._upstreams[address] = found
        return found


class _Forwarding(Errand):
    """A request whose answer is passed back at once, as soon as all of it has arrived.

    An answer that comes in parts, or not at all, is waited for in a coroutine instead.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        exchange: Exchange,
        target: Target,
        body: bytes,
        connection: ServiceConnection,
    ) -> None:
        self._forwarder = forwarder
        self._exchange = exchange
        self._target = target
        self._body = body
        self._connection = connection

    def heard(self) -> None:
        """Pass on what the service has answered."""
        exchange, connection = self._exchange, self._connection
        answer = connection.answer
        if answer is None or not connection.complete or connection.failed:
            if answer is not None or connection.failed:
                self._wait()
            return
        if self._target.health.failing:
            self._target.health.well()
        try:
            _start(exchange, self._target, answer)
            accepted = exchange.send_last(connection.take())
        except Exception as error:  # noqa: BLE001  what awaits the answer tells of it
            connection.release()
            exchange.work(raising(error))
            return
        connection.release()
        if accepted:
            exchange.over()
        else:
            exchange.work(exchange.accepted())

    def interrupt(self) -> None:
        """See :class:`Errand`."""
        self._wait()

    def _wait(self) -> None:
        exchange, connection = self._exchange, self._connection
        connection.heard = None
        exchange.work(self._forwarder.go_on(exchange, self._target, self._body, connection))


# An error that is raised again and again would keep the frames of all the requests that it ended.


def _unreachable() -> Refusal:
    return Refusal(503, "service_unavailable", "the service can't be reached", _RETRY)


def _broken() -> Refusal:
    detail = "the service disconnected or violated the protocol"
    return Refusal(502, "service_broken", detail, _RETRY)


async def _pass_back(
    exchange: Exchange, target: Target, answer: AnswerHead, connection: ServiceConnection
) -> None:
    exchange.start(answer.status, _for_the_client(exchange, target, answer.fields))
    while not connection.complete:
        await exchange.write(connection.take())
        await connection.more()
    await exchange.end(connection.take())


def _start(exchange: Exchange, target: Target, answer: AnswerHead) -> None:
    """Begin the answer as the service has begun it."""
    beginning = answer.found(target)
    if not isinstance(beginning, Beginning):
        headers = _for_the_client(exchange, target, answer.fields)
        beginning = Beginning(answer.status, headers)
        if after.HEADER not in answer.fields:
            answer.leave(target, beginning)
    exchange.start_as(beginning)


def _for_the_client(exchange: Exchange, target: Target, answered: Fields) -> Headers:
    named = _named(answered)
    headers: Headers = []
    for name, values in answered.items():
        if not _passes_back(name) or (named is not None and _is_named(name, named)):
            continue
        for value in values:
            if name == b"set-cookie":
                if _cookie_name(value) in _OUR_COOKIES:
                    continue
            elif name == b"location":
                value = _location(value, f"http://{target.shown}".encode())
            headers.append((name, value))
    said = answered.get(after.HEADER)
    if said is not None:
        headers += after.cookie_for(exchange, said)
    return headers


def _cookie_name(value: bytes) -> bytes:
    """Return the name by which a browser sends back what it is told to set.

    It drops blanks around the name, and sends what has an empty name without the first "=".
    """
    return value.lstrip(b"= \t").partition(b"=")[0].rstrip(b" \t")


def _location(value: bytes, own: bytes) -> bytes:
    """Return where an answer leads, without the address of the service that is its ``own``."""
    if not value.startswith(own + b"/"):
        return value
    path = value[len(own) :]
    # Alone, what begins with two slashes is a host; to browsers "\" is one, and a tab is nothing.
    return b"/." + path if path[1:2] in (b"/", b"\\", b"\t") else path


class _Onward:
    """The headers of a request as a target is sent them on behalf of a client."""

    def __init__(self, client: str, lines: bytes) -> None:
        self.client = client
        self.lines = lines


def _request(exchange: Exchange, target: Target, body: bytes, parent: str) -> bytes:
    """Return the bytes of a request: its target byte for byte, and its headers rewritten.

    ``parent`` is the traceparent that it has.
    """
    client, section = exchange.client, exchange.section
    onward = section.found(target)
    if not isinstance(onward, _Onward) or onward.client != client:
        onward = _Onward(client, _header_lines(exchange, target, client))
        section.leave(target, onward)
    length = b""
    if body or exchange.method in _WITH_BODY:
        length = b"content-length: %d\r\n" % len(body)
    return b"".join(
        [
            exchange.line.onward,
            onward.lines,
            b"x-request-id: ",
            exchange.request_id.encode(),
            b"\r\ntraceparent: ",
            parent.encode(),
            b"\r\n",
            exchange.told,
            length,
            b"\r\n",
            body,
        ]
    )


def _header_lines(exchange: Exchange, target: Target, client: str) -> bytes:
    """Return the headers of a request that are the same for all with the client's headers."""
    fields, named = exchange.fields, _named(exchange.fields)
    lines = [_hop(target.shown, client, exchange.host, exchange.scheme)]
    if b"cookie" in fields:
        lines.append(_cookie_lines(exchange))
    for name, values in fields.items():
        if not _passes_on(name) or (named is not None and _is_named(name, named)):
            continue
        if name == b"tracestate" and exchange.given is None:
            continue
        for value in values:
            lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


def _switching(request: bytes) -> bytes:
    """Return a request that asks to change to WebSocket, behind its first line."""
    lines = b"".join(b"%b: %b\r\n" % header for header in CHANGES)
    first, end, rest = request.partition(b"\r\n")
    return first + end + lines + rest


@lru_cache(maxsize=1024)
def _hop(address: str, client: str, host: str, scheme: str) -> bytes:
    """Return the headers that are the same for all requests of a connection."""
    shown = f"[{client}]" if ":" in client else client
    return (
        f"host: {address}\r\n"
        f'forwarded: for="{shown}";host="{host}";proto={scheme}\r\n'
        f"x-forwarded-for: {client}\r\n"
        f"x-forwarded-host: {host}\r\n"
        f"x-forwarded-proto: {scheme}\r\n"
    ).encode("latin-1")


def _cookie_lines(exchange: Exchange) -> bytes:
    sent = exchange.values(b"cookie")
    if not any("oyez_" in each for each in sent):
        return f"cookie: {'; '.join(sent)}\r\n".encode("latin-1")
    jar = [f"{n}={v}" for n, v in cookies(sent) if n not in _OUR_NAMES]
    lines = f"cookie: {'; '.join(jar)}\r\n" if jar else ""
    token = "" if exchange.value(after.HEADER) else after.token_in(exchange)
    return (f"{lines}oyez-after: {token}\r\n" if token else lines).encode("latin-1")


def _named(fields: Fields) -> set[bytes] | None:
    """Return the headers that ``Connection`` names, which are for this connection alone."""
    options = fields.get(b"connection")
    if options is None:
        return None
    return {option.strip() for option in b",".join(options).lower().split(b",")}


def _is_named(name: bytes, named: set[bytes]) -> bool:
    return name in named or _plain(name) in named


def _passes_on(name: bytes) -> bool:
    known = _passing_on.get(name)
    if known is None:
        plain = _plain(name)
        known = plain not in _DROPPED and not plain.startswith(_OURS)
        _remember(_passing_on, name, known)
    return known


def _passes_back(name: bytes) -> bool:
    known = _passing_back.get(name)
    if known is None:
        plain = _plain(name)
        kept = plain not in _HOP_BY_HOP and plain not in _ANSWER_REPLACED
        known = kept and not plain.startswith(_OURS)
        _remember(_passing_back, name, known)
    return known


def _remember(known: dict[bytes, bool], name: bytes, passes: bool) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[name] = passes


def _plain(name: bytes) -> bytes:
    """Return a header's name as some servers read it, to which ``_`` is ``-``."""
    return name.replace(b"_", b"-")
