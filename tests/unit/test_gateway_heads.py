"""What is remembered of heads: it is bounded, forgotten, and changes no answer.

Two gateways are asked the same, one of which remembers nothing. With the same clock and the same
random numbers they have to send the same bytes, to the service and to the client.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from oyez.ambient import SystemAmbient
from oyez.config import Config, load
from oyez.gateway import gateway
from oyez.gateway.edge import ClientConnection, Edge
from oyez.gateway.heads import LONGEST, MOST, MOST_FOUND, Heads, Known
from oyez.gateway.upstream import ServiceConnection

KEY = "canary-key-0123456789"
EXAMPLES = int(os.environ.get("OYEZ_TEST_HEADS", "60"))

# A memory of its own


async def test_what_is_received_again_is_known_until_nobody_sends_it() -> None:
    heads: Heads[Known] = Heads(seconds=0.05)
    known = Known()
    known.leave("finder", "nothing is kept before")
    heads.remember(b"head", known)
    assert heads.known(b"head") is known
    assert heads.known(b"other") is None
    assert known.found("finder") is None
    known.leave("finder", "found")
    assert known.found("finder") == "found"
    async with asyncio.timeout(10):
        while len(heads):
            await asyncio.sleep(0.01)
    assert heads.known(b"head") is None


async def test_what_is_sent_all_the_time_stays_known() -> None:
    heads: Heads[Known] = Heads(seconds=0.02)
    heads.remember(b"head", known := Known())
    heads.remember(b"once", Known())
    async with asyncio.timeout(10):
        while len(heads) > 1:  # several turns
            assert heads.known(b"head") is known
            await asyncio.sleep(0.001)
    assert heads.known(b"head") is known
    heads.close()
    assert not len(heads)


async def test_a_memory_is_bounded() -> None:
    heads: Heads[Known] = Heads()
    heads.remember(b"x" * (LONGEST + 1), Known())
    assert not len(heads)
    heads.remember(b"often", often := Known())
    for number in range(3 * MOST):
        heads.remember(b"%d" % number, Known())
        assert heads.known(b"often") is often
        assert len(heads) <= 2 * MOST
    assert heads.known(b"0") is None
    for number in range(MOST_FOUND):
        often.leave(number, b"x")
    assert often.found(0) == b"x"
    often.leave(MOST_FOUND, b"x")
    assert [often.found(number) for number in (0, MOST_FOUND)] == [None, b"x"]
    heads.close()
    heads.remember(b"head", Known())
    assert not len(heads)


async def test_where_nothing_is_repeated_nothing_is_remembered_for_a_while() -> None:
    heads: Heads[Known] = Heads(seconds=0.05)
    for number in range(MOST + 1):
        heads.remember(b"%d" % number, Known())
    assert not len(heads)
    async with asyncio.timeout(10):
        while not len(heads):
            heads.remember(b"again", Known())
            await asyncio.sleep(0.01)
    heads.close()


# Two gateways


class Seeded(SystemAmbient):
    """Surroundings that are the same each time: time stands still."""

    def __init__(self) -> None:
        super().__init__()
        self._random = random.Random(1)
        self._numbers = itertools.count(1)
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def new_id(self) -> str:
        return f"made-here-{next(self._numbers):08d}"


class Transport:
    """One end of a connection in memory."""

    def __init__(self, write: Callable[[bytes], object], peer: str = "") -> None:
        self.write = write
        self._peer = peer
        self.closed = False
        self._silent, self._other = os.pipe()

    def fileno(self) -> int:
        return self._silent

    def get_extra_info(self, name: str) -> Any:
        return (self._peer, 1) if name == "peername" else self

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._silent)
            os.close(self._other)

    abort = close


class Loop(asyncio.SelectorEventLoop):
    """It reaches a service in memory, whatever the address."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = b""
        self.asked: list[bytes] = []

    async def create_connection(self, factory: Any, *_: Any, **__: Any) -> Any:
        protocol: ServiceConnection = factory()

        def ask(data: bytes) -> None:
            self.asked.append(data)
            self.call_soon(protocol.data_received, self.answer)

        protocol.connection_made(transport := Transport(ask))  # type: ignore[arg-type]
        return transport, protocol


def configured(folder: Path) -> Config:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (folder / "keys.toml").write_text(f'[keys.ci]\nsha256 = "{digest}"\n')
    (folder / "keys.toml").chmod(0o600)
    (folder / "oyez.toml").write_text(
        """
        [system]
        name = "shop"
        log = "json"
        [services.orders]
        app = "a:b"
        http = "127.0.0.1:1"
        [gateway]
        listen = "127.0.0.1:0"
        access_log = 0
        keys = "keys.toml"
        body_limit = 1000
        [gateway.cors]
        origins = ["https://friend.example"]
        [gateway.limits.each]
        rate = "5/h"
        [[gateway.routes]]
        path = "/open"
        service = "orders"
        access = "public"
        methods = ["GET", "POST"]
        [[gateway.routes]]
        path = "/open/held"
        service = "orders"
        access = "public"
        compress = true
        limits = ["each"]
        [[gateway.routes]]
        path = "/orders"
        service = "orders"
        methods = ["GET", "POST"]
        """
    )
    return load(folder / "oyez.toml", {})


