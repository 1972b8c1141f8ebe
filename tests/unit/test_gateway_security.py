"""Attacks on the gateway over real sockets: smuggling, injection, ways around authorisation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import h11
import pytest
from test_gateway import (
    KEY,
    Client,
    Upstream,
    broken,
    listening,
    logged,
    refused,
    serving,
    settings,
)

BODY_LIMIT = 100_000


class Behind:
    """A service that reads with h11 alone: what each request was, and whether all was read."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes, dict[bytes, bytes], bytes]] = []
        self.answer: list[tuple[bytes, bytes]] = []
        self.left_over = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            request, body = None, b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(65_536))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:  # the gateway has closed
                    writer.close()
                    return
            assert request is not None
            self.left_over += connection.trailing_data[0]
            self.seen.append((request.method, request.target, dict(request.headers), body))
            lines = b"".join(b"%b: %b\r\n" % each for each in self.answer)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%b\r\nok" % lines)
            connection.send(h11.Response(status_code=200, headers=[("content-length", "2")]))
            connection.send(h11.Data(data=b"ok"))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()


@pytest.fixture
async def behind() -> Behind:
    return Behind()


@pytest.fixture
async def client(tmp_path: Path, behind: Behind) -> AsyncIterator[Client]:
    async with (
        broken(behind) as port,
        serving(settings(tmp_path, port, f"body_limit = {BODY_LIMIT}\ntimeout = 2.0")) as client,
    ):
        yield client


# One request, or none

POST = b"POST /open HTTP/1.1\r\nHost: x\r\n"
HIDDEN = b"GET /open/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
"""What a server that disagrees about the length of the request before it would answer."""

