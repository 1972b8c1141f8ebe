"""Answers that are compressed, and those that are not, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_gateway import Client, listening, serving

from oyez.config import load
from oyez.gateway.compression import accepts_gzip

TEXT = b"".join(b'{"order": %d, "state": "shipped"},' % n for n in range(500))
GZIP = {"Accept-Encoding": "gzip"}


class Service:
    """It answers as the test says."""

    def __init__(self) -> None:
        self.status = 200
        self.body = TEXT
        self.headers: dict[str, str] = {}
        self.parts: asyncio.Queue[bytes] | None = None

    async def __call__(self, scope, receive, send) -> None:
        if self.parts is None and self.status not in (204, 304):
            self.headers.setdefault("content-length", f"{len(self.body)}")
        headers = {"content-type": "application/json", **self.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        while self.parts is not None and (part := await self.parts.get()):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        body = b"" if self.parts is not None or self.status in (204, 304) else self.body
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[Client]:
    async with listening(service) as port:
        (tmp_path / "oyez.toml").write_text(f"""
            [system]
            name = "shop"
            [services.orders]
            app = "a:b"
            http = "127.0.0.1:{port}"
            [gateway]
            listen = "127.0.0.1:0"
            [[gateway.routes]]
            path = "/orders"
            service = "orders"
            access = "public"
            compress = true
            [[gateway.routes]]
            path = "/orders"
            service = "orders"
            methods = ["POST"]
            idempotency = "optional"
            compress = true
            [[gateway.routes]]
            path = "/plain"
            service = "orders"
            access = "public"
            """)
        async with serving(load(tmp_path / "oyez.toml", {})) as client:
            yield client


async def seen(client: Client, path: str = "/orders", method: str = "GET", **headers: str):
    """The status, the headers and the body as it came."""
    sent = {"Accept-Encoding": "gzip", **{k.replace("_", "-"): v for k, v in headers.items()}}
    async with client.stream(method, path, headers=sent) as answer:
        body = b"".join([part async for part in answer.aiter_raw()])
    return answer.status_code, answer.headers, body


async def test_a_long_text_is_compressed(client: Client, service: Service) -> None:
    service.headers = {"etag": '"v1"', "accept-ranges": "bytes"}
    status, headers, body = await seen(client)
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == TEXT
    assert len(body) < len(TEXT) / 4
    assert (headers["etag"], headers["vary"]) == ('W/"v1"', "accept-encoding")
    assert not {"content-length", "accept-ranges"} & set(headers)


async def test_who_does_not_ask_for_it_gets_it_plain(client: Client, service: Service) -> None:
    service.headers = {"etag": '"v1"'}
    _, headers, body = await seen(client, Accept_Encoding="identity")
    assert body == TEXT
    assert "content-encoding" not in headers
    assert (headers["etag"], headers["vary"]) == ('"v1"', "accept-encoding")
    assert headers["content-length"] == f"{len(TEXT)}"


async def test_a_route_that_does_not_use_it_is_as_it_was(client: Client) -> None:
    _, headers, body = await seen(client, "/plain")
    assert body == TEXT
    assert not {"content-encoding", "vary"} & set(headers)


@pytest.mark.parametrize(
    "said",
    [
        {"content-type": "image/png"},
        {"content-type": "application/octet-stream"},
        {"content-type": "text/event-stream"},
        {"content-encoding": "br"},
        {"cache-control": "max-age=60, No-Transform"},
        {"set-cookie": "login=secret"},
        {"content-digest": "sha-256=:abc:"},
    ],
    ids=str,
)
async def test_what_is_not_to_be_compressed(
    client: Client, service: Service, said: dict[str, str]
) -> None:
    service.headers = dict(said)
    _, headers, body = await seen(client)
    assert body == TEXT
    assert headers.get("content-encoding") == said.get("content-encoding")
    assert headers["content-length"] == f"{len(TEXT)}"


async def test_the_length_decides(client: Client, service: Service) -> None:
    service.body = b"x" * 1023
    assert "content-encoding" not in (await seen(client))[1]
    service.body, service.headers = b"x" * 1024, {}
    assert (await seen(client))[1]["content-encoding"] == "gzip"


async def test_head_says_what_get_would(client: Client, service: Service) -> None:
    service.headers = {"etag": '"v1"'}
    got, asked = (await seen(client))[1], await seen(client, method="HEAD")
    assert asked[2] == b""
    same = ("content-encoding", "content-type", "etag", "vary", "content-length")
    assert [asked[1].get(each) for each in same] == [got.get(each) for each in same]
    # The connection is in step: the next answer is the right one.
    assert gzip.decompress((await seen(client))[2]) == TEXT


async def test_a_part_stays_what_was_asked_for(client: Client, service: Service) -> None:
    service.status, service.headers = 206, {"content-range": "bytes 0-16999/99999"}
    status, headers, body = await seen(client, Range="bytes=0-16999")
    assert (status, body) == (206, TEXT)
    assert "content-encoding" not in headers


async def test_an_answer_that_nothing_has_changed(client: Client, service: Service) -> None:
    service.status, service.headers = 304, {"etag": '"v1"'}
    status, headers, body = await seen(client, If_None_Match='W/"v1"')
    assert (status, body, headers["etag"]) == (304, b"", 'W/"v1"')
    assert headers["vary"] == "accept-encoding"
    assert "content-encoding" not in headers
    status, headers, _ = await seen(client, If_None_Match='"v1"', Accept_Encoding="identity")
    assert (status, headers["etag"]) == (304, '"v1"')


async def test_a_stream_arrives_part_by_part(client: Client, service: Service) -> None:
    service.parts = asyncio.Queue()
    service.headers = {"content-type": "application/x-ndjson"}
    service.parts.put_nowait(b'{"n": 1}\n')
    made, text = zlib.decompressobj(31), b""
    try:
        async with asyncio.timeout(10), client.stream("GET", "/orders", headers=GZIP) as answer:
            assert answer.headers["content-encoding"] == "gzip"
            arriving = answer.aiter_raw()
            while text != b'{"n": 1}\n':  # although nothing has followed yet
                text += made.decompress(await anext(arriving))
            service.parts.put_nowait(b'{"n": 2}\n')
            service.parts.put_nowait(b"")
            async for part in arriving:
                text += made.decompress(part)
    finally:
        service.parts.put_nowait(b"")
    assert (text, made.eof) == (b'{"n": 1}\n{"n": 2}\n', True)


async def test_an_answer_that_is_given_again_is_as_its_client_accepts_it(
    client: Client, service: Service
) -> None:
    await client.post("/session")
    once = {"method": "POST", "Idempotency_Key": "a-key-of-this-test"}
    first = await seen(client, **once)
    service.body = b"another"
    again, plain = await seen(client, **once), await seen(client, **once, Accept_Encoding="br")
    assert gzip.decompress(first[2]) == gzip.decompress(again[2]) == plain[2] == TEXT
    assert "content-encoding" not in plain[1]


async def test_a_page_of_another_site_can_guess_nothing(client: Client) -> None:
    spying = {"Sec_Fetch_Site": "cross-site", "Cookie": "login=1"}
    assert "content-encoding" not in (await seen(client, **spying))[1]
    assert (await seen(client, Cookie="login=1"))[1]["content-encoding"] == "gzip"
    assert (await seen(client, Sec_Fetch_Site="cross-site"))[1]["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("accepted", "gzipped"),
    [
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("br, gzip;q=0.5, *;q=0", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("gzip ; q=0.001", True),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("br", False),
        ("identity", False),
        ("identity;q=0.5, gzip;q=0.4", False),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("gzip;q=1.001", False),
        ("gzip;q=2", False),
        ("gzip;q=-1", False),
        ("gzip;q=0.1234", False),
        ("gzip;q=", False),
        ("gzip;level=9", False),
        ("gzip deflate", False),
        ("gzip, , br", True),
        ("notgzip", False),
        ("\xff", False),
    ],
)
def test_what_a_client_accepts(accepted: str, gzipped: bool) -> None:
    assert accepts_gzip(accepted.encode("latin-1")) is gzipped
