"""One request and its response, with the parts common to all.

Limits on the head and the body, a request id and a trace, security headers on the response, and
refusals as problem documents (RFC 9457).
"""

from __future__ import annotations

import http
import re
from collections.abc import Sequence

import msgspec
from starlette.types import Message, Receive, Scope, Send

from oyez.ambient import Ambient
from oyez.config import GatewaySettings

Headers = list[tuple[bytes, bytes]]

SECURITY: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_MOST_HEADERS = 100
LINGER_SECONDS = 1.0
_LINGER_BYTES = 8 * 1024 * 1024


class Refusal(Exception):
    """An error response: a status, a code for programs, a line for people."""

    def __init__(
        self, status: int, code: str, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers


class ClientGone(Exception):
    """The client disconnected, or took too long to accept the response."""


class Budget:
    """The limit of bytes for all request bodies in memory together."""

    def __init__(self, limit: int) -> None:
        self.free = limit


def problem(status: int, code: str, detail: str) -> tuple[Headers, bytes]:
    """Return the headers and the body of a problem document."""
    body = msgspec.json.encode(
        {
            "type": "about:blank",
            "title": http.HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "code": code,
        }
    )
    return [(b"content-type", b"application/problem+json")], body


class Exchange:
    """A request in progress.

    ``label`` is the route's name in the log. ``status`` is 0 until the response starts;
    ``complete`` is set once its last byte was passed on.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        settings: GatewaySettings,
        ambient: Ambient,
        budget: Budget,
    ) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.headers: Headers = [(name.lower(), value) for name, value in scope["headers"]]
        self.label = "-"
        self.status = 0
        self.complete = False
        self._receive = receive
        self._send = send
        self._settings = settings
        self._ambient = ambient
        self._budget = budget
        self._held = 0
        self._linger = LINGER_SECONDS
        self._unread = self.values(b"content-length") not in ([], ["0"]) or bool(
            self.values(b"transfer-encoding")
        )
        given = self.values(b"x-request-id")
        kept = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        self.request_id = given[0] if kept else ambient.new_id()
        self.traceparent, self.continues_trace = self._trace()

    def values(self, name: bytes) -> list[str]:
        """Return all values of a header of the request, in order."""
        return [value.decode("latin-1") for each, value in self.headers if each == name]

    def value(self, name: bytes) -> str | None:
        """Return the first value of a header of the request."""
        return next(iter(self.values(name)), None)

    @property
    def host(self) -> str:
        """The client's name for the gateway: its ``Host`` header."""
        return self.value(b"host") or ""

    @property
    def scheme(self) -> str:
        """``https`` if the client's connection is encrypted, here or at a proxy before."""
        return "https" if self._settings.tls or self.scope["scheme"] == "https" else "http"

    def check_head(self) -> None:
        """Refuse a head that is too large, ambiguous, or declares an unsupported body."""
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        size += len(self.scope["raw_path"]) + len(self.scope["query_string"])
        if size > self._settings.header_limit or len(self.headers) > _MOST_HEADERS:
            limit = f"{self._settings.header_limit} bytes, {_MOST_HEADERS} headers"
            raise Refusal(431, "headers_too_large", f"the head of a request is at most {limit}")
        lengths, codings = self.values(b"content-length"), self.values(b"transfer-encoding")
        old = codings and self.scope["http_version"] == "1.0"
        if (
            old
            or (lengths and codings)
            or len(lengths) > 1
            or not "".join(lengths or "0").isdigit()
        ):
            # A length that two servers read differently allows request smuggling.
            raise Refusal(400, "ambiguous_length", "the length of the body is given ambiguously")
        hosts = self.values(b"host")
        if len(hosts) > 1 or (hosts and not _HOST.fullmatch(hosts[0])):
            raise Refusal(400, "bad_host", "the Host header is malformed")
        if any(value.strip().lower() not in ("", "identity") for value in self.encodings()):
            detail = "request bodies are accepted without a content encoding only"
            raise Refusal(415, "encoded_body", detail, [(b"accept-encoding", b"identity")])
        if lengths and int(lengths[0]) > self._settings.body_limit:
            raise self._too_large()

    def encodings(self) -> list[str]:
        """Return the content encodings that the request declares for its body."""
        return ",".join(self.values(b"content-encoding")).split(",")

    async def body(self) -> bytes:
        """Return the whole body, within the limits of size and time; raises :class:`Refusal`."""
        if not self._unread:
            return b""
        body = bytearray()
        try:
            async with self._ambient.timeout(self._settings.timeout):
                while self._unread:
                    chunk = await self._next()
                    if len(body) + len(chunk) > self._settings.body_limit:
                        raise self._too_large()
                    self._hold(len(chunk))
                    body += chunk
        except TimeoutError:
            self._linger = 0
            raise Refusal(408, "slow_body", "the body did not arrive in time") from None
        return bytes(body)

    async def gone(self) -> Message:
        """Wait for ``http.disconnect`` and return it; call it after the body was read."""
        while (message := await self._receive())["type"] != "http.disconnect":
            pass
        return message

    async def send(self, message: Message) -> None:
        """Send an ASGI message with completed headers; raises :class:`ClientGone`.

        If the request's body was not read, the connection closes after the response: further
        bytes on it could not be distinguished from the body.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._completed(list(message.get("headers", ())))}
            await self._hand_over(message)
        elif message.get("more_body", False):
            await self._hand_over(message)
        else:
            if self._unread:
                await self._hand_over({**message, "more_body": True})
                await self._discard()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            self.complete = True
            await self._hand_over(message)

    async def plain(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Respond with a short body, which caches must not store."""
        length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
        headers = [*headers, *length, (b"cache-control", b"no-store")]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal) -> None:
        """Respond with a problem document."""
        headers, body = problem(refusal.status, refusal.code, refusal.detail)
        await self.plain(refusal.status, [*headers, *refusal.headers], body)

    def release(self) -> None:
        """Release the memory of the body."""
        self._budget.free += self._held
        self._held = 0

    def _hold(self, size: int) -> None:
        if size > self._budget.free:
            detail = "too many large requests at the same time"
            raise Refusal(503, "busy", detail, [(b"retry-after", b"1")])
        self._budget.free -= size
        self._held += size

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        self._unread = message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _discard(self) -> None:
        # Closing a socket with unread bytes resets it, and the client may lose the response.
        left = _LINGER_BYTES
        try:
            async with self._ambient.timeout(self._linger):
                while self._unread and left > 0:
                    left -= len(await self._next())
        except (TimeoutError, ClientGone):
            pass

    async def _hand_over(self, message: Message) -> None:
        try:
            async with self._ambient.timeout(self._settings.timeout):
                await self._send(message)
        except (TimeoutError, OSError):
            raise ClientGone from None

    def _completed(self, headers: Headers) -> Headers:
        present = {name.lower() for name, _ in headers}
        headers += [each for each in SECURITY if each[0] not in present]
        headers.append((b"x-request-id", self.request_id.encode()))
        if self._unread:
            headers.append((b"connection", b"close"))
        return headers

    def _too_large(self) -> Refusal:
        limit = self._settings.body_limit
        return Refusal(413, "body_too_large", f"the body of a request is at most {limit} bytes")

    def _trace(self) -> tuple[str, bool]:
        given = self.values(b"traceparent")
        match = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
        trace = match[1] if match else f"{self._ambient.bits(128) or 1:032x}"
        flags = match[2] if match else "01"
        return f"00-{trace}-{self._ambient.bits(64) or 1:016x}-{flags}", match is not None