FOLDER = tempfile.TemporaryDirectory(prefix="oyez-heads-")
CONFIG = configured(Path(FOLDER.name))


class Asked(NamedTuple):
    """A request of a client, and what the service answers if it comes to that."""

    client: str
    request: bytes
    answer: bytes


class Seen(NamedTuple):
    """What came of a request: what the service was sent, what the client, and is it over."""

    asked: list[bytes]
    answered: bytes
    over: bool
    closed: bool


async def sent(history: list[Asked], *, remembers: bool) -> tuple[list[Seen], int]:
    """Return what a gateway sends on, and how many heads it knows at the end."""
    ambient, loop = Seeded(), asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    assert CONFIG.gateway is not None
    app = gateway(CONFIG, ambient, secret=b"x" * 32)
    edge = Edge(CONFIG.gateway, ambient, app, app.refused)
    upstreams = [upstream for upstream, _ in app._forwarder._upstreams.values()]
    if not remembers:
        edge.lines.close()
        edge.sections.close()
        for upstream in upstreams:
            upstream.answers.close()
    got: list[bytes] = []
    seen = []
    connections: dict[str, tuple[ClientConnection, Transport]] = {}
    for client, request, answer in history:
        if client not in connections:
            transport = Transport(got.append, client)
            connections[client] = edge.connection(), transport
            connections[client][0].connection_made(transport)  # type: ignore[arg-type]
        connection, transport = connections[client]
        loop.asked, loop.answer = [], answer
        got.clear()
        connection.data_received(request)
        for _ in range(20):
            await asyncio.sleep(0)
        seen.append(Seen(loop.asked, b"".join(got), not connection._exchange, transport.closed))
        if transport.closed or connection._exchange or connection._received or got == []:
            del connections[client]
            await _lose(connection, transport)
        ambient.time += 0.25
    for connection, transport in connections.values():
        await _lose(connection, transport)
    answers = sum(len(upstream.answers) for upstream in upstreams)
    known = len(edge.lines) + len(edge.sections) + answers
    await edge.drain()
    await app.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    return seen, known


async def _lose(connection: ClientConnection, transport: Transport) -> None:
    transport.close()
    connection.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)