REFUSED = {
    "cl.te": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te.cl": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "cl zero and te": POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    **{
        f"te {value!r}": POST + b"Transfer-Encoding:" + value + b"\r\n\r\n0\r\n\r\n"
        for value in (
            *(b" xchunked", b" chunked, identity", b" identity, chunked", b" chunked, chunked"),
            *(b" identity", b" gzip, chunked", b" chunked;q=1", b' "chunked"', b" chunked,", b" "),
            *(b" ,chunked", b" chunk", b" chunked\x0b", b"\x0cchunked", b" chunked\x00"),
            *(b" chunked\xa0", b" c\x68unke\xc4\x91", b" chunked chunked", b"\x85chunked"),
        )
    },
    "two te": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "te twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te before a space": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "te before a tab": POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "te behind a space": POST + b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te on a folded line": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "te behind a fold": POST + b"A: b\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te behind a bare lf": POST + b"A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te behind a bare cr": POST + b"A: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te behind nul": POST + b"A: b\x00Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te in http/1.0": b"POST /open HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    **{
        f"cl {value!r}": POST + b"Content-Length:" + value + b"\r\n\r\nxxxxx"
        for value in (
            *(b" +5", b" -5", b" 0x5", b" 5,5", b" 5, 5", b" 5 5", b" 5;", b' "5"', b" 5.0", b" "),
            *(b" 5e0", b" 5_0", b" \xb2", b" \xd9\xa5", b" 5\x00", b" 5\x0b", b" ,5", b" 5,", b""),
            *(b" " + b"9" * 19, b" " + b"9" * 4000, b" -0", b" 0b1", b" 5\r\n 0"),
        )
    },
    "two cl": POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\nxxxxx",
    "the same cl twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nxxxxx",
    "cl before a space": POST + b"Content-Length : 5\r\n\r\nxxxxx",
    "bare lf at the end": b"GET /open HTTP/1.1\r\nHost: x\n\r\n",
    "bare lf everywhere": b"GET /open HTTP/1.1\nHost: x\n\n",
    "bare cr everywhere": b"GET /open HTTP/1.1\rHost: x\r\r",
    "cr cr lf": b"GET /open HTTP/1.1\r\r\nHost: x\r\n\r\n",
    "nul in a name": b"GET /open HTTP/1.1\r\nHost: x\r\na\x00b: c\r\n\r\n",
    "nul in the target": b"GET /open\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no colon": b"GET /open HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n",
    "no name": b"GET /open HTTP/1.1\r\nHost: x\r\n: c\r\n\r\n",
    "a name that is none": b"GET /open HTTP/1.1\r\nHost: x\r\na(b): c\r\n\r\n",
    "a name beyond ascii": b"GET /open HTTP/1.1\r\nHost: x\r\na\xe9: c\r\n\r\n",
    "a folded first line": b"GET /open HTTP/1.1\r\n Host: x\r\n\r\n",
    "an empty line before": b"\r\nGET /open HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /open HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /open HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  /open HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tab": b"GET\t/open HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /open /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space at the end": b"GET /open HTTP/1.1 \r\nHost: x\r\n\r\n",
    "no version": b"GET /open\r\n\r\n",
    "http/0.9": b"GET /open\r\nHost: x\r\n\r\n",
    "http/1.10": b"GET /open HTTP/1.10\r\nHost: x\r\n\r\n",
    "http/1.2": b"GET /open HTTP/1.2\r\nHost: x\r\n\r\n",
    "http/01.1": b"GET /open HTTP/01.1\r\nHost: x\r\n\r\n",
    "http/2.0": b"GET /open HTTP/2.0\r\nHost: x\r\n\r\n",
    "lower case": b"GET /open http/1.1\r\nHost: x\r\n\r\n",
    "the preface of http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04" + bytes(5),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "a proxy's line": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /open HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method that is none": b"G@T /open HTTP/1.1\r\nHost: x\r\n\r\n",
    "a fragment": b"GET /open#/hidden HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target beyond ascii": b"GET /open\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    **{
        f"target {target!r}": b"GET "
        + target
        + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for target in (
            *(b"http://x/open", b"HTTP://x/open", b"http://evil/open", b"https://x:443/open"),
            *(b"//x/open", b"x:443", b"*", b"open", b"/open/../orders", b"?/open", b"@x/open"),
        )
    },
    "connect": b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\nConnection: close\r\n\r\n",
}
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS = {
    "no size": b"\r\nx\r\n0\r\n\r\n",
    "a sign": b"+1\r\nx\r\n0\r\n\r\n",
    "a minus": b"-1\r\nx\r\n0\r\n\r\n",
    "a prefix": b"0x1\r\nx\r\n0\r\n\r\n",
    "an underscore": b"0_1\r\nx\r\n0\r\n\r\n",
    "a space before": b" 1\r\nx\r\n0\r\n\r\n",
    "a space behind": b"1 \r\nx\r\n0\r\n\r\n",
    "a size that overflows 64 bits": b"10000000000000001\r\nx\r\n0\r\n\r\n",
    "a size that overflows 32 bits": b"100000001\r\nx\r\n0\r\n\r\n",
    "longer than its size": b"1\r\nxx\r\n0\r\n\r\n",
    "shorter than its size": b"3\r\nx\r\n0\r\n\r\n" + HIDDEN,
    "no crlf behind": b"1\r\nx0\r\n\r\n",
    "a bare lf behind": b"1\r\nx\n0\r\n\r\n",
    "a bare lf behind the size": b"1\nx\r\n0\r\n\r\n",
    "a bare cr behind the size": b"1\rx\r\n0\r\n\r\n",
    "lf in an extension": b"1;a\n\r\nx\r\n0\r\n\r\n",
    "cr in an extension": b"1;a=\rb\r\nx\r\n0\r\n\r\n",
    "nul in an extension": b"1;a\x00\r\nx\r\n0\r\n\r\n",
    "a huge extension": b"1;" + b"a" * 5_000 + b"\r\nx\r\n0\r\n\r\n",
    "a size of zeros": b"0" * 5_000 + b"1\r\nx\r\n0\r\n\r\n",
    "a bare lf at the end": b"1\r\nx\r\n0\r\n\n" + HIDDEN,
    "a folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "a trailer without a colon": b"0\r\nabc\r\n\r\n",
    "a bare cr in a trailer": b"0\r\na: b\rc: d\r\n\r\n",
    "nul in a trailer": b"0\r\na: \x00\r\n\r\n",
    "huge trailers": b"0\r\n" + b"a: b\r\n" * 1_000 + b"\r\n",
}


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+)", answer)


async def test_an_ambiguous_head_is_refused_and_nothing_behind_it_is_read(
    client: Client, behind: Behind
) -> None:
    for name, data in REFUSED.items():
        answer = await client.raw(data + HIDDEN)
        assert statuses(answer) == [b"400"], name
        assert b"\r\nconnection: close\r\n" in answer, name
        assert b"application/problem+json" in answer, name
        assert behind.seen == [], name


