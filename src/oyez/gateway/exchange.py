"""One request and its answer, with the parts common to all.

Limits on the head and the body, a request id and a trace, security headers on the answer, and
refusals as problem documents (RFC 9457).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Generator, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from http.client import responses
from typing import Final, Protocol

import msgspec

from oyez.ambient import Ambient
from oyez.config import GatewaySettings
from oyez.gateway.address import behind
from oyez.gateway.http1 import Body, Fields, Headers, Malformed, RequestHead, RequestLine, Section
from oyez.gateway.line import Line
from oyez.principal import Principal
from oyez.spans import Span

SECURITY: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]

FLOW = "flow-"
"""The beginning of the request ids that the gateway makes for flows; a client's is never so."""

_REQUEST_ID = re.compile(rb"(?!flow-)[A-Za-z0-9-]{8,64}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
_HOST = re.compile(rb"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_NONE: Final[list[bytes]] = []
_REMEMBERED: Final = 256

_hosts: Final[set[bytes]] = set()
"""Values of ``Host`` that are known to be well-formed."""


NO_ROUTE = "-"
"""The label of a request before its route is known, or without one."""


class Refusal(Exception):
    """An error response: a status, a code for programs, a line for people.

    ``errors`` are the faults of a request that may have several, each an object for JSON.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        errors: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers
        self.errors = errors


class ClientGone(Exception):
    """The client disconnected, or took too long to accept the response."""


SLOW_BODY = Refusal(408, "slow_body", "the body did not arrive in time")


class Budget:
    """The limit of bytes for all request bodies in memory together."""

    def __init__(self, limit: int) -> None:
        self.free = limit


def problem(refusal: Refusal) -> tuple[Headers, bytes]:
    """Return the headers and the body of a problem document."""
    members: dict[str, object] = {
        "type": "about:blank",
        "title": responses[refusal.status],
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
    }
    if refusal.errors:
        members["errors"] = refusal.errors
    body = msgspec.json.encode(members)
    return [(b"content-type", b"application/problem+json"), *refusal.headers], body


class Filter(Protocol):
    """What an answer passes through on its way to the client."""

    def head(self, status: int, headers: Headers) -> Headers:
        """Return the headers of an answer that begins, changed."""
        ...

    def part(self, content: bytes) -> bytes:
        """Return a part of the answer's body, changed; it may be empty."""
        ...

    def last(self, content: bytes) -> bytes:
        """Return the last part of the answer's body, changed."""
        ...


class Connection(asyncio.Protocol):
    """A client's connection, as an exchange uses it.

    ``client`` is the address that the client connects from, ``full`` whether it has not accepted
    what it was sent, ``draining`` whether the connection is to end with the present answer.
    """

    def __init__(self) -> None:
        self.client = "unknown"
        self.full = False

    @property
    def draining(self) -> bool:
        """Whether the connection is to end with the present answer."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Return what was received and not taken yet."""
        raise NotImplementedError

    def put_back(self, data: bytes) -> None:
        """Keep bytes that were taken and belong to the next request."""
        raise NotImplementedError

    async def more(self) -> bytes:
        """Return what is received next."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send bytes, without waiting for the client to accept them."""
        raise NotImplementedError

    async def accepted(self) -> None:
        """Wait until the client accepts more, for at most ``timeout`` seconds."""
        raise NotImplementedError

    def within(self, seconds: float | None, late: Refusal | ClientGone) -> None:
        """Interrupt the exchange after that many seconds from now; None for never."""
        raise NotImplementedError

    def work(self, answering: Awaitable[None]) -> None:
        """Have the connection's task await the rest of the work on the exchange."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Cancel the work on the exchange."""
        raise NotImplementedError

    def served(self) -> None:
        """Go on to the next request."""
        raise NotImplementedError

    def hand_over(self, line: Line) -> bytes:
        """Give the connection to a line; return what was received and not taken yet."""
        raise NotImplementedError


class Responder:
    """Who responds to an exchange."""

    def respond(
        self, exchange: Exchange, answering: Awaitable[None], *, begun: bool = False
    ) -> Awaitable[None]:
        """Return what awaits an answer, whatever happens, and tells of its end.

        ``begun``: it goes on after an errand, so it is awaited even if it was interrupted.
        """
        raise NotImplementedError

    def ended(self, exchange: Exchange) -> None:
        """Tell of an exchange that has ended without having been awaited."""
        raise NotImplementedError


class Errand:
    """Work on an exchange that nobody awaits: it goes on when something arrives."""

    def interrupt(self) -> None:
        """Go on as what is awaited, which finds the exchange interrupted."""
        raise NotImplementedError


class _Underway:
    def __await__(self) -> Generator[None]:
        yield from ()


UNDERWAY: Final = _Underway()
"""What a step returns instead of an awaitable, when the rest goes on without being awaited.

Only for exchanges that are ``unawaited``; see :meth:`Exchange.leave`.
"""


class Beginning:
    """The beginning of an answer, as far as it is the same for all clients."""

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.sized = False
        """Whether it says how long the body is."""
        protected = False
        lines = [_status_line(status)]
        for name, value in headers:
            if name == b"content-length":
                self.sized = True
            elif name in _NAMES:
                protected = True
            lines += (name, b": ", value, b"\r\n")
        lines.append(_security_lines(headers) if protected else _LINES)
        self.lines: bytes = b"".join(lines)


class Exchange:
    """A request in progress, and its answer.

    ``label`` is the route's name in the log. ``status`` is 0 until the answer starts; ``complete``
    is set once its last byte was accepted. ``closing``: the connection ends with this answer.
    ``interruption`` says why the work on it was cancelled, ``refused`` is the code of a refusal.
    ``given`` is the client's traceparent, if it is valid, ``traceparent`` this exchange's own, and
    ``recorded`` its span, if it has one. ``principal`` is who sends the request, once that is
    known, and ``told`` the lines of headers that tell its service. ``line`` and ``section`` are
    what is known of the two parts of its head. ``unawaited`` is whether it may be answered without
    a coroutine: no step has had to wait for anything yet.
    """

    def __init__(
        self,
        head: RequestHead,
        connection: Connection,
        settings: GatewaySettings,
        ambient: Ambient,
        budget: Budget,
    ) -> None:
        self.method: str = head.method
        self.target: bytes = head.target
        self.line: RequestLine = head.line
        self.section: Section = head.section
        self.fields: Fields = head.fields
        self._old: bool = head.old
        self._unread: Body | None = head.body
        self._pieces: list[bytes] | None = None
        self._body = b""
        self._filters: tuple[Filter, ...] = ()
        self._besides = b""
        self.path: bytes = head.line.path
        self.label: str = NO_ROUTE
        self.status: int = 0
        self.complete = False
        self.refused = ""
        self.principal: Principal | None = None
        self.told = b""
        self.closing: bool = self._old or self.section.closes
        self.began = 0.0
        self.unawaited = False
        self.responder: Responder | None = None
        self._errand: Errand | None = None
        self._cause: Refusal | ClientGone | None = None
        self._connection: Connection = connection
        self._settings: GatewaySettings = settings
        self._ambient: Ambient = ambient
        self._budget: Budget = budget
        self._held: int = 0
        self._head = b""
        self._chunked = self._silent = False
        given = self.fields.get(b"x-request-id", _NONE)
        kept = len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) is not None
        self.request_id: str = given[0].decode() if kept else ambient.new_id()
        self.recorded: Span | None = None
        given = self.fields.get(b"traceparent", _NONE)
        known = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
        self.given: str | None = given[0].decode() if known else None
        self.traceparent: str = self._trace(known)

    def same(self, other: Exchange) -> None:
        """Become another answer to the same request: all that is known of it is the other's."""
        self.method, self.target, self.section = other.method, other.target, other.section
        self.line, self.fields, self._besides = other.line, other.fields, b""
        self._old, self._unread, self._pieces = other._old, other._unread, other._pieces
        self._body, self._filters, self.path = other._body, other._filters, other.path
        self.label, self.status, self.complete = other.label, other.status, other.complete
        self.refused, self.principal, self.told = other.refused, other.principal, other.told
        self.closing, self.began, self.unawaited = other.closing, other.began, False
        self.responder, self._errand, self._cause = other.responder, None, other._cause
        self._connection, self._settings = other._connection, other._settings
        self._ambient, self._budget, self._held = other._ambient, other._budget, other._held
        self._head, self._chunked, self._silent = other._head, other._chunked, other._silent
        self.request_id, self.recorded = other.request_id, other.recorded
        self.given, self.traceparent = other.given, other.traceparent

    @property
    def interruption(self) -> Refusal | ClientGone | None:
        """Why the work on it was cancelled."""
        return self._cause

    def values(self, name: bytes) -> list[str]:
        """Return all values of a header of the request, in order."""
        found = self.fields.get(name)
        return [value.decode("latin-1") for value in found] if found else []

    def value(self, name: bytes) -> str | None:
        """Return the first value of a header of the request."""
        found = self.fields.get(name)
        return found[0].decode("latin-1") if found else None

    @property
    def tracestate(self) -> str | None:
        """The client's tracestate, if its trace goes on: several headers are one list."""
        found = b",".join(self.fields.get(b"tracestate", _NONE))
        return found.decode("latin-1") if found and self.given is not None else None

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to, if that is sampled; else an empty text."""
        parent = self.traceparent
        return parent[3:35] if parent[-1] in "13579bdf" else ""

    @property
    def host(self) -> str:
        """The client's name for the gateway: its ``Host`` header."""
        return self.value(b"host") or ""

    @property
    def scheme(self) -> str:
        """``https`` if the client's connection is encrypted, by a proxy before."""
        return "https" if self._settings.tls else "http"

    @property
    def client(self) -> str:
        """The address that the client connects from, or that trusted proxies name."""
        trusted = self._settings.trusted_proxies
        if not trusted:
            return self._connection.client
        forwarded = self.fields.get(b"x-forwarded-for", _NONE)
        return behind(self._connection.client, forwarded, trusted)

    @property
    def unread(self) -> bool:
        """Whether a body, or a part of it, was not read."""
        return self._unread is not None

    def check_head(self) -> None:
        """Refuse a head that is ambiguous, or declares an unsupported body."""
        if self.section.accepted:
            return
        fields = self.fields
        hosts = fields.get(b"host")
        if hosts is not None and hosts[0] not in _hosts:
            _check_host(hosts[0])
        if b"content-encoding" in fields:
            codings = b",".join(fields[b"content-encoding"]).lower().split(b",")
            if any(coding.strip() not in (b"", b"identity") for coding in codings):
                detail = "request bodies are accepted without a content encoding only"
                raise Refusal(415, "encoded_body", detail, [(b"accept-encoding", b"identity")])
        lengths = fields.get(b"content-length")
        if lengths and int(lengths[0]) > self._settings.body_limit:
            raise self._too_large()
        self.section.accepted = True

    async def body(self) -> bytes:
        """Return the whole body, within the limits of size and time; raises :class:`Refusal`.

        Called again, it returns the same.
        """
        whole = self.whole_body()
        if whole is not None:
            return whole
        self._connection.within(self._settings.timeout, SLOW_BODY)
        if b"expect" in self.fields and not self._old:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self._unread is not None:
            self._feed(self._unread, await self._connection.more())
        return self._body

    def whole_body(self) -> bytes | None:
        """Return the body if all of it has arrived, else None; raises :class:`Refusal`."""
        if self._unread is not None:
            self._feed(self._unread, self._connection.take())
        return self._body if self._unread is None else None

    def _feed(self, framing: Body, data: bytes) -> None:
        content = framing.feed(data)
        size = len(content)
        if self._held + size > self._settings.body_limit:
            raise self._too_large()
        if size > self._budget.free:
            detail = "too many large requests at the same time"
            raise Refusal(503, "busy", detail, [(b"retry-after", b"1")])
        self._budget.free -= size
        self._held += size
        if framing.done:
            if framing.rest:
                self._connection.put_back(framing.rest)
            self._body = b"".join((*self._pieces, content)) if self._pieces else content
            self._pieces = self._unread = None
        elif self._pieces is None:
            self._pieces = [content]
        else:
            self._pieces.append(content)

    def within(self, seconds: float | None, late: Refusal) -> None:
        """Interrupt the exchange after that many seconds from now; None for never."""
        self._connection.within(seconds, late)

    def interrupt(self, cause: Refusal | ClientGone) -> None:
        """End the work on the exchange, wherever it is."""
        self._cause = cause
        if self._errand is not None:
            self._errand.interrupt()
        else:
            self._connection.cancel()

    def leave(self, errand: Errand) -> None:
        """Leave the rest to work that nobody awaits; `over` or `work` ends that."""
        self._errand = errand

    def work(self, answering: Awaitable[None]) -> None:
        """Have the rest of an exchange that was left to an errand awaited after all."""
        self._errand, self.unawaited = None, False
        assert self.responder is not None
        self._connection.work(self.responder.respond(self, answering, begun=True))

    def over(self) -> None:
        """Tell that it has ended, after it was left to an errand."""
        self._errand = None
        assert self.responder is not None
        self.responder.ended(self)
        self._connection.served()

    def through(self, filter: Filter) -> None:  # noqa: A002
        """Pass the answer through a filter, before those that were added earlier."""
        self._filters = (filter, *self._filters)

    def say(self, name: bytes, value: bytes) -> None:
        """Add a header to the answer, whatever others it has."""
        self._besides = b"".join((self._besides, name, b": ", value, b"\r\n"))

    def switch(self, headers: Headers, line: Line) -> bytes:
        """Answer 101, and give the connection to a line, until the exchange ends.

        Returns what the client has sent already.
        """
        lines = [_status_line(101), *(b"%b: %b\r\n" % header for header in headers)]
        lines.append(b"x-request-id: %b\r\n\r\n" % self.request_id.encode())
        self._connection.write(b"".join(lines))
        self.status, self.closing = 101, True
        return self._connection.hand_over(line)

    def start(self, status: int, headers: Headers) -> None:
        """Begin the answer; its head is sent with what follows.

        Without ``content-length`` among the headers the body is sent in chunks. If the request's
        body was not read, the connection closes after the answer: further bytes on it could not be
        distinguished from the body.
        """
        for each in self._filters:
            headers = each.head(status, headers)
        self._begin(Beginning(status, headers))

    def start_as(self, beginning: Beginning) -> None:
        """Begin the answer as others of the same service began."""
        if self._filters:
            self.start(beginning.status, beginning.headers)
        else:
            self._begin(beginning)

    def _begin(self, beginning: Beginning) -> None:
        status = beginning.status
        date = _dates.line(int(self._ambient.now()))
        lines = [
            beginning.lines,
            self._besides,
            b"x-request-id: ",
            self.request_id.encode(),
            date,
        ]
        self._silent = status == 204 or status == 304 or self.method == "HEAD"
        if not beginning.sized and not self._silent:
            # To a client of HTTP/1.0 the body ends with the connection.
            self._chunked = not self._old
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        if self._unread is not None or self._connection.draining:
            self.closing = True
        lines.append(b"connection: close\r\n\r\n" if self.closing else b"\r\n")
        self._head = b"".join(lines)
        self.status = status

    async def write(self, content: bytes) -> None:
        """Send the next part of the answer's body; raises :class:`ClientGone`."""
        for each in self._filters:
            content = each.part(content)
        self._connection.write(self._framed(content))
        if self._connection.full:
            await self._connection.accepted()

    async def end(self, content: bytes = b"") -> None:
        """Send the last part of the answer's body; raises :class:`ClientGone`."""
        self.send_last(content)
        await self.accepted()

    def send_last(self, content: bytes) -> bool:
        """Send the last part of the answer's body; return whether the client has accepted all."""
        for each in self._filters:
            content = each.last(content)
        data = self._framed(content)
        self._connection.write(data + b"0\r\n\r\n" if self._chunked else data)
        self.complete = not self._connection.full
        return self.complete

    async def accepted(self) -> None:
        """Wait until the client has accepted the whole answer; raises :class:`ClientGone`."""
        if self._connection.full:
            await self._connection.accepted()
        self.complete = True

    async def plain(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Respond with a short body, which caches must not store."""
        length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
        self.start(status, [*headers, *length, (b"cache-control", b"no-store")])
        await self.end(body)

    async def refuse(self, refusal: Refusal) -> None:
        """Respond with a problem document."""
        self.refused = refusal.code
        headers, body = problem(refusal)
        await self.plain(refusal.status, headers, body)

    def release(self) -> None:
        """Release the memory of the body."""
        self._budget.free += self._held
        self._held = 0

    def _framed(self, content: bytes) -> bytes:
        head, self._head = self._head, b""
        if self._silent or not content:
            return head
        if self._chunked:
            return b"".join((head, b"%x\r\n" % len(content), content, b"\r\n"))
        return head + content if head else content

    def _too_large(self) -> Refusal:
        limit = self._settings.body_limit
        return Refusal(413, "body_too_large", f"the body of a request is at most {limit} bytes")

    def _trace(self, given: re.Match[bytes] | None) -> str:
        if given is None:
            made = (self._ambient.bits(192) or 1).to_bytes(24).hex()
            return f"00-{made[:32]}-{made[32:]}-01"
        span = self._ambient.bits(64) or 1
        return f"00-{given[1].decode()}-{span:016x}-{given[2].decode()}"


async def raising(error: Exception) -> None:
    """Raise an error where the answer is awaited, and so where all errors are told of."""
    raise error


def refusal_of(error: Malformed) -> Refusal:
    """Return the refusal of a request whose bytes are malformed."""
    if error.too_large:
        return Refusal(431, "headers_too_large", "the head of the request is too large")
    return Refusal(400, "malformed", "the request is not well-formed HTTP/1.1")


def loose_answer(refusal: Refusal) -> bytes:
    """Return the bytes that refuse what is no request; they end its connection."""
    headers, body = problem(refusal)
    headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    lines = b"".join(b"%b: %b\r\n" % header for header in (*headers, *SECURITY))
    return b"%b%b\r\n%b" % (_status_line(refusal.status), lines, body)


def _check_host(host: bytes) -> None:
    if not _HOST.fullmatch(host):
        raise Refusal(400, "bad_host", "the Host header is malformed")
    if len(_hosts) >= _REMEMBERED:
        _hosts.clear()
    _hosts.add(host)


@lru_cache(maxsize=128)
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {responses.get(status, '')}\r\n".encode()


class _Dates:
    """The line with the date, which is the same for a second."""

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def line(self, second: int) -> bytes:
        """Return the line of a second, behind the end of another."""
        if second != self._second:
            self._second = second
            self._line = f"\r\ndate: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line


_dates: Final = _Dates()
_LINES: Final = b"".join(b"%b: %b\r\n" % header for header in SECURITY)
_NAMES: Final = frozenset(name for name, _ in SECURITY)


def _security_lines(headers: Headers) -> bytes:
    present = dict(headers)
    return b"".join(b"%b: %b\r\n" % header for header in SECURITY if header[0] not in present)