LINES = [
    b"GET /open/1 HTTP/1.1",
    b"GET /open/1?a=b HTTP/1.1",
    b"GET /open/held HTTP/1.1",
    b"HEAD /open/1 HTTP/1.1",
    b"POST /open/2 HTTP/1.1",
    b"GET /orders/1 HTTP/1.1",
    b"POST /orders/1 HTTP/1.1",
    b"GET /open HTTP/1.0",
]
ODD_LINES = [
    b"DELETE /open HTTP/1.1",
    b"OPTIONS /open HTTP/1.1",
    b"GET /nowhere HTTP/1.1",
    b"GET /open/../orders HTTP/1.1",
    b"GET /open#x HTTP/1.1",
    b"GET  /open HTTP/1.1",
    b"G\tT /open HTTP/1.1",
    b"GET /open\n HTTP/1.1",
    b"GET /open HTTP/1.2",
]
FIELDS = [
    b"Accept: */*",
    b"accept-encoding: gzip",
    b"Cookie: theme=dark",
    b"Cookie: oyez_session=forged; a=1",
    b"Cookie: oyez_after=L3M7aWQ7dA; b=2",
    b"X-Api-Key: " + KEY.encode(),
    b"Authorization: Bearer some-key",
    b"Connection: keep-alive, x-own",
    b"X-Own: 1",
    b"x_own: 2",
    b"X-Forwarded-For: 6.6.6.6",
    b"Origin: https://friend.example",
    b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"Tracestate: a=1",
    b"X-Request-Id: chosen-by-a-client",
]
ODD_FIELDS = [
    b"Host: other.example",
    b"Connection: close",
    b"Expect: 100-continue",
    b"Content-Encoding: gzip",
    b"Content-Length: 9999",
    b"Authorization: Basic x",
    b"not a field",
]
FRAMINGS = [
    ([], b""),
    ([b"Content-Length: 4"], b"body"),
    ([b"Transfer-Encoding: chunked"], b"4\r\nbody\r\n0\r\n\r\n"),
]
STATUSES = [b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 500 Oh"]
ODD_STATUSES = [
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.0 200 OK",
    b"HTTP 200",
]
ANSWERED = [
    b"content-type: text/plain",
    b"Server: own",
    b"x-oyez-inner: 1",
    b"x-frame-options: SAMEORIGIN",
    b"location: http://127.0.0.1:1/orders/1",
    b"oyez-after: /shop/orders;id-1;a",
    b"connection: x-hop",
    b"x-hop: 1",
    b"vary: accept",
]
ODD_ANSWERED = [
    b"set-cookie: oyez_session=stolen",
    b"set-cookie: own=1",
    b"connection: close",
]
ANSWER_FRAMINGS = [
    ([b"content-length: 4"], b"body"),
    ([b"content-length: 2000"], b"y" * 2000),
    ([b"content-length: 0"], b""),
    ([b"transfer-encoding: chunked"], b"4\r\nbody\r\n0\r\n\r\n"),
    ([], b""),
]


@st.composite
def messages(
    draw: st.DrawFn,
    usual: list[bytes],
    odd: list[bytes],
    framings: list[tuple[list[bytes], bytes]],
    first: tuple[bytes, ...] = (),
) -> tuple[bytes, bytes]:
    """The headers of a message, and its body: of a few nothing is odd."""
    framing, body = draw(st.sampled_from(framings))
    fields = [*first, *draw(st.lists(st.sampled_from(usual), max_size=4, unique=True)), *framing]
    if draw(st.integers(0, 7)) == 7:
        fields.append(draw(st.sampled_from(odd)))
    return b"".join(b"%b\r\n" % each for each in fields), body


@st.composite
def histories(draw: st.DrawFn) -> list[Asked]:
    """Requests and their answers, in which some lines and headers come again."""
    hosts = messages(FIELDS, ODD_FIELDS, FRAMINGS, (b"Host: shop.example",))
    requests = draw(st.lists(hosts, min_size=1, max_size=2))
    answers = draw(
        st.lists(messages(ANSWERED, ODD_ANSWERED, ANSWER_FRAMINGS), min_size=1, max_size=2)
    )
    lines = draw(st.lists(st.sampled_from(LINES), min_size=1, max_size=2))
    statuses = [draw(st.sampled_from(STATUSES)), draw(st.sampled_from(STATUSES + ODD_STATUSES))]
    history = []
    for _ in range(draw(st.integers(4, 12))):
        line = draw(st.sampled_from([*lines * 3, draw(st.sampled_from(LINES + ODD_LINES))]))
        status = draw(st.sampled_from([statuses[0], *statuses]))
        fields, body = draw(st.sampled_from(requests))
        answered, content = draw(st.sampled_from(answers))
        if line.startswith(b"HEAD"):
            content = b""
        history.append(
            Asked(
                draw(st.sampled_from(["192.0.2.1", "192.0.2.1", "192.0.2.2"])),
                b"%b\r\n%b\r\n%b" % (line, fields, body),
                b"%b\r\n%b\r\n%b" % (status, answered, content),
            )
        )
    return history


USUAL = Asked(
    "192.0.2.1",
    b"GET /open/1 HTTP/1.1\r\nHost: x\r\nCookie: theme=dark\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-hop: 1\r\n\r\nbody",
)
TO_HEAD = USUAL._replace(request=USUAL.request.replace(b"GET", b"HEAD"), answer=USUAL.answer[:-4])
OTHER = USUAL._replace(client="192.0.2.2")
PLACED = USUAL._replace(answer=USUAL.answer.replace(b"x-hop: 1", b"oyez-after: /s;id-1;a"))
BACK = PLACED._replace(request=PLACED.request.replace(b"theme=dark", b"oyez_after=L3M7aWQ7dA"))
FRIEND = USUAL._replace(
    request=USUAL.request.replace(b"Host", b"Origin: https://friend.example\r\nHost")
)
BARE = USUAL._replace(request=USUAL.request.replace(b"/open", b"/orders"))
HOLDER = BARE._replace(
    request=BARE.request.replace(b"Host", b"X-Api-Key: %b\r\nHost" % KEY.encode())
)
STRANGER = HOLDER._replace(request=HOLDER.request.replace(b"canary", b"forged"))


@given(histories())
@example([USUAL] * 4)
@example([USUAL, USUAL, TO_HEAD, USUAL])
@example([USUAL, USUAL, OTHER, OTHER, USUAL])
@example([PLACED, PLACED, PLACED, BACK])
@example([USUAL, USUAL, USUAL, FRIEND])
@example([HOLDER, HOLDER, HOLDER, BARE, STRANGER, HOLDER])
@example([BARE, BARE, BARE, HOLDER, STRANGER, BARE])
@settings(max_examples=EXAMPLES)
def test_what_is_known_changes_no_byte(history: list[Asked]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        ordinary, none = runner.run(sent(history, remembers=False))
        remembered, _ = runner.run(sent(history, remembers=True))
    assert none == 0
    assert remembered == ordinary


def test_the_usual_is_known() -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        seen, known = runner.run(sent([USUAL] * 4, remembers=True))
    assert known == 3
    assert {len(each.asked) for each in seen} == {1}
    assert all(each.answered.startswith(b"HTTP/1.1 200 OK\r\n") for each in seen)


def test_a_key_that_is_known_admits_no_other() -> None:
    asked = [HOLDER, HOLDER, HOLDER, BARE, STRANGER, HOLDER]
    with asyncio.Runner(loop_factory=Loop) as runner:
        seen, known = runner.run(sent(asked, remembers=True))
    assert known
    statuses = [int(each.answered.split()[1]) for each in seen]
    assert statuses == [200, 200, 200, 401, 401, 200]
