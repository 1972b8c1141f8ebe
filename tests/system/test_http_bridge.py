"""A program in any language behind an HTTP bridge, both killed again and again.

Each event has its effect in the program, deduplicated by the idempotency key, in the order of its
key; what the program announces for it is on the broker once. The program is a server of the
standard library, which fails in every way there is.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from oyez.envelope import Envelope, open_record
from oyez.ports import BEGINNING
from oyez.testing.ticks import Ticks, ticking, until
from servers import server

TICKS = int(os.environ.get("OYEZ_TEST_ORDERS", "8"))
"""Of each clock; more take longer, and meet more kills."""
NAMES = tuple(f"clock-{n}" for n in range(12))
TOKEN = "a-token-of-the-program"
BRIDGE = """
[services.points]
url = "http://127.0.0.1:{port}/events"
handles = ["ticks.tick"]
publishes = ["points.earned"]
http = "127.0.0.1:{http}"
lease = 1.0
grace = 2.0
replicas = 2
bridge.token = "{token}"
bridge.timeout = 0.5
bridge.first = 0.05
bridge.longest = 0.2
bridge.attempts = 1000
{more}
"""
PROGRAM = """
import json, os, random, socket, sqlite3, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

chance = random.Random(int(sys.argv[2]))

class Points(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if chance.random() < 0.5:  # before the effect, or after it
            return self.fail()
        events, batch = [json.loads(body)], False
        if "batch" in self.headers["content-type"]:
            events, batch = events[0], True
        answer = []
        store = sqlite3.connect("program.db", timeout=10)
        with store:
            store.execute("begin immediate")
            for event in events:
                tick = event["data"] if batch else event
                key = event["idempotencykey"] if batch else self.headers["idempotency-key"]
                store.execute("insert or ignore into row (key, name, number) values (?, ?, ?)",
                              (key, tick["name"], tick["number"]))
                answer.append({"specversion": "1.0", "id": key, "source": "/p",
                               "type": "points.earned", "subject": tick["name"], "data": tick,
                               "causationid": event["id"] if batch else self.headers["ce-id"]})
        store.close()
        if chance.random() < 0.3:
            return self.fail()
        self.answer(200, json.dumps(answer).encode(), "application/cloudevents-batch+json")

    def fail(self):
        way = chance.randrange(7)
        if way == 0:
            self.answer(500)
        elif way == 1:
            self.answer(429, retry=str(chance.randrange(2)))
        elif way == 2:
            time.sleep(1.0)
            self.close_connection = True
        elif way == 3:
            self.answer(200, b"{garbage", "application/cloudevents+json")
        elif way == 4:
            self.answer(200, b" " * 5_000_000, "application/cloudevents+json")
        elif way == 5:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.answer(503)

    def answer(self, status, body=b"", kind="text/plain", retry=None):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if retry:
            self.send_header("retry-after", retry)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

with sqlite3.connect("program.db", timeout=10) as store:
    store.execute("create table if not exists row (seq integer primary key autoincrement,"
                  " key text unique, name text, number integer)")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Points).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Bridged:
    """A system with a bridged service, its program and two bridges."""

    def __init__(self, ticks: Ticks, more: str = "") -> None:
        self.ticks = ticks
        self.port, self.http = free_port(), free_port()
        self.programs: list[subprocess.Popen[bytes]] = []
        text = BRIDGE.format(port=self.port, http=self.http, token=TOKEN, more=more)
        with (ticks.root / "oyez.toml").open("a") as toml:
            toml.write(text)
        (ticks.root / "program.py").write_text(PROGRAM)

    def start_program(self, seed: int) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(
            [sys.executable, "program.py", str(self.port), str(seed)], cwd=self.ticks.root
        )
        self.programs.append(made)
        return made

    def start_bridge(self) -> subprocess.Popen[bytes]:
        return self.ticks.start_replica("bridge", "http", "points")

    def rows(self) -> list[tuple[str, int]]:
        try:
            with sqlite3.connect(self.ticks.root / "program.db", timeout=10) as store:
                return store.execute("select name, number from row order by seq").fetchall()
        except sqlite3.OperationalError:
            return []

    async def earned(self) -> list[Envelope]:
        """Every announcement on the broker, in the order of its partition."""
        broker, stream = self.ticks.broker, f"{self.ticks.name}.points"
        found = []
        for partition, end in enumerate(await broker.ends(stream)):
            at = BEGINNING
            if at >= end:
                continue
            async for batch in broker.read(stream, partition, at):
                found += [open_record(each.headers, each.data) for each in batch.records]
                at = batch.records[-1].position
                if at >= end:
                    break
        return found

    async def publish(self, key: str, event: object, **headers: str) -> httpx.Response:
        headers = {
            "authorization": f"Bearer {TOKEN}",
            "idempotency-key": key,
            "content-type": "application/cloudevents+json",
            **headers,
        }
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        async with httpx.AsyncClient(timeout=10.0) as client:
            url = f"http://127.0.0.1:{self.http}/publish"
            return await client.post(url, headers=headers, content=body)


