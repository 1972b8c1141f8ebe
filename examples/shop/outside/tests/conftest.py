"""Starts the servers as real processes on free ports."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
import pytest

SHOP = Path(__file__).resolve().parents[2]
START_SECONDS = 30


@dataclass
class Running:
    """A server process and the addresses that it announced: ``host:port`` by scheme."""

    process: subprocess.Popen[str]
    http: httpx.Client
    addresses: dict[str, str] = field(default_factory=dict)

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


class Start(Protocol):
    def __call__(self, name: str, data: Path, *options: str) -> Running: ...


def command(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", f"outside.{name}", *options]


@contextmanager
def starter() -> Iterator[Start]:
    started: list[Running] = []

    def start(name: str, data: Path, *options: str) -> Running:
        smtp = ("--smtp", "127.0.0.1:0") if name == "mailbox" else ()
        process = subprocess.Popen(
            command(name, "--listen", "127.0.0.1:0", *smtp, "--data", str(data), *options),
            cwd=SHOP,
            env={**os.environ, "PYTHONPATH": str(SHOP)},
            stdout=subprocess.PIPE,
            text=True,
        )
        running = Running(process, httpx.Client(timeout=20))
        started.append(running)
        assert process.stdout is not None
        # The deadline: a server that announces nothing is killed, which ends the reading.
        deadline = threading.Timer(START_SECONDS, process.kill)
        deadline.start()
        while len(running.addresses) < (2 if name == "mailbox" else 1):
            line = process.stdout.readline()
            assert line, f"{name} did not start"
            scheme, _, address = line.split(maxsplit=1)[1].strip().partition("://")
            running.addresses[scheme] = address
        deadline.cancel()
        running.http.base_url = httpx.URL(f"http://{running.addresses['http']}")
        return running

    try:
        yield start
    finally:
        for running in started:
            running.http.close()
            running.kill()
            if running.process.stdout:
                running.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Start]:
    with starter() as start:
        yield start


@pytest.fixture(scope="module")
def start_for_module() -> Iterator[Start]:
    with starter() as start:
        yield start
