"""The gateway against nginx: proxied requests over 16 connections that are kept, one in each.

Both stand before the same service and add the same headers for it and for the client, as far as
nginx knows them. The figure that a shared machine leaves alone is the CPU that a proxy's process
spends on a request, and from it the requests that one core would carry.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave, percentile
from benchmarks.http_peers import ANSWERED, POSTED
from benchmarks.machine import Surroundings
from benchmarks.servers import NotRunning

CONNECTIONS = 16
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
"""
_NGINX = """
daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{ worker_connections 256; }}
http {{
  access_log {log};
  keepalive_requests 1000000000; client_max_body_size 1m; server_tokens off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
  uwsgi_temp_path temp; scgi_temp_path temp;
  upstream orders {{
    server 127.0.0.1:{service}; keepalive 100; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 404; }}
    location /orders {{
      proxy_pass http://orders; proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Forwarded 'for="$remote_addr";host="$http_host";proto=$scheme';
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Request-Id $request_id;
      proxy_set_header X-Oyez-Principal "";
      add_header Content-Security-Policy "default-src 'self'; base-uri 'none'; form-action 'self'";
      add_header X-Content-Type-Options nosniff;
      add_header Referrer-Policy no-referrer;
      add_header X-Frame-Options DENY;
      add_header X-Request-Id $request_id;
    }}
  }}
}}
"""
_HEAD = (
    "{method} /orders/{number:08x} HTTP/1.1\r\n"
    "Host: shop.example\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    "Accept: application/json\r\n"
    "Accept-Language: en\r\n"
    "Cookie: theme=dark\r\n"
)


async def run(here: Surroundings) -> Report:
    """GET and POST of 1 KB without an access log, and GET with a line for each request."""
    if shutil.which("nginx") is None:
        raise NotRunning("nginx is not installed: apt-get install nginx-light")
    seconds = 1.0 if here.quick else 3.0
    rounds = here.pick(3, 9)
    rows: list[Row] = []
    async with _proxies(here, logged=False) as proxies:
        for method in ("GET", "POST"):
            rows += await _compare(f"{method} 1 KB", proxies, method, seconds, rounds)
    async with _proxies(here, logged=True) as proxies:
        proxies.pop("relay")
        rows += await _compare("GET, logged", proxies, "GET", seconds, rounds)
    return Report(
        benchmark="gateway",
        about=f"a proxied request, {CONNECTIONS} connections; the first way is oyez",
        rows=rows,
        aims=[
            Aim(
                what=f"gateway, {case}, {what} beside nginx",
                case=case,
                figure=figure,
                way="nginx",
                **limit,
            )
            for case in ("GET 1 KB", "POST 1 KB")
            for what, figure, limit in (
                ("requests/s a core", "requests/s a core", {"at_least": 0.5}),
                ("p99", "p99 ms", {"at_most": 2.0}),
            )
        ],
        lacks={
            "nginx": "sessions, API keys, methods by route, one budget for all bodies, traces, the "
            "cookie for one's own writes; it reads requests more laxly",
            "relay": "it reads nothing: what uvloop itself costs between two sockets",
        },
        notes=[
            "one process each; every answer was complete and every posted body arrived unchanged"
        ],
    )


async def _compare(
    case: str, proxies: dict[str, tuple[int, int]], method: str, seconds: float, rounds: int
) -> list[Row]:
    ways = [
        Way(name, partial(_turn, pid, port, method, seconds))
        for name, (pid, port) in proxies.items()
    ]
    return await interleave(case, ways, rounds)


async def _turn(pid: int, port: int, method: str, seconds: float) -> Figures:
    requests = [_request(method, number) for number in range(64)]
    loop = asyncio.get_running_loop()
    clients = [Client(requests) for _ in range(CONNECTIONS)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
    cpu, start = _cpu(pid), time.perf_counter()
    for client in clients:
        client.begin(start + seconds)
    await asyncio.gather(*(client.ended for client in clients))
    took, cpu = time.perf_counter() - start, _cpu(pid) - cpu
    latencies = [each for client in clients for each in client.latencies]
    count = len(latencies)
    return {
        "requests/s a core": count / cpu,
        "µs CPU a request": cpu / count * 1e6,
        "requests/s": count / took,
        "p50 ms": percentile(latencies, 0.5) * 1000,
        "p99 ms": percentile(latencies, 0.99) * 1000,
    }


class Client(asyncio.Protocol):
    """One connection that sends the next request when the last was answered."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.latencies: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the turn, unless it has ended."""
        if not self.ended.done():
            self.ended.set_exception(ConnectionError("the proxy hung up"))

    def begin(self, until: float) -> None:
        """Send until then."""
        self._until = until
        self._sent = time.perf_counter()
        self._transport.write(self._requests[0])

    def data_received(self, data: bytes) -> None:
        """Check an answer once it is complete, and send the next request."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < len(ANSWERED):
            if end and not head.startswith(b"HTTP/1.1 200 "):
                self._fail(head)
            return
        if body != ANSWERED or not head.startswith(b"HTTP/1.1 200 "):
            self._fail(head)
            return
        self._received = b""
        now = time.perf_counter()
        self.latencies.append(now - self._sent)
        if now < self._until:
            self._sent = now
            self._transport.write(self._requests[len(self.latencies) % len(self._requests)])
        else:
            self.ended.set_result(None)
            self._transport.close()

    def _fail(self, head: bytes) -> None:
        if not self.ended.done():
            self.ended.set_exception(AssertionError(f"a wrong answer: {head!r}"))
        self._transport.abort()


def _request(method: str, number: int) -> bytes:
    head = _HEAD.format(method=method, number=number).encode()
    if method == "GET":
        return head + b"\r\n"
    posted = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    return head + posted % (len(POSTED), POSTED)


@asynccontextmanager
async def _proxies(
    here: Surroundings, *, logged: bool
) -> AsyncIterator[dict[str, tuple[int, int]]]:
    """Process and port of each way, in front of one service, until the block ends."""
    python = [sys.executable, "-m"]
    service, own, nginx, relay = _free_ports(4)
    folder = here.fresh("gateway")
    (folder / "oyez.toml").write_text(
        _GATEWAY.format(service=service, port=own, logged=int(logged))
    )
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