async def test_an_ambiguous_body_is_refused_and_nothing_behind_it_is_read(
    client: Client, behind: Behind
) -> None:
    for name, data in BAD_CHUNKS.items():
        answer = await client.raw(CHUNKED + data + HIDDEN)
        waited = name == "a size that overflows 32 bits"  # for the rest of it
        assert statuses(answer) == [b"408" if waited else b"400"], name
        assert b"\r\nconnection: close\r\n" in answer, name
        assert behind.seen == [], name


CLOSE = b"Connection: close\r\n"
ONE = {
    "sized": (POST + CLOSE + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, HIDDEN),
    "zeros before the length": (POST + CLOSE + b"Content-Length: 0005\r\n\r\n12345", b"12345"),
    "chunks with extensions": (
        POST + CLOSE + b'Transfer-Encoding: CHUNKED\r\n\r\n3;a="b;c"\r\nabc\r\n0;x\r\n\r\n',
        b"abc",
    ),
    "a request as a chunk": (
        POST
        + CLOSE
        + b"Transfer-Encoding:\tchunked \r\n\r\n%x\r\n%b\r\n000\r\n\r\n" % (len(HIDDEN), HIDDEN),
        HIDDEN,
    ),
    "trailers that have no place there": (
        POST
        + CLOSE
        + b"Transfer-Encoding: chunked\r\nTrailer: Content-Length, X-Oyez-Principal\r\n\r\n"
        b"1\r\na\r\n"
        b"0\r\nContent-Length: 50\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n"
        b"X-Oyez-Principal: key:eve\r\nAuthorization: Bearer x\r\n\r\n",
        b"a",
    ),
    "names that some servers take for others": (
        POST + CLOSE + b"Content-Length: 3\r\nContent_Length: 0\r\nTransfer_Encoding: chunked\r\n"
        b"X_Oyez_Principal: key:eve\r\n\r\nabc",
        b"abc",
    ),
    "an upgrade to http/2": (
        POST + b"Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABk\r\nContent-Length: 1\r\n\r\na",
        b"a",
    ),
    "the length named as of the connection": (
        POST + b"Connection: close, content-length, host\r\nContent-Length: 3\r\n\r\nabc",
        b"abc",
    ),
    "a body of get": (
        b"GET /open HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"Content-Length: 3\r\n\r\nabc",
        b"abc",
    ),
}


@pytest.mark.parametrize("name", ONE)
async def test_what_passes_is_one_request_to_the_server_behind(
    client: Client, behind: Behind, name: str
) -> None:
    data, body = ONE[name]
    assert statuses(await client.raw(data + HIDDEN)) == [b"200"]
    ((method, target, headers, seen),) = behind.seen
    assert (method, target, seen) == (data.partition(b" ")[0], b"/open", body)
    assert headers[b"content-length"] == b"%d" % len(body)
    assert behind.left_over == b""
    assert b"evil" not in repr(headers).encode()
    for dropped in (
        *(b"transfer-encoding", b"transfer_encoding", b"content_length", b"trailer", b"upgrade"),
        *(b"x_oyez_principal", b"x-oyez-principal", b"authorization", b"http2-settings"),
    ):
        assert dropped not in headers


async def test_a_second_request_is_not_answered_as_the_first(
    client: Client, behind: Behind
) -> None:
    """Of many in one packet each has its own target and body, until one is refused."""
    sized = b"POST /open/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d"
    data = b"".join(sized % (number, number) for number in range(5))
    denied = b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)
    answer = await client.raw(data + denied + HIDDEN + data)
    assert statuses(answer) == [*[b"200"] * 5, b"401"]
    assert [(target, body) for _, target, _, body in behind.seen] == [
        (b"/open/%d" % number, b"%d" % number) for number in range(5)
    ]


# Ways around the routes


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


