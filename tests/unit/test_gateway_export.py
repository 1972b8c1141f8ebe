"""The gateway's routes for nginx and Envoy: nginx is held to what the gateway does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner
from test_gateway import Upstream, listening, serving

from oyez.cli.gateway import command
from oyez.config import Config, GatewaySettings, Route, load
from oyez.gateway.export import export
from oyez.gateway.export.envoy import _CHARACTER, _DOTS, _PATH
from oyez.gateway.export.plan import SAID_OF_ROUTES, SAID_OF_THE_GATEWAY

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
with_nginx = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed: scripts/system-packages"
)

SETTINGS = """
[system]
name = "shop"
[services.orders]
app = "a:b"
http = "127.0.0.1:{service}"
[services.away]
app = "a:b"
http = "127.0.0.1:{away}"
[gateway]
listen = "127.0.0.1:{listen}"
static = "web"
body_limit = 1000
header_limit = 4096
trusted_proxies = ["127.0.0.0/8"]
{more}
[gateway.issuers.login]
issuer = "https://login.example.com"
audience = ["shop"]
jwks = "https://login.example.com:8443/keys"
[gateway.limits.visits]
rate = "3/h"
burst = 3
by = "route"
[gateway.limits.often]
rate = "100/s"
by = "route"
[gateway.limits.each]
rate = "2/min"
by = "address"
[[gateway.routes]]
path = "/open"
service = "orders"
access = "public"
methods = ["GET", "POST"]
[[gateway.routes]]
path = "/open/live"
service = "orders"
access = "public"
stream = true
[[gateway.routes]]
path = "/open/closed"
service = "orders"
[[gateway.routes]]
path = "/orders"
service = "orders"
access = "public"
[[gateway.routes]]
path = "/orders"
service = "orders"
methods = ["POST"]
access = "session"
idempotency = "required"
[[gateway.routes]]
path = "/rated"
service = "orders"
access = "public"
limits = ["each"]
concurrency = 5
[[gateway.routes]]
path = "/seldom"
service = "orders"
access = "public"
limits = ["visits"]
[[gateway.routes]]
path = "/one"
service = "orders"
access = "public"
stream = true
concurrency = 1
[[gateway.routes]]
path = "/twice"
service = "orders"
access = "public"
limits = ["often", "visits"]
[[gateway.routes]]
path = "/gone"
service = "away"
access = "public"
[[gateway.routes]]
path = "/mine"
service = "orders"
access = "user"
issuers = ["login"]
[[gateway.routes]]
path = "/staff"
service = "orders"
access = "user"
roles = ["clerk"]
"""


def configured(folder: Path, service: int, listen: int = 0, more: str = "") -> Config:
    web = folder / "web"
    (web / "deep").mkdir(parents=True, exist_ok=True)
    (web / ".hidden").write_text("secret")
    (web / "index.html").write_text("<p>shop</p>")
    (web / "deep" / "index.html").write_text("<p>deep</p>")
    (web / "deepindex.html").write_text("<p>not this</p>")
    (web / "app.js").write_text("1")
    if not (web / "link").is_symlink():
        (folder / "outside").write_text("secret")
        (web / "link").symlink_to(folder / "outside")
    path = folder / "oyez.toml"
    text = SETTINGS.format(service=service, away=free_port(), listen=listen, more=more)
    path.write_text(text)
    return load(path, {})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Proxy(NamedTuple):
    """A proxy before the service."""

    port: int

    async def raw(self, data: bytes) -> bytes:
        """What comes back for exactly these bytes, until the proxy closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def ask(
        self, target: str, method: str = "GET", body: bytes = b"", head: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request that is sent byte for byte."""
        if body:
            head = f"content-length: {len(body)}\r\n{head}"
        if not head.startswith("host:"):
            head = f"host: shop.example\r\n{head}"
        line = f"{method} {target} HTTP/1.1\r\nconnection: close\r\n{head}\r\n"
        first, _, content = (await self.raw(line.encode("latin-1") + body)).partition(b"\r\n\r\n")
        status, *lines = first.decode("latin-1").split("\r\n")
        headers = dict(each.lower().split(": ", 1) for each in lines)
        return int(status.split()[1]), headers, content


@contextlib.asynccontextmanager
async def nginx(folder: Path, config: Config, port: int) -> AsyncIterator[Proxy]:
    """nginx with the exported file, until the block ends."""
    assert NGINX is not None
    file = folder / "nginx.conf"
    file.write_text(export(config, "nginx").text)
    # Its workers are to read the test's folder, which is nobody else's.
    extra = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    process = await asyncio.create_subprocess_exec(
        *(NGINX, "-p", f"{folder}", "-c", f"{file}", "-g", extra),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                assert process.returncode is None, (await process.communicate())[1].decode()
                await asyncio.sleep(0.01)
        yield Proxy(port)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


class Both(NamedTuple):
    gateway: Proxy
    nginx: Proxy
    seen: list[dict[str, Any]]


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    service = Upstream()
    async with listening(service) as port:
        own = configured(tmp_path, port)
        at = free_port()
        other = configured(tmp_path, port, at)
        async with serving(own) as client, nginx(tmp_path, other, at) as proxy:
            yield Both(Proxy(client.address.port), proxy, service.seen)


LARGE = "x" * 4096
REQUESTS: dict[str, tuple[str, str, bytes, str]] = {
    "open": ("/open", "GET", b"", ""),
    "below": ("/open/a/b?c=%2e%2e//", "GET", b"", ""),
    "head": ("/open", "HEAD", b"", ""),
    "posted": ("/open", "POST", b"body", ""),
    "encoded letter": ("/%6fpen/x", "GET", b"", ""),
    "encoded space": ("/open/a%20b", "GET", b"", ""),
    "UTF-8": ("/open/%c3%a4", "GET", b"", ""),
    "quotation mark": ('/open/"', "GET", b"", ""),
    "half a segment": ("/opener", "GET", b"", ""),
    "in another case": ("/OPEN", "GET", b"", ""),
    "no route": ("/nothing", "GET", b"", ""),
    "method": ("/open", "DELETE", b"", ""),
    "method below": ("/open/live", "POST", b"x", ""),
    "method without a route": ("/nothing", "POST", b"x", ""),
    "dots": ("/open/../orders", "GET", b"", ""),
    "dot": ("/open/./x", "GET", b"", ""),
    "dots at the end": ("/open/..", "GET", b"", ""),
    "encoded dots": ("/open/%2e%2e/orders", "GET", b"", ""),
    "dots encoded twice": ("/open/%252e%252e/orders", "GET", b"", ""),
    "encoded slash": ("/open%2fclosed", "GET", b"", ""),
    "encoded backslash": ("/open%5Cclosed", "GET", b"", ""),
    "two slashes": ("/open//closed", "GET", b"", ""),
    "semicolon": ("/open;/closed", "GET", b"", ""),
    "encoded semicolon": ("/open%3b/closed", "GET", b"", ""),
    "backslash": ("/open\\closed", "GET", b"", ""),
    "NUL": ("/open/%00", "GET", b"", ""),
    "line feed": ("/open%0a", "GET", b"", ""),
    "delete": ("/open/%7f", "GET", b"", ""),
    "malformed": ("/open/%zz", "GET", b"", ""),
    "not UTF-8": ("/open/%ff", "GET", b"", ""),
    "overlong UTF-8": ("/open/%c0%ae", "GET", b"", ""),
    "surrogate": ("/open/%ed%a0%80", "GET", b"", ""),
    "absolute": ("http://shop.example/open", "GET", b"", ""),
    "body too large": ("/open", "POST", b"x" * 1001, ""),
    "body just not too large": ("/open", "POST", b"x" * 1000, ""),
    "chunks too large": ("/open", "POST", b"", "transfer-encoding: chunked\r\n"),
    "encoded body": ("/open", "POST", b"x", "content-encoding: gzip\r\n"),
    "identity": ("/open", "POST", b"x", "content-encoding: identity\r\n"),
    "large header": ("/open", "GET", b"", f"x-large: {LARGE}\r\n"),
    "two lengths": ("/open", "POST", b"x", "content-length: 2\r\n"),
    "length and chunks": ("/open", "POST", b"x", "transfer-encoding: chunked\r\n"),
    "two hosts": ("/open", "GET", b"", "host: a\r\nhost: b\r\n"),
    "malformed host": ("/open", "GET", b"", "host: a<b\r\n"),
    "storefront": ("/", "GET", b"", ""),
    "a file": ("/app.js", "GET", b"", ""),
    "a folder": ("/deep/", "GET", b"", ""),
    "a folder without its slash": ("/deep", "GET", b"", ""),
    "a hidden file": ("/.hidden", "GET", b"", ""),
    "a link": ("/link", "GET", b"", ""),
    "a file, posted to": ("/app.js", "POST", b"x", ""),
    "health": ("/livez", "GET", b"", ""),
    "health, posted to": ("/livez", "POST", b"x", ""),
}
CHUNKS = b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"
COMPARED = (
    *("content-security-policy", "x-content-type-options", "referrer-policy", "x-frame-options"),
    *("content-type", "cache-control", "allow"),
)


@with_nginx
async def test_nginx_answers_as_the_gateway_does(both: Both) -> None:
    different = []
    for name, (target, method, body, head) in REQUESTS.items():
        if name == "chunks too large":
            line = f"POST {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n"
            answers = [
                int((await each.raw(line.encode() + CHUNKS)).split()[1]) for each in both[:2]
            ]
            if answers != [413, 413]:
                different.append((name, answers))
            continue
        before = len(both.seen)
        own, own_headers, own_body = await both.gateway.ask(target, method, body, head)
        seen = len(both.seen)
        other, other_headers, other_body = await both.nginx.ask(target, method, body, head)
        if own != other or seen - before != len(both.seen) - seen:
            different.append((name, own, other, len(both.seen) - before))
        different += [
            (name, header, own_headers, other_headers)
            for header in COMPARED
            if own_headers.get(header) != other_headers.get(header)
            and (header in own_headers or own != other or header != "cache-control")
        ]
        if own < 400 and own_body != other_body:
            different.append((name, own_body, other_body))
        if own >= 400 and method != "HEAD" and f'"status":{own},'.encode() not in other_body:
            different.append((name, other_body))
    assert not different, "\n".join(map(repr, different))
    assert len(both.seen) > 10


SENT = (
    "x-request-id: a-request-id\r\n"
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    "tracestate: a=1\r\n"
    "forwarded: for=1.2.3.4\r\n"
    "x-forwarded-for: 203.0.113.7\r\n"
    "x-forwarded-host: evil.example\r\n"
    "x-forwarded-proto: https\r\n"
    "x-real-ip: 1.2.3.4\r\n"
    "x-oyez-principal: user:admin\r\n"
    "x-oyez-identity: a.b.c\r\n"
    "x_oyez_identity: a.b.c\r\n"
    "authorization: Basic eDp5\r\n"
    "x-api-key: key\r\n"
    "proxy: evil.example\r\n"
    "via: 1.0 x\r\n"
    "te: trailers\r\n"
    "cookie: theme=dark; oyez_session=s.t; oyez_after=YQ; kept=1\r\n"
    "accept: text/plain\r\n"
)


@with_nginx
async def test_the_service_sees_behind_nginx_what_it_sees_behind_the_gateway(both: Both) -> None:
    for each in both[:2]:
        for head in (SENT, "", "cookie: oyez_session=s.t\r\n"):
            status, headers, _ = await each.ask("/open/a%20b?x=%2f", "POST", b"posted", head)
            assert status == 200, each
            if head == SENT:
                assert headers["x-request-id"] == "a-request-id"
            assert "x-oyez-principal" not in headers
    half = len(both.seen) // 2
    for own, other in zip(both.seen[:half], both.seen[half:], strict=True):
        for name in ("method", "raw_path", "path", "query_string", "body"):
            assert own[name] == other[name], name
        known, found = dict(own["map"]), dict(other["map"])
        # By the token in its cookie the gateway alone lets a client read its own writes.
        known.pop(b"oyez-after", None)
        assert known.keys() == found.keys()
        for headers in (known, found):
            assert len(headers.pop(b"x-request-id")) >= 8
            trace = headers.pop(b"traceparent").split(b"-")
            assert [len(each) for each in trace] == [2, 32, 16, 2]
            assert trace[2] != b"b7ad6b7169203331"
            if b"tracestate" in headers:
                assert trace[1] == b"0af7651916cd43dd8448eb211c80319c"
            headers.pop(b"connection", None)
        assert known == found
    assert both.seen[0]["map"][b"x-forwarded-for"] == b"203.0.113.7"


@with_nginx
async def test_nginx_refuses_what_it_cannot_hold(both: Both) -> None:
    before = len(both.seen)
    for target, method in (
        ("/open/closed", "GET"),
        ("/open/closed/below", "HEAD"),
        ("/open/%63losed", "GET"),
        ("/orders", "POST"),
        ("/mine", "GET"),
        ("/staff", "GET"),
        ("/session", "POST"),
        ("/.well-known/jwks.json", "GET"),
    ):
        status, _, content = await both.nginx.ask(target, method)
        assert status == 403, target
        if method != "HEAD":
            assert json.loads(content)["code"] == "not_exported"
    assert len(both.seen) == before
    assert (await both.nginx.ask("/orders"))[0] == 200


@with_nginx
async def test_both_hold_a_limit_by_the_address(both: Both) -> None:
    for each in both[:2]:
        found = [await each.ask("/rated") for _ in range(4)]
        assert [status for status, _, _ in found] == [200, 200, 429, 429]
        assert found[-1][1]["retry-after"] == "30"
        elsewhere = "x-forwarded-for: 2001:db8:1:2::{}\r\n"
        found = [await each.ask("/rated", head=elsewhere.format(n)) for n in range(1, 4)]
        assert [status for status, _, _ in found] == [200, 200, 429]


@with_nginx
async def test_a_service_that_is_away_is_told_of(both: Both) -> None:
    assert (await both.gateway.ask("/gone"))[0] == 503
    status, headers, content = await both.nginx.ask("/gone")
    assert (status, headers["retry-after"]) == (502, "1")
    assert json.loads(content)["status"] == 502


@with_nginx
async def test_a_stream_comes_as_it_goes_and_holds_its_place(both: Both) -> None:
    for each in both[:2]:
        assert (await each.ask("/one"))[0] == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", each.port)
        writer.write(b"GET /one/live HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(10):
            await reader.readuntil(b"data: 1\n\n")
        status, headers, content = await each.ask("/one")
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(content)["code"] == "overloaded"
        writer.close()


@with_nginx
@pytest.mark.parametrize(
    "more", ["access_log = 0.25", "access_log = 0\ntls = true\nconcurrency = 9"]
)
async def test_nginx_takes_the_file(tmp_path: Path, more: str) -> None:
    assert NGINX is not None
    file = tmp_path / "nginx.conf"
    file.write_text(export(configured(tmp_path, 9001, 9000, more), "nginx").text)
    process = await asyncio.create_subprocess_exec(
        *(NGINX, "-t", "-p", f"{tmp_path}", "-c", f"{file}"),
        stderr=asyncio.subprocess.PIPE,
    )
    said = (await process.communicate())[1].decode()
    assert process.returncode == 0, said
    assert "[warn]" not in said


def test_the_file_names_what_it_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(tmp_path, 9001, 9000)
    monkeypatch.chdir(tmp_path)
    for proxy, reasons in {
        "nginx": (
            'GET HEAD /open/closed: refused, access = "session" is known to the gateway alone',
            'POST /orders: refused, access = "session" is known to the gateway alone',
            'GET HEAD /mine: refused, access = "user" needs tokens checked, which nginx can\'t',
            "GET HEAD /twice: refused, limit visits is less than one in a minute",
            "GET HEAD /seldom: refused, limit visits is less than one in a minute",
        ),
        "envoy": (
            "GET HEAD /twice: refused, Envoy holds one limit of a route",
            "GET HEAD /staff: refused, scopes and roles are checked by the gateway alone",
            'GET HEAD /rated: refused, limit each by = "address" needs a rate limit service',
        ),
    }.items():
        result = CliRunner().invoke(command, ["export", proxy, "-o", proxy], obj=None)
        assert result.exit_code == 0, result.output
        head = (tmp_path / proxy).read_text().partition("\n\n")[0]
        for reason in (*reasons, "services are not told who asks"):
            assert f"#   {reason}" in head or f": {reason}" in head
            assert reason in result.stderr
        assert CliRunner().invoke(command, ["export", proxy, "--strict"]).exit_code == 1
    result = CliRunner().invoke(command, ["export", "nginx", "-o", "none/such"])
    assert (result.exit_code, "none/such" in result.stderr) == (2, True)


# Envoy, which is not run here: its file is looked into.


def routed(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    text = export(configured(tmp_path, 9001, 9000), "envoy").text
    tree = json.loads("".join(li for li in text.splitlines(True) if not li.startswith("#")))
    listener = tree["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return tree, manager["route_config"]["virtual_hosts"][0]["routes"]


def test_envoy_has_no_way_to_what_it_cannot_hold(tmp_path: Path) -> None:
    tree, routes = routed(tmp_path)
    ways = {route["match"]["path_separated_prefix"]: route for route in routes if "route" in route}
    assert sorted(ways) == ["/gone", "/mine", "/one", "/open", "/open/live", "/orders", "/seldom"]
    clusters = {each["name"] for each in tree["static_resources"]["clusters"]}
    assert {route["route"]["cluster"] for route in ways.values()} <= clusters
    assert ways["/orders"]["match"]["headers"][0]["string_match"]["safe_regex"]["regex"] == (
        "GET|HEAD"
    )
    closed = [
        route["direct_response"]["status"]
        for route in routes
        if route["match"].get("path_separated_prefix") == "/open/closed"
    ]
    assert closed == [403, 405]
    order = [route["match"].get("path_separated_prefix") for route in routes]
    assert order.index("/open/closed") < order.index("/open")
    assert routes[-1]["direct_response"]["status"] == 404


def test_envoy_checks_tokens_where_users_are_asked_for(tmp_path: Path) -> None:
    tree, routes = routed(tmp_path)
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    filters = {each["name"]: each for each in manager["typed_config"]["http_filters"]}
    tokens = filters["envoy.filters.http.jwt_authn"]["typed_config"]
    assert tokens["providers"]["login"]["issuer"] == "https://login.example.com"
    assert tokens["providers"]["login"]["audiences"] == ["shop"]
    cluster = tokens["providers"]["login"]["remote_jwks"]["http_uri"]["cluster"]
    found = {each["name"]: each for each in tree["static_resources"]["clusters"]}[cluster]
    assert "trusted_ca" in json.dumps(found["transport_socket"])
    way = next(each for each in routes if each["match"].get("path_separated_prefix") == "/mine")
    asked = way["typed_per_filter_config"]["envoy.filters.http.jwt_authn"]["requirement_name"]
    assert tokens["requirement_map"][asked] == {"provider_name": "login"}


def test_envoy_has_no_way_for_users_that_nobody_vouches_for(tmp_path: Path) -> None:
    text = configured(tmp_path, 9001, 9000).path.read_text()
    before, _, after = text.partition("[gateway.issuers.login]")
    path = tmp_path / "oyez.toml"
    path.write_text(before + after[after.index("[gateway.limits") :].replace('["login"]', "[]"))
    found = export(load(path, {}), "envoy")
    assert "GET HEAD /mine: refused, no issuer vouches for its users" in map(str, found.missing)
    assert '"path_separated_prefix": "/mine"' in found.text
    assert "jwt_authn" not in found.text


@pytest.mark.parametrize("name", REQUESTS)
def test_envoy_takes_no_path_that_the_gateway_refuses(name: str) -> None:
    import re

    target = REQUESTS[name][0]
    taken = re.fullmatch(_PATH, target) and not re.fullmatch(_DOTS, target)
    refused = {
        *("dots", "dot", "dots at the end", "encoded dots", "dots encoded twice", "two slashes"),
        *("encoded slash", "encoded backslash", "semicolon", "encoded semicolon", "backslash"),
        *("NUL", "line feed", "delete", "malformed", "absolute", "encoded letter"),
    }
    if name not in ("not UTF-8", "overlong UTF-8", "surrogate"):
        assert bool(taken) == (name not in refused)
    assert re.fullmatch(_CHARACTER, "%63") is None


def test_every_setting_is_written_or_said_to_be_missing() -> None:
    """A setting that the export does not know would be left out, and nobody would see it."""
    for schema, said in ((Route, SAID_OF_ROUTES), (GatewaySettings, SAID_OF_THE_GATEWAY)):
        assert {field.name for field in msgspec.structs.fields(schema)} == said


def test_what_only_the_gateway_can_do_is_refused_or_said(tmp_path: Path) -> None:
    more = """
    [gateway.cors]
    origins = ["https://shop.example.com"]
    [gateway.openapi]
    [gateway.login]
    issuer = "https://login.example.com"
    client_id = "shop"
    """
    routes = """
    [[gateway.routes]]
    path = "/slow"
    service = "orders"
    access = "public"
    methods = ["POST"]
    until = ["shop.order.shipped"]
    [[gateway.routes]]
    path = "/talk"
    service = "orders"
    access = "public"
    websocket = true
    [[gateway.routes]]
    path = "/text"
    service = "orders"
    access = "public"
    compress = true
    """
    text = SETTINGS.format(service=1, away=2, listen=3, more=more) + routes
    (tmp_path / "oyez.toml").write_text(text)
    (tmp_path / "web").mkdir()
    missing = [str(each) for each in export(load(tmp_path, {}), "nginx").missing]
    for where in ("POST /slow: refused, until", "GET HEAD /talk: refused, websocket"):
        assert any(each.startswith(where) for each in missing), where
    for where in ("/login", "/login/callback", "/logout", "/openapi.json", "/reference"):
        assert any(each.startswith(f"{where}: refused") for each in missing), where
    for where in ("gateway: cors", "gateway: compress"):
        assert any(each.startswith(where) for each in missing), where