@asynccontextmanager
async def bridging(root: Path, more: str = "", **urls: str) -> AsyncIterator[Bridged]:
    async with ticking(root, **urls) as ticks:
        made = Bridged(ticks, more)
        try:
            yield made
        finally:
            for program in made.programs:
                program.kill()
                program.wait()


async def killed(bridged: Bridged, seed: int) -> None:
    """Kill bridges and programs at random while ticks come; then all must be there, once."""
    chance = random.Random(seed)
    ticks = bridged.ticks
    program = bridged.start_program(seed)
    bridges = [bridged.start_bridge(), bridged.start_bridge()]
    for number in range(TICKS):
        await ticks.tick(*NAMES)
        await asyncio.sleep(chance.random() * 0.3)
        victim = chance.randrange(4)
        if victim < 2:
            bridges[victim].kill()
            bridges[victim] = bridged.start_bridge()
        elif victim == 2:
            program.kill()
            program.wait()
            program = bridged.start_program(seed + number)
    count = TICKS * len(NAMES)

    async def complete() -> bool:
        return len(bridged.rows()) >= count

    await until(complete, 90.0, ticks._last_words)
    wanted = {name: list(range(1, TICKS + 1)) for name in NAMES}
    done: dict[str, list[int]] = {name: [] for name in NAMES}
    for name, tick in bridged.rows():
        done[name].append(tick)
    assert done == wanted

    async def announced() -> bool:
        return len({each.id for each in await bridged.earned()}) >= count

    await until(announced, 30.0, ticks._last_words)
    told: dict[str, list[int]] = {name: [] for name in NAMES}
    seen = set()
    for each in await bridged.earned():
        if each.id in seen:
            continue  # a copy that the relay made, which consumers drop
        seen.add(each.id)
        assert each.source == f"/{ticks.name}/points"
        tick = json.loads(each.data)
        told[tick["name"]].append(tick["number"])
    assert told == wanted
    for bridge in bridges:
        bridge.send_signal(signal.SIGTERM)
    assert [await asyncio.to_thread(each.wait, 15) for each in bridges] == [0, 0]


@pytest.mark.parametrize("form", ["binary", "batch"])
async def test_kills_lose_nothing_and_announce_once(tmp_path: Path, form: str) -> None:
    more = f'bridge.form = "{form}"'
    async with bridging(tmp_path / "ticks", more, broker="embedded:.oyez/events.db") as bridged:
        await killed(bridged, seed=12)


async def test_kills_on_a_server(tmp_path: Path) -> None:
    async with bridging(tmp_path / "ticks", broker=server("nats").url) as bridged:
        await killed(bridged, seed=7)


# -- POST /publish on its socket -------------------------------------------------------------------

EARNED = {
    "specversion": "1.0",
    "id": "1",
    "source": "/p",
    "type": "points.earned",
    "subject": "a",
    "data": {"points": 1},
}
HEAD = (
    b"POST /publish HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\nidempotency-key: raw\r\n"
    b"content-type: application/cloudevents+json\r\n" % TOKEN.encode()
)


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as made:
        yield made


def raw(port: int, data: bytes) -> bytes:
    """Send bytes; return the first line that is answered, empty for none."""
    with connected(port) as made:
        made.sendall(data)
        try:
            return made.recv(65_536).partition(b"\r\n")[0]
        except ConnectionError:
            return b""


