"""How the examples are run: the part of it that teaches nothing of them.

``run`` starts a project by ``oyez dev`` and lets its example feed it through the gateway. With
``--events N`` it kills a process on the way by SIGKILL, waits until the example finds everything
settled and right, prints what was measured and has it drawn to out/NAME.svg. Without, it stays up.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.project import Project

UP = 60.0
"""Seconds that a system gets to start."""
PATIENCE = 300.0
"""Seconds that it gets to settle everything after the last event."""
REPEATED = 120.0
"""Seconds for which a request is repeated."""
SHOWN = 5
"""Things of one kind that are spelt out."""

_UNFINISHED = """select (select count(*) from oyez_outbox) as announced,
 (select count(*) from oyez_inbox where state > 0) as parked,
 (select count(*) from oyez_dead where state = 'dead') as dead"""


class Findings(msgspec.Struct):
    """What an example found in the stores."""

    problems: list[str] = []
    """What does not hold; empty when all is settled and right."""
    settled: int = 0
    """How many of the events that were fed have had their effect."""
    figures: dict[str, int | float | str] = {}
    """What the table shows besides."""
    delays: list[float] = []
    """Seconds from each event to its effect."""
    last: float = 0.0
    """When the last effect was, in seconds since 1970."""


class Example(Protocol):
    """What is fed to a system, and what has to become of it."""

    total: int
    """How many events it feeds."""

    async def feed(self, gateway: str, sent: Callable[[int], object], rate: float) -> None:
        """Feed all events, telling how many so far; ``rate`` is of a second, 0 for no limit."""
        ...

    async def audit(self) -> Findings:
        """Look at the stores once."""
        ...

    def draw(self, path: Path) -> None:
        """Draw what was found last as an SVG."""
        ...


Rows = list[dict[str, Any]]


def write_keys(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Make an API key for each name; keys.toml, for the gateway, has their digests."""
    keys = {name: secrets.token_urlsafe(32) for name in names}
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in keys.items()}
    file = root / "keys.toml"
    file.touch(mode=0o600)
    file.write_text("".join(f'[keys.{n}]\nsha256 = "{each}"\n' for n, each in digests.items()))
    return keys


async def post(client: httpx.AsyncClient, key: str, events: list[dict[str, Any]]) -> None:
    """Send CloudEvents to the gateway until it has taken them, under the ids that they have.

    Raises ValueError when it never will take them, and TimeoutError.
    """
    headers = {"Content-Type": "application/cloudevents-batch+json", "X-Api-Key": key}
    body, end = msgspec.json.encode(events), time.monotonic() + REPEATED
    while True:
        wait = 0.2
        try:
            answer = await client.post("/events", content=body, headers=headers)
            if answer.status_code == 202:
                return
            if answer.status_code not in (429, 502, 503, 504):
                raise ValueError(f"{answer.status_code}: {answer.text}")
            wait = float(answer.headers.get("retry-after", wait))
        except httpx.TransportError:
            pass  # it may have been taken: repeated under the same ids, that changes nothing
        if time.monotonic() > end:
            raise TimeoutError(f"not taken within {REPEATED:.0f} s")
        await asyncio.sleep(wait)


async def read(
    project: Project, tables: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, Rows], list[str]]:
    """Return the rows of the stores by the name of their query, and what is not finished.

    ``tables`` are the queries of each service, by name. Not finished is what a service has yet to
    publish, what waits for a retry, and dead letters.
    """
    rows: dict[str, Rows] = {}
    unfinished = []
    for service in project.config.services:
        async with project.opened_store(service) as store:
            for name, sql in tables.get(service, {}).items():
                rows[name] = [dict(row) for row in await store.fetch(sql, {})]
            (counts,) = await store.fetch(_UNFINISHED, {})
            unfinished += [f"{service} has {n} events {what}" for what, n in counts.items() if n]
    return rows, unfinished


def differ(what: str, found: Any, wanted: Any) -> Iterator[str]:
    """Yield how two sets differ, or two counts by name; nothing where they are equal."""
    if isinstance(wanted, dict):
        found, wanted = set((+Counter(found)).items()), set((+Counter(wanted)).items())
    for word, which in (("unexpected", found - wanted), ("missing", wanted - found)):
        if which:
            some = ", ".join(map(str, sorted(which, key=str)[:SHOWN]))
            yield f"{what}: {len(which)} {word}: {some}"


