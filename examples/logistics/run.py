"""Starts the system and runs a world through it; with ``--events N`` one of N events, checked.

One process is killed on the way. Exit codes: 0 when the invariant holds, 1 when it does not, 2 for
wrong usage. `make example NAME=logistics` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from check import Findings, audit
from flights import World, disorder, world
from oyez.cli.dev import check_addresses
from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.event import describe
from oyez.project import Project
from picture import draw
from routing.events import VanFailed
from tracking.events import ParcelScanned

HERE = Path(__file__).resolve().parent
LOG = HERE / ".oyez" / "dev.log"
BATCH, AT_ONCE = 50, 4
"""Events of a request, and requests at the same time."""
PATIENCE, UP = 240.0, 60.0
"""Seconds without progress after which the run gives up; seconds to start."""
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    parser.add_argument("--events", type=int, default=0, help="about so many events, then stop")
    parser.add_argument("--seed", type=int, default=4711, help="which world it is")
    options = parser.parse_args()
    if options.events < 0:
        parser.error("--events: expected 0 or more")
    os.chdir(HERE)
    try:
        project = Project(load(HERE))
        check_addresses(project.config)
    except ConfigurationError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    made = world(options.events or 3000, options.seed)
    os.environ["LOGISTICS_HURRY"] = "1"
    with running() as key:
        run = Run(project, made, options.seed, key)
        code = asyncio.run(run.through(kill=bool(options.events)))
        if not options.events:
            print(f"the board: {run.url}   Ctrl-C stops it", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
    return code


@contextmanager
def running() -> Iterator[str]:
    """The system in processes of its own, until the block ends; gives the scanners' key."""
    LOG.parent.mkdir(exist_ok=True)
    (LOG.parent / "keys.toml").unlink(missing_ok=True)
    made = subprocess.run(
        [sys.executable, "-m", "oyez", "gateway", "key", "scanners"],
        check=True,
        capture_output=True,
    )
    with LOG.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "oyez", "dev", "--no-reload", "--json"], stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + UP
            while " is up: " not in LOG.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"run.py: the system did not start; see {LOG}")
                time.sleep(0.1)
            yield made.stdout.split()[0].decode()
        finally:
            process.terminate()
            process.wait(30)


