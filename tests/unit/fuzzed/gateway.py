"""What reads the bytes of strangers at the gateway.

No session, key, token or signature is taken that was not made here, no path is read in two ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import posixpath
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import h11
from test_gateway import KEY, settings
from test_gateway_security import BAD_CHUNKS, CHUNKED, REFUSED
from test_gateway_tokens import ed_key, token, with_one_issuer
from test_gateway_webhooks_in import HEADERS, SCHEMES, SIGN
from test_http1 import by_h11

from fuzzed.target import Check, Target
from oyez.ambient import SystemAmbient
from oyez.cloudevents import open_arrived, read_forms
from oyez.config import Config
from oyez.errors import InvalidEvent, NotEvents
from oyez.gateway import after
from oyez.gateway.access import Access
from oyez.gateway.address import behind
from oyez.gateway.exchange import Budget, Connection, Exchange, Refusal
from oyez.gateway.http1 import Malformed, answer_head, end_of_head, request_head
from oyez.gateway.idempotency.key import LONGEST, parse
from oyez.gateway.keys import Keys
from oyez.gateway.routing import safe_path
from oyez.gateway.sessions import COOKIE, Sessions
from oyez.gateway.step import Answer
from oyez.gateway.tokens import Tokens

LIMIT = 16_384
LENGTH = re.compile(rb"content-length|transfer-encoding", re.IGNORECASE)
TRUSTED = [ipaddress.ip_network("10.0.0.0/8")]


class Asked:
    """Makes exchanges of heads, as the gateway has them."""

    def __init__(self, config: Config) -> None:
        assert config.gateway is not None
        self.config, self.settings = config, config.gateway
        self.ambient = SystemAmbient()

    def exchange(self, lines: bytes, target: bytes = b"/open") -> Exchange:
        """Raises Malformed where these lines are no headers."""
        head = request_head(b"POST %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (target, lines))
        nowhere = Connection()  # nothing is read or written
        return Exchange(head, nowhere, self.settings, self.ambient, Budget(1_000_000))


def _head(folder: Path) -> Check:
    def check(data: bytes) -> None:
        try:
            end = end_of_head(data, LIMIT)
            if not end:
                return
            head = request_head(data[:end])
            content = head.body.feed(data[end:]) if head.body else b""
        except Malformed:
            return
        try:
            request, theirs, rest = by_h11(data)
        except h11.RemoteProtocolError:
            # It ends lines with LF alone too, and so sees sooner that a trailer is none. And it
            # reads lengths in trailers, which are dropped here.
            assert head.body
            assert not head.body.done or LENGTH.search(data, end)
            return
        assert (request.method.decode(), request.target) == (head.method, head.target)
        ours = sorted((name, value) for name, values in head.fields.items() for value in values)
        # It has the value of Transfer-Encoding in lower case.
        read = sorted((name, value) for name, value in request.headers)
        assert [(n, v.lower()) for n, v in ours] == [(n, v.lower()) for n, v in read]
        assert content == theirs
        if head.body is None or head.body.done:
            assert (head.body.rest if head.body else data[end:]) == rest

    return check


def _answer(folder: Path) -> Check:
    def check(data: bytes) -> None:
        with contextlib.suppress(Malformed):
            end = end_of_head(data, LIMIT)
            if not end:
                return
            head = answer_head(data[:end], to_head=False)
            body = head.body()
            content = body.feed(data[end:])
            if head.status < 200:
                return
            connection = h11.Connection(h11.CLIENT)
            connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
            connection.send(h11.EndOfMessage())
            connection.receive_data(data)
            answer = connection.next_event()
            assert isinstance(answer, h11.Response)
            assert answer.status_code == head.status
            theirs = b""
            try:
                while isinstance(event := connection.next_event(), h11.Data):
                    theirs += event.data
            except h11.RemoteProtocolError:
                assert not body.done or LENGTH.search(data, end)
            assert content == theirs

    return check


def _path(folder: Path) -> Check:
    asked = Asked(settings(folder, 1))

    def check(data: bytes) -> None:
        try:
            exchange = asked.exchange(b"", data)
            path = safe_path(exchange)
        except (Malformed, Refusal):
            return
        raw = data.partition(b"?")[0].decode()
        for text in (path, unquote(raw), unquote(unquote(raw))):
            for read in (text, text.partition(";")[0], text.partition("#")[0]):
                read = read.replace("\\", "/")
                ended = "/" if read.endswith("/") and read != "/" else ""
                assert f"{posixpath.normpath(read)}{ended}" == path

    return check


def _session(folder: Path) -> Check:
    asked = Asked(settings(folder, 1))
    sessions = Sessions(asked.settings, asked.ambient, SECRET)

    def check(data: bytes) -> None:
        with contextlib.suppress(Malformed, Refusal):
            known = sessions.principal(asked.exchange(b"cookie: %b\r\n" % data))
            assert known is None or GOOD_SESSION in data

    return check


def _key(folder: Path) -> Check:
    asked = Asked(settings(folder, 1))
    keys = Keys(asked.config, asked.ambient)
    sessions = Sessions(asked.settings, asked.ambient, SECRET)
    admitted: list[Exchange] = []

    async def onward(exchange: Exchange) -> None:
        admitted.append(exchange)

    route = next(each for each in asked.settings.routes if each.path == "/orders")
    answer: Answer = Access(keys, None, sessions).before(route, onward)

    def check(data: bytes) -> None:
        admitted.clear()
        with contextlib.suppress(Malformed, Refusal):
            at_once(answer(asked.exchange(data)))
        assert not admitted or KEY.encode() in data

    return check


def _token(folder: Path) -> Check:
    tokens = Tokens(with_one_issuer(folder), SystemAmbient())
    good = set(TARGETS["token"].seeds) - set(FORGED)
    runner = asyncio.Runner()

    def check(data: bytes) -> None:
        refusal = None
        try:
            runner.run(tokens.user(data.decode("latin-1")))
        except Refusal as error:
            refusal = error
        assert data in good if refusal is None else refusal.status == 401

    return check


def _signature(folder: Path) -> Check:
    """The first lines are headers: a number and a value. The rest is the body."""

    def check(data: bytes) -> None:
        *lines, body = data.split(b"\n")
        fields: dict[bytes, list[bytes]] = {}
        for line in lines:
            fields.setdefault(HEADERS[line[0] % len(HEADERS)] if line else b"", []).append(line[1:])
        for scheme in SCHEMES:
            try:
                scheme.verify(fields, body, SIGNED_AT)
            except Refusal as refusal:
                refusal.__traceback__ = None  # as the gateway does: it may be a shared one
            else:
                assert body == SIGNED

    return check


def _idempotency(folder: Path) -> Check:
    def check(data: bytes) -> None:
        key = parse(data.decode("latin-1"))
        if key is not None:
            assert 1 <= len(key) <= LONGEST
            assert key.isascii()
            assert key.isprintable()

    return check


def _forwarded(folder: Path) -> Check:
    def check(data: bytes) -> None:
        client = behind("10.0.0.1", data.split(b"\n"), TRUSTED)
        ipaddress.ip_address(client)

    return check


def _after(folder: Path) -> Check:
    asked = Asked(settings(folder, 1))

    def check(data: bytes) -> None:
        with contextlib.suppress(Malformed):
            told = after.token_in(asked.exchange(b"cookie: %b\r\n" % data))
            assert told == "" or (told.isascii() and told.isprintable())

    return check


def _event(folder: Path) -> Check:
    """Headers, an empty line, and the body."""
    asked = Asked(settings(folder, 1))

    def check(data: bytes) -> None:
        lines, _, body = data.partition(b"\r\n\r\n")
        try:
            exchange = asked.exchange(lines + b"\r\n" if lines else b"")
        except Malformed:
            return
        try:
            found = read_forms(exchange.fields, body)
        except (NotEvents, InvalidEvent):
            return
        for each in found:
            with contextlib.suppress(InvalidEvent):
                envelope = open_arrived(each)
                assert envelope.id
                assert envelope.source
                assert envelope.type

    return check


def at_once(answer: object) -> None:
    """Run what waits for nothing."""
    with contextlib.suppress(StopIteration):
        cast(Iterator[None], answer).send(None)  # type: ignore[attr-defined]
        raise AssertionError("it waits")


SECRET = b"s" * 32
SIGNED = b'{"type":"user.created"}'
SIGNED_AT = 1_700_000_000.0


def _good_session() -> bytes:
    name, expiry = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", int(time.time()) + 86_400 * 300
    message = f"oyez session {name} {expiry}".encode()
    return f"{name}.{expiry}.{hmac.new(SECRET, message, 'sha256').hexdigest()}".encode()


def _signatures() -> Iterable[bytes]:
    for sign in SIGN.values():
        sent = sign(SIGNED, SIGNED_AT)
        lines = [
            bytes([HEADERS.index(name.encode())]) + value.encode()
            for name, value in sent.items()
            if name.encode() in HEADERS
        ]
        yield b"\n".join([*lines, SIGNED])
        yield b"\n".join([*lines, SIGNED.upper()])


GOOD_SESSION = _good_session()
FORGED = [
    b"e30.e30.e30",
    token(ed_key(), "EdDSA", kid="one").encode(),
    token(ed_key(), "EdDSA", kid="edwards").encode()[:-8] + b"AAAAAAAA",
    token("s" * 32, "HS256").encode(),
]
EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "/iot/a",
    "type": "iot.reading",
    "time": "2026-01-01T00:00:00Z",
    "data": {"a": [1, -1.5e3, None, True, "é\\u0041"]},
}
JSON = json.dumps(EVENT).encode()
TARGETS = {
    "head": Target(
        _head,
        [
            b"GET /a?b HTTP/1.1\r\nHost: x\r\nA: \xe9 b\t\r\n\r\nGET /",
            b"POST / HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\n\r\nabcdef",
            b"POST / HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'3;a="b"\r\nabc\r\n0\r\nt: 1\r\n\r\nx',
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            *REFUSED.values(),
            *(CHUNKED + chunks for chunks in BAD_CHUNKS.values()),
        ],
    ),
    "answer": Target(
        _answer,
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokx",
            b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\na: b\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\nok",
            b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        ],
    ),
    "path": Target(
        _path,
        [
            *(b"/open/closed/x", b"/a/%C3%A9%20b?c=../d;e", b"/a/%2e%2e/b", b"/a/%2563/b;c"),
            *(b"/a//b", b"/./a", b"/a\\..\\b", b"/a#b", b"/%c0%af", b"http://x/a"),
        ],
    ),
    "session": Target(
        _session,
        [
            COOKIE.encode() + b"=" + GOOD_SESSION,
            COOKIE.encode() + b"=" + GOOD_SESSION[:-64] + b"0" * 64,
            COOKIE.encode() + b"=1" + GOOD_SESSION[1:],
            b"a=1; oyez_session=x.1.2; b",
            b'a="b; c"',
        ],
    ),
    "key": Target(
        _key,
        [
            f"authorization: Bearer {KEY}\r\n".encode(),
            f"x-api-key: {KEY}\r\n".encode(),
            b"authorization: Bearer " + hashlib.sha256(KEY.encode()).hexdigest().encode() + b"\r\n",
            b"authorization: Basic YTpi\r\nx-api-key:\r\n",
        ],
    ),
    "token": Target(
        _token,
        [token().encode(), token(ed_key(), "EdDSA", kid="edwards").encode(), *FORGED],
    ),
    "signature": Target(_signature, list(_signatures())),
    "idempotency": Target(_idempotency, [b'"a b\\"c"', b"8e03978e-40d5-43dd-bc93-6894a57f9324"]),
    "forwarded": Target(
        _forwarded, [b"192.0.2.7, 10.0.0.2\n10.0.0.3", b"::ffff:10.0.0.2, fe80::1%eth0, unknown"]
    ),
    "after": Target(_after, [b"oyez_after=L3M7aWQ7dA", b"a=b; oyez_after=L3M7aTt0LCAvcztpO3Q="]),
    "event": Target(
        _event,
        [
            b"content-type: application/cloudevents+json\r\n\r\n" + JSON,
            b"content-type: application/cloudevents-batch+json\r\n\r\n[" + JSON + b"]",
            b"content-type: application/x-ndjson\r\n\r\n" + JSON + b"\n" + JSON,
            b'ce-specversion: 1.0\r\nce-id: "1"\r\nce-source: /a\r\nce-type: a%20b\r\n'
            b"content-type: application/json\r\n\r\n{}",
        ],
    ),
}
