"""What is secret stands in no page, no header and no log of the console and of those it asks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from oyez.console.pages import SCREENS

PASSWORD, TOKEN, READ, KEY = (
    f"canary-{name}-7f3a" for name in ("password", "token", "read", "key")
)
SECRETS = (PASSWORD, TOKEN, READ, KEY)
PLACE = "127.0.0.1:1"
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}
CODE = """
import os

from oyez import Event, Retry, Service

service = Service("desk")


class Placed(Event, type="shop.placed", key="order"):
    order: str


@service.on(Placed, retry=Retry(attempts=1))
async def take(event: Placed) -> None:
    raise ConnectionError("the card is refused")
"""
PROJECT = f"""
[system]
name = "shop"

[console]
listen = "127.0.0.1:0"

[services.desk]
app = "desk:service"

[services.away]
app = "away:service"
broker = "redis://me:{PASSWORD}@{PLACE}?deadline=0.5"
store = "postgresql://me:{PASSWORD}@{PLACE}/none?deadline=0.5"

[services.lost]
app = "lost:service"
store = "postgresql://me:{PASSWORD}@{PLACE}/none?deadline=0.5"
admin = "{PLACE}"
"""


class Running:
    """A process of ours, with what it says in a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._log = folder / f"{'-'.join(arguments)}.log"
        environment = {
            **os.environ,
            "OYEZ_PROJECT": str(folder),
            "OYEZ_TOKEN": TOKEN,
            "OYEZ_READ_TOKEN": READ,
            "CARD_KEY": KEY,
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "oyez", *arguments],
                cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._log.read_text()

    def says(self, pattern: str) -> str:
        """Return what a pattern matches in what it says; wait for it."""
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            found = re.search(pattern, self.said)
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{pattern} is not said:\n{self.said}")

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        return self.said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "oyez.toml").write_text(PROJECT)
    for name in ("desk", "away", "lost"):
        (tmp_path / f"{name}.py").write_text(CODE.replace("desk", name))
    return tmp_path


@pytest.fixture
def processes(folder: Path) -> Iterator[dict[str, Running]]:
    found = {
        "desk": Running(folder, "run", "desk"),
        "away": Running(folder, "run", "away"),
        "console": Running(folder, "console"),
    }
    yield found
    for each in found.values():
        each.stop()


def test_no_secret_is_shown_or_logged(folder: Path, processes: dict[str, Running]) -> None:
    address = processes["console"].says(r"(127\.0\.0\.1:[1-9]\d*)")
    processes["desk"].says(r"(127\.0\.0\.1:[1-9]\d*)")
    published = Running(folder, "publish", "shop.placed", '{"order": "o1"}', "--service", "desk")
    assert published.process.wait(30) == 0, published.said
    told: list[str] = [published.said]
    with httpx.Client(base_url=f"http://{address}", timeout=20, headers=SAME_SITE) as client:
        wrong = client.post("/sign-in", data={"token": "wrong", "next": "/"})
        right = client.post("/sign-in", data={"token": TOKEN, "next": "/"})
        assert (wrong.status_code, right.status_code) == (403, 303)
        ends = time.monotonic() + 30
        while "the card is refused" not in client.get("/dead").text:
            assert time.monotonic() < ends
            time.sleep(0.05)
        found = re.search(r'name="csrf" value="([^"]+)"', client.get("/dead").text)
        assert found
        form = {"csrf": found[1], "why": "x", "data": "{}", "to": "nobody"}
        answers = [wrong, right]
        for service in ("desk", "away", "lost", "none"):
            for method, path in paths(service):
                data = form if method == "POST" else None
                answers.append(client.request(method, path, data=data))
        assert {200, 303, 404, 409, 503} <= {answer.status_code for answer in answers}
        told += [f"{answer.text}\n{answer.headers!r}" for answer in answers]
    told += [each.stop() for each in processes.values()]
    # What failed at the address of the secret has been told, and the secret was not.
    assert sum(PLACE in text for text in told) > 4
    assert PLACE in processes["away"].said
    for secret in SECRETS:
        assert not [text for text in told if secret in text]


def paths(service: str) -> list[tuple[str, str]]:
    """Each route that ends by itself, with its method."""
    found = []
    for screen in SCREENS:
        for route in screen.routes:
            path = route.path.replace("{service}", service).replace("{id:int}", "1")
            path = re.sub(r"\{\w+(?::\w+)?\}", "x", path)
            streams = path.startswith("/live/") or path.endswith("/live")
            found += [(m, path) for m in sorted(route.methods or ()) if m != "HEAD" and not streams]
    return found