AROUND = {
    400: [
        *("/open/%2e%2e/orders", "/open/%2E%2E%2Forders", "/open/..%2forders", "/open/.%2e/orders"),
        *(
            "/open/%252e%252e/orders",
            "/open/%25252e./orders",
            "//orders",
            "///orders",
            "/.//orders",
        ),
        *("/open//closed", "/./open/closed", "/open/./closed", "/open/closed/..", "/open/closed/."),
        *("/open;/closed", "/open/closed;x", "/open/closed%3bx", "/open/closed;.css", "/;/orders"),
        *(
            "/open%2fclosed",
            "/open%2Fclosed",
            "/open%252fclosed",
            "/open\\closed",
            "/open%5cclosed",
        ),
        *("/open/%c0%ae%c0%ae/orders", "/open/%c0%afclosed", "/open/%e0%80%afclosed", "/open/%ff"),
        *("/open/%u002e%u002e/orders", "/open/%", "/open/%2", "/open/%00", "/open/closed%00.css"),
        *(
            "/open/closed%0a",
            "/open/closed%0d%0aa:b",
            "/open/%7f",
            "/open/closed%09",
            "/%2e/orders",
        ),
        *("/open/closed#", "/open/closed#x", "/open#/closed", "/open/x?a#/../closed", "/#/orders"),
        *("http://x/orders", "/open/../orders", "/open/closed%253bx", "/open/%ed%a0%80"),
        *("/open/%2563losed", "/open/%252563losed", "/open/c%256Cosed"),
    ],
    401: [
        *(
            "/open/closed",
            "/open/closed/",
            "/open/closed?x",
            "/open/closed?/../x",
            "/orders/?/open",
        ),
        *("/open/%63losed", "/%6fpen/closed", "/orders", "/orders/x/y", "/open/closed/%2A"),
    ],
    404: ["/Orders", "/ORDERS", "/orders.", "/orders..", "/orders%20", "/order", "/orders~", "/"],
}


async def test_no_spelling_of_a_path_passes_around_authorisation(
    client: Client, behind: Behind
) -> None:
    for status, paths in AROUND.items():
        for path in paths:
            assert await client.target(path) == status, path
    assert behind.seen == []


OVERRIDES = {
    "X-HTTP-Method-Override": "DELETE",
    "X-HTTP-Method": "DELETE",
    "X-Method-Override": "DELETE",
    "X_HTTP_Method_Override": "DELETE",
    "X-Original-URL": "/orders/1",
    "X-Original-URI": "/orders/1",
    "X-Rewrite-URL": "/orders/1",
    "X-Original-Method": "DELETE",
    "X-Host": "evil.example",
    "X-Original-Host": "evil.example",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Prefix": "/orders",
    "X-Forwarded-User": "eve",
    "X-Forwarded-Proto": "https",
    "Forwarded": "for=6.6.6.6;host=evil.example",
    "X-Forwarded-For": "6.6.6.6",
    "X-Client-IP": "6.6.6.6",
    "True-Client-IP": "6.6.6.6",
    "CF-Connecting-IP": "6.6.6.6",
    "X-Real-IP": "6.6.6.6",
    "X-Oyez-Principal": "key:eve",
    "X-Oyez-Identity": "e30.e30.e30",
    "Proxy": "http://evil.example",
}


async def test_a_header_overrides_nothing_that_was_judged(client: Client, behind: Behind) -> None:
    """Services whose framework believes such headers see none of them."""
    ours = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")
    for name, said in OVERRIDES.items():
        assert (await client.get("/open", headers={name: said})).status_code == 200
        method, target, headers, _ = behind.seen[-1]
        assert (method, target) == (b"GET", b"/open")
        for seen, value in headers.items():
            assert seen in ours or seen.decode() != name.lower(), name
            assert value.decode() != said, name
            assert b"evil" not in value, name
            assert b"6.6.6.6" not in value, name


