"""The gateway against nginx: proxied requests over connections that are kept, one in each.

Both stand before the same service and add the same headers for it and for the client, as far as
nginx knows them. wrk is the client of both. The figure that a shared machine leaves alone is the
CPU that a proxy's process spends on a request, and from it the requests that one core would carry.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave
from benchmarks.http_peers import ANSWERED, POSTED
from benchmarks.machine import Surroundings
from benchmarks.servers import NotRunning
from oyez.gateway import edge

CONNECTIONS = (16, 256)
USERS = 16
_ISSUER = "https://login.example.com"
_TICKS = os.sysconf("SC_CLK_TCK")

_GATEWAY = """
[system]
name = "shop"
log = "json"
[services.orders]
app = "orders:service"
http = "127.0.0.1:{service}"
[gateway]
listen = "127.0.0.1:{port}"
access_log = {logged}
[[gateway.routes]]
path = "/orders"
service = "orders"
access = "public"
methods = ["GET", "POST"]
[[gateway.routes]]
path = "/held"
service = "orders"
access = "user"
methods = ["GET", "POST"]
limits = ["each"]
[gateway.limits.each]
rate = "100000/s"
[gateway.issuers.login]
issuer = "https://login.example.com"
audience = ["shop"]
jwks = "keys.json"
"""
_NGINX = """
daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{ worker_connections 1024; }}
http {{
  access_log {log};
  keepalive_requests 1000000000; client_max_body_size 1m; server_tokens off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
  uwsgi_temp_path temp; scgi_temp_path temp;
  limit_req_zone $remote_addr zone=each:1m rate=100000r/s;
  upstream orders {{
    server 127.0.0.1:{service}; keepalive 256; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Forwarded 'for="$remote_addr";host="$http_host";proto=$scheme';
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Request-Id $request_id;
    proxy_set_header X-Oyez-Principal "";
    proxy_set_header Authorization "";
    add_header Content-Security-Policy "default-src 'self'; base-uri 'none'; form-action 'self'";
    add_header X-Content-Type-Options nosniff;
    add_header Referrer-Policy no-referrer;
    add_header X-Frame-Options DENY;
    add_header X-Request-Id $request_id;
    location / {{ return 404; }}
    location /orders {{ proxy_pass http://orders; }}
    location /held {{ limit_req zone=each burst=100000 nodelay; proxy_pass http://orders; }}
  }}
}}
"""
# wrk can't read requests from a file: they are in its script, and it goes through them.
_SCRIPT = """
local requests, at = {{{requests}}}, 0
function request() at = at % #requests + 1; return requests[at] end
function done(summary, latency)
  local failed = 0
  for _, count in pairs(summary.errors) do failed = failed + count end
  io.write(string.format('\\n{{"requests": %d, "us": %d, "failed": %d, "p50": %f, "p99": %f}}',
    summary.requests, summary.duration, failed, latency:percentile(50), latency:percentile(99)))
end
"""
_HEAD = (
    "{method} {path}/{number:08x} HTTP/1.1\r\n"
    "Host: shop.example\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    "Accept: application/json\r\n"
    "Accept-Language: en\r\n"
    "Cookie: theme=dark\r\n"
)


async def run(here: Surroundings) -> Report:
    """GET and POST of 1 KB, without an access log; with tokens and a limit; and GET, logged."""
    for program, package in (("nginx", "nginx-light"), ("wrk", "wrk")):
        if shutil.which(program) is None:
            raise NotRunning(f"{program} is not installed: apt-get install {package}")
    seconds, rounds = here.pick(1, 2), here.pick(2, 7)
    rows: list[Row] = []
    aims: list[Aim] = []
    plain, held = Load("/orders", [""]), tokens(here.ambient.now())
    async with _proxies(here, held, logged=False) as proxies:
        relay = proxies.pop("relay")
        for load, what, share in ((plain, "", 0.5), (held, ", JWT and limit", 0.4)):
            for method in ("GET", "POST"):
                for connections in CONNECTIONS:
                    case = f"{method}, {connections} connections{what}"
                    ways = dict(proxies)
                    if load is plain and connections == CONNECTIONS[0]:
                        ways["relay"] = relay
                    for _, port in ways.values():
                        await _check(port, load.requests(method))
                    turn = partial(_turn, load.script(here, method), connections, seconds)
                    rows += await _compare(case, ways, turn, rounds)
                    aims += _aims(case, share)
    async with _proxies(here, held, logged=True) as proxies:
        proxies.pop("relay")
        turn = partial(_turn, plain.script(here, "GET"), CONNECTIONS[0], seconds)
        rows += await _compare("GET, logged", proxies, turn, rounds)
    return Report(
        benchmark="gateway",
        about="a proxied request of 1 KB; the first way is oyez",
        rows=rows,
        aims=aims,
        lacks={
            "nginx": "sessions, API keys, tokens (it drops them unread, and limits an address), "
            "methods by route, one budget for all bodies, traces, the cookie for one's own writes; "
            "it reads requests more laxly",
            "relay": "it reads nothing: what uvloop itself costs between two sockets",
        },
        notes=[
            f"the gateway is {form()}",
            "one process each; every answer was 200, and every posted body arrived unchanged; "
            "before each case the answers to its requests were compared whole",
        ],
    )


def _aims(case: str, share: float) -> list[Aim]:
    return [
        Aim(
            what=f"gateway, {case}, {what} beside nginx",
            case=case,
            figure=figure,
            way="nginx",
            **limit,
        )
        for what, figure, limit in (
            ("requests/s a core", "requests/s a core", {"at_least": share}),
            ("p99", "p99 ms", {"at_most": 2.0}),
        )
    ]


class Load:
    """What clients ask for: below a path, each with one of several lines in its head.

    ``keys`` is the key set of the issuer of their tokens.
    """

    def __init__(self, path: str, lines: Sequence[str], keys: str = "") -> None:
        self.keys = keys
        self._path = path
        self._lines = lines

    def requests(self, method: str) -> list[bytes]:
        """Return 64 requests, with all of the lines among them."""
        return [
            _request(method, self._path, number, self._lines[number % len(self._lines)])
            for number in range(64)
        ]

    def script(self, here: Surroundings, method: str) -> Path:
        """Return a script that has wrk send them."""
        requests = ",".join(json.dumps(each.decode()) for each in self.requests(method))
        path = here.fresh("wrk") / "script.lua"
        path.write_text(_SCRIPT.format(requests=requests))
        return path


async def _compare(
    case: str,
    proxies: dict[str, tuple[int, int]],
    turn: partial[Awaitable[Figures]],
    rounds: int,
) -> list[Row]:
    ways = [Way(name, partial(turn, pid, port)) for name, (pid, port) in proxies.items()]
    return await interleave(case, ways, rounds)


async def _turn(script: Path, connections: int, seconds: int, pid: int, port: int) -> Figures:
    cpu = _cpu(pid)
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", f"{script}"),
        f"http://127.0.0.1:{port}",
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    cpu = _cpu(pid) - cpu
    if process.returncode:
        raise NotRunning(f"wrk ended with {process.returncode}")
    found = json.loads(printed.splitlines()[-1])
    assert not found["failed"], f"{found['failed']} requests failed"
    count = found["requests"]
    return {
        "requests/s a core": count / cpu,
        "µs CPU a request": cpu / count * 1e6,
        "requests/s": count / found["us"] * 1e6,
        "p50 ms": found["p50"] / 1000,
        "p99 ms": found["p99"] / 1000,
    }


async def _check(port: int, requests: Sequence[bytes]) -> None:
    """Compare the whole answer to each request, which wrk doesn't."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(15):
        for request in requests:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), f"a wrong answer: {head!r}"
            assert await reader.readexactly(len(ANSWERED)) == ANSWERED
    writer.close()


def tokens(now: float) -> Load:
    """Return the load of users with tokens, and the key that signed these."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "1", "alg": "RS256"}
    claims = {"iss": _ISSUER, "aud": "shop", "iat": int(now), "exp": int(now) + 86_400}
    tokens = [
        jwt.encode({**claims, "sub": f"user-{number}"}, key, "RS256", headers={"kid": "1"})
        for number in range(USERS)
    ]
    lines = [f"Authorization: Bearer {each}\r\n" for each in tokens]
    return Load("/held", lines, json.dumps({"keys": [public]}))


def _request(method: str, path: str, number: int, line: str) -> bytes:
    head = (_HEAD.format(method=method, path=path, number=number) + line).encode()
    if method == "GET":
        return head + b"\r\n"
    posted = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    return head + posted % (len(POSTED), POSTED)


def configured(folder: Path, held: Load, *, service: int, port: int, logged: bool = False) -> None:
    """Write the project of a gateway in front of the service at a port."""
    (folder / "keys.json").write_text(held.keys)
    (folder / "oyez.toml").write_text(
        _GATEWAY.format(service=service, port=port, logged=int(logged))
    )


def form() -> str:
    """Return in which form the gateway runs here."""
    return "pure Python" if f"{edge.__file__}".endswith(".py") else "compiled"


@asynccontextmanager
async def _proxies(
    here: Surroundings, held: Load, *, logged: bool
) -> AsyncIterator[dict[str, tuple[int, int]]]:
    """Process and port of each way, in front of one service, until the block ends."""
    python = [sys.executable, "-m"]
    service, own, nginx, relay = _free_ports(4)
    folder = here.fresh("gateway")
    configured(folder, held, service=service, port=own, logged=logged)
    (folder / "nginx.conf").write_text(
        _NGINX.format(service=service, port=nginx, log="access.log" if logged else "off")
    )
    async with AsyncExitStack() as stack:

        async def start(port: int, *command: str, root: Path | None = None) -> tuple[int, int]:
            return await stack.enter_async_context(_process(port, command, folder, root))

        await start(service, *python, "benchmarks.http_peers", "service", str(service))
        yield {
            "oyez gateway": await start(own, *python, "oyez", "gateway", root=folder),
            "nginx": await start(nginx, "nginx", "-p", str(folder), "-c", "nginx.conf"),
            "relay": await start(
                relay, *python, "benchmarks.http_peers", "relay", str(relay), str(service)
            ),
        }


@asynccontextmanager
async def _process(
    port: int, command: Sequence[str], folder: Path, root: Path | None
) -> AsyncIterator[tuple[int, int]]:
    with (folder / f"log-{port}").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=root, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(15):
            while not await _answers(port):
                if process.returncode is not None:
                    raise NotRunning(f"{command[0]} ended: {(folder / f'log-{port}').read_text()}")
                await asyncio.sleep(0.02)
        yield process.pid, port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