class Supervised:
    """The processes of ``oyez dev``, by its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def _lines(self) -> Iterator[dict[str, str]]:
        for line in self._log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)

    def pids(self) -> dict[str, int]:
        """Return, for each process by its name, the one that was started last."""
        spawned = (line for line in self._lines() if line.get("event") == "spawned")
        return {line["process"]: int(line["pid"]) for line in spawned}

    def wait_until_up(self) -> None:
        """Wait until it serves. Raises SystemExit when it does not."""
        end = time.monotonic() + UP
        while not any(" is up: " in str(line.get("event")) for line in self._lines()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"run: the system did not start; see {self._log}")
            time.sleep(0.1)

    def peak(self) -> float:
        """Return the most memory that each process has had, in all, in MiB."""
        total = 0
        for pid in self.pids().values():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("VmHWM:") else 0
        return total / 1024


def run(name: str, root: Path, make: Callable[[Project, int, int], Example], live: int) -> int:
    """Run an example as its command line says; returns the exit code.

    ``make`` is called with the project, how many events, and the seed, before anything starts;
    ``live`` is how many events are played, a hundred in a second, where none are asked for.
    """
    parser = argparse.ArgumentParser(prog="run", description=f"Runs the example {name}.")
    parser.add_argument("--events", type=int, default=0, help="feed so many events, then stop")
    parser.add_argument("--seed", type=int, default=4711, help="which events they are")
    options = parser.parse_args()
    if options.events < 0:
        parser.error("--events: expected 0 or more")
    os.chdir(root)
    try:
        if (
            options.events
        ):  # runs stand beside each other; who looks at a page wants a known address
            _free_addresses(root)
        project = Project(load(root))
        assert project.config.gateway is not None
        base = f"http://{project.config.gateway.listen}"
        example = make(project, options.events or live, options.seed)
        with running(root) as system:
            if options.events:
                return asyncio.run(_trial(name, root, example, base, system, options.seed))
            print(f"the page: {base}/  (Ctrl-C stops it)", flush=True)
            asyncio.run(example.feed(base, lambda count: None, 100.0))
            signal.pause()
    except ConfigurationError as error:
        print(f"run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


@contextmanager
def running(root: Path) -> Iterator[Supervised]:
    """A system in processes of its own until the block ends; its log goes to .oyez/dev.log."""
    log = root / ".oyez" / "dev.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "oyez", "dev", "--no-reload", "--json"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=root, stdout=output, stderr=subprocess.STDOUT)
        try:
            system = Supervised(process, log)
            system.wait_until_up()
            yield system
        finally:
            process.terminate()
            process.wait(60)


async def _trial(
    name: str, root: Path, example: Example, base: str, system: Supervised, seed: int
) -> int:
    chance, console = random.Random(seed), Console()
    victim = chance.choice(sorted(system.pids()))
    moment, killed = round(example.total * chance.uniform(0.3, 0.7)), 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        sending = progress.add_task("events sent   ", total=example.total)
        settling = progress.add_task("events settled", total=example.total)

        def sent(count: int) -> None:
            nonlocal killed
            progress.update(sending, completed=count)
            if not killed and count >= moment:
                killed = system.pids()[victim]
                os.kill(killed, signal.SIGKILL)

        started = time.time()
        await example.feed(base, sent, 0.0)
        end = time.monotonic() + PATIENCE
        while True:
            found = await example.audit()
            progress.update(settling, completed=found.settled)
            if not found.problems or time.monotonic() > end:
                break
            await asyncio.sleep(2.0)
    if system.pids()[victim] == killed:
        found.problems.append(f"{victim} was killed and not started again")
    delays = sorted(found.delays) or [0.0]
    p50, p99 = (delays[int(len(delays) * share)] * 1000 for share in (0.5, 0.99))
    rate = len(found.delays) / max(found.last - started, 1e-9)
    table = Table("", "", title=f"{name}, with {victim} killed", show_header=False)
    table.columns[1].justify = "right"
    for what, figure in found.figures.items():
        table.add_row(what, str(figure))
    table.add_row("events/s", f"{rate:.0f}")
    table.add_row("from event to effect, p50, p99", f"{p50:.0f} ms, {p99:.0f} ms")
    table.add_row("peak memory, all processes", f"{system.peak():.0f} MiB")
    console.print(table)
    for problem in found.problems:
        console.print(f"[bold red]does not hold:[/] {problem}", highlight=False)
    if not found.problems:
        console.print(f"[bold green]The invariant holds.[/] See out/{name}.svg.")
    picture = root / "out" / f"{name}.svg"
    picture.parent.mkdir(exist_ok=True)
    example.draw(picture)
    return 1 if found.problems else 0


def free_address() -> str:
    """Return an address that is free, and not of those that the system gives to who asks for any.

    Otherwise an admin port, or a connection, may take it before the gateway does.
    """
    while True:
        address = "127.0.0.1", 20_000 + secrets.randbelow(12_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(address)
            return f"{address[0]}:{address[1]}"


def _free_addresses(root: Path) -> None:
    services = load(root).services.items()
    names = [f"SERVICES_{name}_HTTP" for name, each in services if each.http]
    for name in ("GATEWAY_LISTEN", *names):
        os.environ.setdefault(f"OYEZ_{name.upper().replace('-', '_')}", free_address())