async def test_bad_requests_are_refused(tmp_path: Path) -> None:
    async with bridging(tmp_path / "ticks", broker="embedded:.oyez/events.db") as bridged:
        bridged.start_bridge()

        async def up() -> bool:
            try:
                return (await bridged.publish("ready", EARNED)).status_code == 202
            except httpx.TransportError:
                return False

        await until(up, why=bridged.ticks._last_words)
        cases: list[tuple[int, str, object, dict[str, str]]] = [
            (401, "a", EARNED, {"authorization": "Bearer wrong"}),
            (401, "a", EARNED, {"authorization": ""}),
            (400, "", EARNED, {}),
            (400, "x" * 201, EARNED, {}),
            (400, "a b", EARNED, {}),
            (415, "a", EARNED, {"content-type": "text/plain"}),
            (415, "a", EARNED, {"content-encoding": "gzip"}),
            (415, "a", EARNED, {"content-type": "application/cloudevents+json; charset=utf-16"}),
            (400, "a", b"{", {}),
            (400, "a", b'"\xff"', {}),
            (422, "a", b"[" * 70 + b"]" * 70, {}),
            (422, "a", {**EARNED, "type": "points.lost"}, {}),
            (422, "a", b'{"specversion":"1.0","specversion":"1.0"}', {}),
            (422, "a", {**EARNED, "data": {"points": 2**63}}, {}),
            (422, "a", {**EARNED, "subject": "\u0000"}, {}),
            (422, "a", {**EARNED, "data_base64": "e30="}, {}),
            (413, "a", b" " * 4_194_305, {}),
            (422, "a", b"{}", {"content-type": "application/json", "ce-specversion": "1.0"}),
        ]
        for status, key, event, headers in cases:
            answer = await bridged.publish(key, event, **headers)
            assert answer.status_code == status, (answer.text, key, event if status != 413 else "")
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == status
            assert TOKEN not in answer.text
        async with httpx.AsyncClient() as client:
            where = f"http://127.0.0.1:{bridged.http}"
            assert (await client.get(f"{where}/publish")).status_code == 405
            assert (await client.post(f"{where}/publish/")).status_code == 404
            assert (await client.post(f"{where}/../publish")).status_code in (401, 404)
        port = bridged.http
        two = raw(port, HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}")
        assert two == b"" or two.startswith(b"HTTP/1.1 400"), two
        both = raw(port, HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}")
        assert b"202" not in both
        chunk = raw(port, HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n")
        assert b"202" not in chunk
        slow = await asyncio.to_thread(raw, port, HEAD + b"content-length: 100\r\n\r\n{")
        assert b" 408 " in slow
        body = json.dumps({**EARNED, "data": {"points": 2}}).encode()
        binary = await bridged.publish(
            "binary",
            b'{"points": 3}',
            **{
                "content-type": "application/json",
                "ce-specversion": "1.0",
                "ce-id": "1",
                "ce-source": "/p",
                "ce-type": "points.earned",
                "ce-subject": "%C3%A9",
            },
        )
        assert binary.status_code == 202
        again = await bridged.publish("raw", body)
        assert again.status_code == 202

        async def published() -> bool:
            return len(await bridged.earned()) >= 3

        await until(published, why=bridged.ticks._last_words)
        assert sorted(str(each.subject) for each in await bridged.earned()) == ["a", "a", "é"]


async def test_a_unix_socket_needs_no_token(tmp_path: Path) -> None:
    more = 'bridge.socket = "points.sock"\n'
    async with bridging(tmp_path / "ticks", more, broker="embedded:.oyez/events.db") as bridged:
        toml = bridged.ticks.root / "oyez.toml"
        head, _, own = toml.read_text().partition("[services.points]")
        own = own.replace("replicas = 2", "replicas = 1").replace(f'bridge.token = "{TOKEN}"\n', "")
        own = "".join(line for line in own.splitlines(True) if not line.startswith("http ="))
        toml.write_text(f"{head}[services.points]{own}")
        first = bridged.start_bridge()
        path = bridged.ticks.root / "points.sock"

        async def publish() -> bool:
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, base_url="http://points") as client:
                kind = {"content-type": "application/cloudevents+json", "idempotency-key": "1"}
                try:
                    answer = await client.post("/publish", headers=kind, json=EARNED)
                except httpx.TransportError:
                    return False
                assert answer.status_code == 202, answer.text
                return True

        await until(publish, why=bridged.ticks._last_words)
        first.kill()
        first.wait()
        bridged.start_bridge()  # what the dead process has left is replaced
        await until(publish, why=bridged.ticks._last_words)


# -- the command -----------------------------------------------------------------------------------


async def test_the_command_names_what_there_is(tmp_path: Path) -> None:
    async with bridging(tmp_path / "ticks", broker="embedded:.oyez/events.db") as bridged:
        run: Any = bridged.ticks.run
        wrong = run("bridge", "http", "counter")
        assert wrong.returncode == 2
        assert "counter has no url; there are: points" in wrong.stderr
        assert run("bridge", "over").returncode == 2
        assert "there is no service 'none'" in run("bridge", "http", "none").stderr
        assert run("bridge", "over", "points").returncode == 2
        assert re.search(r"^ticks.tick .*points.post", run("topology").stdout, re.MULTILINE)
        faults = json.loads(run("contracts", "check", "--json").stdout)["faults"]
        # Nobody in this project publishes ticks; of data that nobody knows, nothing is said.
        assert {each["rule"] for each in faults} == {"TYPE_UNPUBLISHED"}
        assert {each["type"] for each in faults} == {"ticks.tick"}
        examined = json.loads(run("doctor", "points", "--json").stdout)["findings"]
        (program,) = [each for each in examined if each["check"] == "program points"]
        assert program["level"] == "warning"
        assert program["remedy"] == "start it: an event becomes a dead letter after 1000 attempts"
        bridged.start_program(1)

        async def answers() -> bool:
            found = json.loads(run("doctor", "points", "--json").stdout)["findings"]
            levels = {each["check"]: each["level"] for each in found}
            return bool(levels["program points"] == "ok")

        await until(answers)