class Run:
    """A world on its way through the system."""

    def __init__(self, project: Project, made: World, seed: int, key: str) -> None:
        assert project.config.gateway is not None
        self.url = f"http://{project.config.gateway.listen}"
        self._project, self._world, self._seed = project, made, seed
        self._client = httpx.AsyncClient(
            base_url=self.url, timeout=30.0, headers={"X-Api-Key": key}
        )
        self._sent, self._took = 0, [0.0]
        self._last: ParcelScanned | None = None

    async def through(self, *, kill: bool) -> int:
        """Send everything, wait, check, print; returns the exit code."""
        console, begun = Console(), time.monotonic()
        events: list[tuple[str, Any]] = [(each.round_id, each) for each in self._world.rounds]
        events += disorder(self._world, self._seed)
        killed = "nothing"
        with Progress(*COLUMNS, console=console) as progress:
            feeding = progress.add_task("events sent      ", total=len(events))
            driving = progress.add_task("parcels delivered", total=len(self._world.scans))
            sampler = asyncio.create_task(self._sample())
            for at in range(0, len(events), BATCH * AT_ONCE):
                await self._send_all(events[at : at + BATCH * AT_ONCE])
                progress.update(feeding, completed=self._sent)
                if kill and killed == "nothing" and self._sent > len(events) / 2:
                    killed = self._kill()
            async for done in self._drive():
                progress.update(driving, completed=done)
            found = await self._settle()
            sampler.cancel()
        took = time.monotonic() - begun
        await self._client.aclose()
        found.figures |= {
            "events sent": f"{self._sent} in {took:.0f} s: {self._sent / took:.0f} a second",
            "scan to board, p99": f"{sorted(self._took)[int(len(self._took) * 0.99)]:.2f} s",
            "peak memory of all processes": f"{self._memory() / 1024:.0f} MiB",
            "killed on the way": killed,
        }
        _print(console, found)
        draw(found, HERE / "out" / "logistics.svg")
        return 1 if found.problems else 0

    async def _send_all(self, events: list[tuple[str, Any]]) -> None:
        parts = [events[at : at + BATCH] for at in range(0, len(events), BATCH)]
        await asyncio.gather(*map(self._send, parts))

    async def _send(self, events: list[tuple[str, Any]]) -> None:
        """Send until it is acknowledged: under the same ids, so that nothing counts twice."""
        source = f"/{self._project.config.system.name}/gateway/key:scanners"
        body = msgspec.json.encode([
            {"specversion": "1.0", "id": name, "source": source, "data": event,
             "type": describe(type(event)).name}
            for name, event in events
        ])  # fmt: skip
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(httpx.TransportError):
                answer = await self._client.post("/events", content=body, headers=headers)
                if answer.status_code == 202:
                    self._sent += len(events)
                    last = events[-1][1]
                    self._last = last if isinstance(last, ParcelScanned) else None
                    return
                if answer.status_code not in (429, 502, 503, 504):
                    raise RuntimeError(f"{answer.status_code}: {answer.text}")
            await asyncio.sleep(0.2)
        raise TimeoutError(f"the gateway took nothing for {PATIENCE:.0f} s")

    async def _sample(self) -> None:
        """Measure the time from a scan to the board, of one scan after the other."""
        while True:
            scan, begun = self._last, time.monotonic()
            self._last = None
            while scan is not None:
                row = await self._get(f"/parcels/{scan.parcel_id}")
                if row and (scan.stage != "delivered" or row["stage"] == "delivered"):
                    self._took.append(time.monotonic() - begun)
                    scan = None
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)

    async def _get(self, path: str) -> Any:
        """Return what is there, or None: also while the service is away."""
        with suppress(httpx.TransportError):
            answer = await self._client.get(path)
            return answer.json() if answer.status_code == 200 else None

    async def _drive(self) -> AsyncIterator[int]:
        """Drive the tours as the newest plan says; on one round of 10 the first van fails."""
        doors: set[str] = set()
        broken: dict[str, int] = {}
        end = time.monotonic() + PATIENCE
        while len(doors) < len(self._world.scans) and time.monotonic() < end:
            events: list[tuple[str, Any]] = []
            for tour in await self._get("/tours") or ():
                name, routes = tour["round_id"], tour["routes"]
                if tour["version"] <= broken.get(name, 0):
                    continue
                if zlib.crc32(name.encode()) % 10 == 0 and name not in broken:
                    broken[name], van = tour["version"], routes.pop(0)["van"]
                    events.append((f"{name}-{van}", VanFailed(round_id=name, van=van)))
                parcels = {each for route in routes for each in route["parcels"]} - doors
                doors |= parcels
                events += [scan for each in sorted(parcels) for scan in self._delivery(each)]
            end = time.monotonic() + PATIENCE if events else end
            await self._send_all(events)
            yield len(doors)
            await asyncio.sleep(0.2)

    def _delivery(self, parcel: str) -> list[tuple[str, Any]]:
        """The scan at the door; one in 100 comes twice, and one in 100 of an empty box later."""
        scans, lot = self._world.scans[parcel], zlib.crc32(parcel.encode()) % 100
        scan = scans["delivered"]
        box = msgspec.structs.replace(scans["arrived"], at=scan.at + 60)
        more = {0: [(f"{parcel}-delivered-again", scan)], 1: [(f"{parcel}-box", box)]}
        return [(f"{parcel}-delivered", scan), *more.get(lot, ())]

    async def _settle(self) -> Findings:
        end = time.monotonic() + PATIENCE / 4
        while (found := await audit(self._project, self._world)).problems:
            if time.monotonic() > end:
                break
            await asyncio.sleep(1)
        return found

    def _kill(self) -> str:
        """Kill a service as a power cut does; it is started again."""
        name = random.Random(self._seed).choice(sorted(self._project.config.services))  # noqa: S311
        os.kill(_processes()[name], signal.SIGKILL)
        return name

    def _memory(self) -> int:
        """The peaks of the processes that run now, in KiB together."""
        lines = [
            line.split()
            for pid in _processes().values()
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        ]
        return sum(int(line[1]) for line in lines if line and line[0] == "VmHWM:")


def _processes() -> dict[str, int]:
    spawned = (json.loads(line) for line in LOG.open() if '"spawned"' in line)
    return {each["process"]: each["pid"] for each in spawned}


def _print(console: Console, found: Findings) -> None:
    table = Table(title="logistics", show_header=False)
    for what, figure in found.figures.items():
        table.add_row(what, figure)
    console.print(table)
    for problem in found.problems:
        console.print(f"[bold red]does not hold:[/] {problem}", highlight=False)
    if not found.problems:
        console.print("[bold green]The invariant holds.[/]")


if __name__ == "__main__":
    sys.exit(main())
