"""The counter of the conformance kit as a server of the standard library behind an HTTP bridge.

``python bridge_counter.py`` starts the bridge on a project in the folder that it is told, and is
the program that the bridge posts to. See `docs/wire/conformance.md`.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOLD = os.environ
ROOT = Path(TOLD["CONFORMANCE_DATA"])
TOML = """[system]
name = "{system}"
broker = "{broker}"
partitions = {partitions}

[services.counter]
url = "http://127.0.0.1:9/counter"
handles = ["conformance.tick"]
publishes = ["conformance.tock"]
store = "sqlite:bridge.db"
lease = 2.0
grace = 5.0
replicas = 2
bridge.timeout = 120
bridge.attempts = 1000
bridge.first = 0.2
bridge.longest = 0.5
"""


class Counter(BaseHTTPRequestHandler):
    """The program: all that a service in another language has to do."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        tick = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if type(tick.get("name")) is not str or type(tick.get("number")) is not int:
            self.reply(422, b"a tick has a name and a number", "text/plain")
            return
        name, number, key = tick["name"], tick["number"], self.headers["idempotency-key"]
        hold = Path(TOLD["CONFORMANCE_HOLD"])
        while name == "slow" and hold.exists():
            Path(f"{hold}.started").touch()
            time.sleep(0.1)
        if (name, number) == ("poison", 1) and Path(TOLD["CONFORMANCE_FAIL"]).exists():
            self.reply(500, b"it is poison", "text/plain")
            return
        with closing(rows()) as db, db:
            db.execute("insert or ignore into row (key, name, number) values (?, ?, ?)",
                       (key, name, number))  # fmt: skip
        tock = {"specversion": "1.0", "id": key, "source": "/counter", "type": "conformance.tock",
                "subject": name, "data": {"name": name, "number": number}}  # fmt: skip
        self.reply(200, json.dumps(tock).encode(), "application/cloudevents+json")

    def do_GET(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in shown())
        self.reply(200, lines.encode(), "application/jsonl")

    def reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


def rows() -> sqlite3.Connection:
    db = sqlite3.connect(ROOT / "rows.db", timeout=20.0)
    db.execute("pragma synchronous = full")
    db.execute("create table if not exists row (seq integer primary key autoincrement,"
               " key text unique, name text, number integer)")  # fmt: skip
    return db


def shown() -> list[dict[str, Any]]:
    """The rows of the program, and what the bridge's store says of dead letters and positions."""
    with closing(rows()) as db:
        found = db.execute("select name, number from row order by seq").fetchall()
    lines: list[dict[str, Any]] = [{"row": {"name": n, "number": i}} for n, i in found]
    with closing(sqlite3.connect(ROOT / "bridge.db", timeout=20.0)) as db:
        letters = "select event_id, source, reason, data from oyez_dead order by id"
        for event_id, source, reason, data in db.execute(letters):
            kept = None if data is None else base64.b64encode(data).decode()
            dead = {"id": event_id or None, "source": source or None, "reason": reason}
            lines.append({"dead": {**dead, "data": kept}})
        places = "select partition, position from oyez_cursor where stream = ?"
        for partition, position in db.execute(places, (TOLD["CONFORMANCE_IN"],)):
            lines.append({"position": {"partition": partition, "position": position}})
    return lines


def main() -> int:
    toml = TOML.format(
        system=TOLD["CONFORMANCE_SYSTEM"],
        broker=TOLD["CONFORMANCE_BROKER"],
        partitions=TOLD["CONFORMANCE_PARTITIONS"],
    )
    replica = ROOT / f"oyez-{TOLD['CONFORMANCE_REPLICA']}.toml"
    replica.write_text(toml)
    replica.replace(ROOT / "oyez.toml")
    rows().close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = ThreadingHTTPServer(("127.0.0.1", port), Counter)
    threading.Thread(target=program.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: None)  # the bridge gets it too, and ends first
    environment = {
        **TOLD,
        "OYEZ_PROJECT": str(ROOT),
        "OYEZ_SERVICES_COUNTER_URL": f"http://127.0.0.1:{port}/counter",
    }
    command = [sys.executable, "-m", "oyez", "bridge", "http", "counter"]
    bridge = subprocess.Popen(command, cwd=ROOT, env=environment)
    while not (ROOT / "bridge.db").exists():
        time.sleep(0.02)
        if bridge.poll() is not None:
            return bridge.returncode
    host, _, shows = TOLD["CONFORMANCE_HTTP"].rpartition(":")
    window = ThreadingHTTPServer((host, int(shows)), Counter)
    threading.Thread(target=window.serve_forever, daemon=True).start()
    return bridge.wait()


if __name__ == "__main__":
    sys.exit(main())