async def test_each_method_is_admitted_by_its_own_route(client: Client, behind: Behind) -> None:
    """No method is taken for another: by its case, a prefix, a query, or because it is unknown."""
    for method in ("DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "get", "Post", "GETX", "FOO"):
        head = f"{method} /open?_method=DELETE HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await client.raw(head.encode())
        assert statuses(answer) == [b"405"], method
        assert b"\r\nallow: GET, HEAD, POST\r\n" in answer
    assert behind.seen == []


BAD_HOSTS = [
    *("", "x/y", "x@evil", "evil:", "x:port", "x:123456", "x y", "x,evil", "[::1", "x\\evil", "*"),
    *("x?y", "x#y", 'x";host="evil', "x%00", "x\xe9", "http://x", "x;y"),
]


async def test_a_host_that_is_none_is_refused(client: Client, behind: Behind) -> None:
    for host in BAD_HOSTS:
        head = f"GET /open HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert statuses(await client.raw(head.encode("latin-1"))) == [b"400"], host
    assert behind.seen == []


async def test_another_host_is_no_way_to_another_service(client: Client, behind: Behind) -> None:
    """The name that the client has for the gateway decides nothing, and is told apart."""
    for host in ("localhost", "169.254.169.254", "127.0.0.1:9001", "[::1]:80", "orders"):
        assert await client.target("/orders") == 401
        answer = await client.get("/open", headers={"host": host})
        assert answer.status_code == 200
        _, _, headers, _ = behind.seen[-1]
        assert headers[b"host"].startswith(b"127.0.0.1:")
        assert headers[b"host"] != host.encode()
        assert headers[b"x-forwarded-host"] == host.encode()


# Injection

INJECTED = [
    "a\r\nx-evil: 1",
    "a\nx-evil: 1",
    "a\rx-evil: 1",
    "a\x00b",
    "a\r\n\r\nGET /evil",
    "a\x0bb",
]
PLACES = [
    *("x-request-id", "traceparent", "tracestate", "cookie", "x-api-key", "authorization"),
    *("x-forwarded-for", "idempotency-key", "x-custom", "host", "user-agent", "oyez-after"),
]


@pytest.mark.parametrize("name", PLACES)
async def test_no_value_ends_its_line(client: Client, behind: Behind, name: str) -> None:
    """Raw it is no head, and in percent or backslash it stays text."""
    with logged() as lines:
        for value in INJECTED:
            head = f"GET /open HTTP/1.1\r\n{name}: {value}\r\nHost: x\r\nConnection: close\r\n\r\n"
            answer = await client.raw(head.encode())
            if value.startswith("a\r\n"):  # two headers, or two requests, to whoever reads it
                assert set(statuses(answer)) <= {b"200", b"400"}
            else:
                assert statuses(answer) == [b"400"]
        if name != "host":
            await client.get("/open", headers={name: "%0d%0ax-evil: 1\\r\\nx-evil: 1"})
    for _, target, headers, _ in behind.seen:
        assert target == b"/open"
        assert headers.get(b"x-evil") in (None, b"1")
    if name in ("x-request-id", "traceparent"):
        assert all(b"evil" not in headers[name.encode()] for _, _, headers, _ in behind.seen)
    assert "evil" not in repr(lines)


@pytest.mark.parametrize("place", ["/open/%0d%0ax-evil:%201", "/open?a=%0d%0ax-evil:%201"])
async def test_a_target_stays_on_its_line(client: Client, behind: Behind, place: str) -> None:
    """Line ends are refused in paths, and pass in queries as they came: encoded."""
    with logged() as lines:
        status = await client.target(place)
    assert status == (200 if "?" in place else 400)
    assert [target for _, target, _, _ in behind.seen] == ([place.encode()] if "?" in place else [])
    assert all(b"x-evil" not in headers for _, _, headers, _ in behind.seen)
    assert "evil" not in repr(lines)


@pytest.mark.parametrize(
    ("location", "passed"),
    [
        ("/next", "/next"),
        ("{own}/next?a=b", "/next?a=b"),
        ("{own}//evil.example/", "/.//evil.example/"),
        ("{own}/\\evil.example/", "/./\\evil.example/"),
        ("{own}/\t/evil.example/", "/./\t/evil.example/"),
        ("{own}.evil.example/", "{own}.evil.example/"),
        ("{own}@evil.example/", "{own}@evil.example/"),
        ("https://elsewhere.example/", "https://elsewhere.example/"),
    ],
)
async def test_a_redirect_leads_where_the_service_said(
    tmp_path: Path, location: str, passed: str
) -> None:
    """Without the service's own address, no path of it becomes the address of another host."""
    behind = Behind()
    async with broken(behind) as port, serving(settings(tmp_path, port)) as client:
        own = f"http://127.0.0.1:{port}"
        behind.answer = [(b"location", location.format(own=own).encode())]
        raw = await client.raw(b"GET /open HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    (found,) = re.findall(rb"\r\nlocation: ([^\r]*)\r\n", raw)
    assert found.decode() == passed.format(own=own)


@pytest.mark.parametrize(
    "cookie",
    [
        *("oyez_session=stolen", " oyez_session =stolen", "=oyez_session=stolen"),
        *("oyez_session\t=stolen; Path=/", "oyez_after=x", "= oyez_after=x", "oyez_session"),
    ],
)
async def test_a_service_sets_no_cookie_of_the_gateway(
    client: Client, behind: Behind, cookie: str
) -> None:
    behind.answer = [(b"set-cookie", cookie.encode()), (b"set-cookie", b"own=oyez_session=1")]
    answer = await client.get("/open")
    assert answer.headers.get_list("set-cookie") == ["own=oyez_session=1"]


# More than is good


async def test_a_bomb_is_not_unpacked(client: Client, behind: Behind) -> None:
    """What is compressed is refused by its name, whatever its size when it is unpacked."""
    for coding in ("gzip", "deflate", "br", "zstd", "compress", "x-gzip", "identity, gzip", "GZIP"):
        answer = await client.post(
            "/open", content=b"\x1f\x8b", headers={"content-encoding": coding}
        )
        assert refused(answer, 415, "encoded_body").headers["accept-encoding"] == "identity"
    assert behind.seen == []


@pytest.mark.parametrize("name", ["cookie", "authorization", "x-api-key", "x-custom"])
async def test_huge_credentials_are_refused(client: Client, behind: Behind, name: str) -> None:
    for value in ("x" * 15_000, "Bearer " + "a." * 7_000, "a=b;" * 3_500, "Bearer " + KEY * 600):
        answer = await client.get("/orders", headers={name: value})
        assert answer.status_code == 401
    for value in ("x" * 17_000, "Bearer " + "x" * 1_000_000):
        head = f"GET /orders HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n\r\n".encode()
        assert statuses(await client.raw(head)) == [b"431"]
    assert behind.seen == []


async def test_endless_small_chunks_end_at_the_limit(client: Client, behind: Behind) -> None:
    answer = await client.raw(CHUNKED + b"1\r\nx\r\n" * (BODY_LIMIT + 1))
    assert statuses(answer) == [b"413"]
    assert behind.seen == []


async def test_no_number_of_ranges_cookies_or_parameters_is_too_much(
    client: Client, behind: Behind
) -> None:
    """What fits into a head is handled, and passed on as it came."""
    query = "&".join(f"a{n}={n}" for n in range(800))
    headers = {"range": "bytes=" + ",".join("0-" for _ in range(1_000)), "cookie": "a=b;" * 300}
    assert (await client.get(f"/open?{query}", headers=headers)).status_code == 200
    assert behind.seen[0][1] == f"/open?{query}".encode()


# What is not declared


async def test_what_is_not_declared_is_not_there(tmp_path: Path, upstream: Upstream) -> None:
    """Neither services nor the gateway's own works show anything that no route lets through."""
    async with listening(upstream) as port, serving(settings(tmp_path, port)) as client:
        for path in (
            *("/metrics", "/admin", "/debug", "/docs", "/openapi.json", "/.env", "/.git/config"),
            *("/server-status", "/actuator", "/graphql", "/dead-letters", "/v1/open", "/keys.toml"),
        ):
            refused(await client.get(path), 404, "not_found")
        assert not upstream.seen


async def test_every_answer_has_the_headers_of_security(client: Client, behind: Behind) -> None:
    """Also those that refuse, and those to what is no request."""
    asked = [
        b"GET /open",
        b"GET /orders",
        b"GET /nothing",
        b"GET /livez",
        b"DELETE /open",
        b"GET x",
    ]
    heads = [each + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" for each in asked]
    for head in (*heads, b"nonsense\r\n\r\n"):
        answer = (await client.raw(head)).lower()
        for line in (
            b"x-content-type-options: nosniff",
            b"x-frame-options: deny",
            b"referrer-policy: no-referrer",
            b"content-security-policy: default-src 'self'",
        ):
            assert line in answer, head
        assert b"\r\nserver:" not in answer
        assert b"access-control-allow-origin" not in answer
    assert len(behind.seen) == 1
