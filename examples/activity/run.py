"""Starts the example; with ``--events N`` it feeds so many clicks, waits, and checks the invariant.

On the way one process is killed and some people are erased. Exit codes: 0 when the invariant holds,
1 when it does not, 2 for wrong usage.
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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("ACTIVITY_SPEED", "60")
os.environ.setdefault("ACTIVITY_NIGHT", "20")

import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import check
import data
from oyez.cli.dev import check_addresses
from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.gateway.keyfile import add_key
from oyez.inspection.lag import measure_all
from oyez.project import Project

HERE = Path(__file__).resolve().parent
SPEED = float(os.environ["ACTIVITY_SPEED"])
AT_ONCE = 100
"""Clicks in one request."""
PROBED = 2
"""Of so many requests, one is followed until its last click is on the page of its person."""
PATIENCE = 300.0
"""Seconds that the example has to settle."""
SCOPES = ("clicks:send", "people:read", "people:erase")


class Feed:
    """Sends clicks as a shop would, and again until they are accepted."""

    def __init__(self, base: str, key: str, clicks: list[data.Sent]) -> None:
        self.clicks = clicks
        self.latencies: list[float] = []
        self._live = False
        self._client = httpx.AsyncClient(base_url=base, headers={"x-api-key": key}, timeout=30.0)
        last = max((click.at for click in clicks), default=0.0)
        self._begin = datetime.now(UTC) - timedelta(seconds=last / SPEED + 1)

    async def send(self, progress: Any, half: Any, pause: float = 0.0) -> None:
        """Send all, calling ``half`` on the way; with a ``pause`` they are clicked when sent."""
        self._live = pause > 0
        probes = []
        for start in range(0, len(self.clicks), AT_ONCE):
            batch = self.clicks[start : start + AT_ONCE]
            if start <= len(self.clicks) // 2 < start + AT_ONCE:
                half()
            sent = time.monotonic()
            answer = await self._until("POST", "/clicks", 202, json=[self._told(c) for c in batch])
            if start // AT_ONCE % PROBED == 0:
                token = answer.headers.get("oyez-after", "")
                probes.append(asyncio.create_task(self._seen(batch[-1].name, token, sent)))
            if start % 7 == 0:  # a shop that missed the answer
                await self._until("POST", "/clicks", 202, json=[self._told(batch[0])])
            progress(len(batch))
            await asyncio.sleep(pause)
        await asyncio.gather(*probes)

    async def erase(self, names: list[str]) -> None:
        """Ask to forget people."""
        for name in names:
            await self._until("DELETE", f"/people/{name}", 202, 404)

    def _told(self, click: data.Sent) -> dict[str, Any]:
        at = self._begin + timedelta(seconds=click.at / SPEED)
        if self._live:
            at = datetime.now(UTC)
        return {**msgspec.structs.asdict(click), "at": at.isoformat()}

    async def _seen(self, name: str, token: str, since: float) -> None:
        await self._until("GET", f"/people/{name}", 200, headers={"oyez-after": token})
        self.latencies.append(time.monotonic() - since)

    async def _until(self, method: str, path: str, *wanted: int, **more: Any) -> httpx.Response:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                answer = await self._client.request(method, path, **more)
                if answer.status_code in wanted:
                    return answer
                if answer.status_code not in (429, 502, 503, 504):
                    raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
            except httpx.TransportError:
                pass
            if time.monotonic() > end:
                raise TimeoutError(f"{method} {path} was not answered")
            await asyncio.sleep(0.2)


class System:
    """The processes of the example, as the log of `oyez dev` names them."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    def pids(self) -> dict[str, int]:
        """Return the newest process of each part."""
        lines = [
            json.loads(line) for line in self.log.read_text().splitlines(True) if line[-1:] == "\n"
        ]
        return {line["process"]: line["pid"] for line in lines if line.get("event") == "spawned"}

    def kill(self, chance: random.Random) -> str:
        """Kill one of them as nobody can prepare for; returns which."""
        name, pid = chance.choice(sorted(self.pids().items()))
        os.kill(pid, signal.SIGKILL)
        return name

    def memory(self) -> dict[str, float]:
        """Return the peak memory of each, in MiB."""
        found = {}
        for name, pid in self.pids().items():
            status = Path(f"/proc/{pid}/status")
            if status.exists():
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                found[name] = int(lines["VmHWM"].split()[0]) / 1024
        return found


@contextmanager
def running(project: Project) -> Iterator[System]:
    """The example in processes of its own; their merged log goes to ``.oyez/dev.log``."""
    log = project.config.root / ".oyez" / "dev.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "oyez", "dev", "--no-reload", "--json"],
            cwd=project.config.root, stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while " is up: " not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"activity: it did not start; see {log}")
            time.sleep(0.1)
        yield System(process, log)
    finally:
        process.terminate()
        process.wait(30)


async def waiting(project: Project) -> tuple[int, int]:
    """Return how many clicks are on their way, and how much else: events, windows, a model."""
    lag = await measure_all(project, project.config.services)
    own = f"{project.config.system.name}.clicks"
    places = [place for each in lag.services for place in each.partitions if place.stream == own]
    clicks = sum(place.lag or 0 for place in places)
    clicks += sum(each.outbox for each in lag.services if each.service == "clicks")
    rest = sum((each.lag or 0) + each.outbox + each.parked for each in lag.services)
    if lag.gaps or any(each.lag is None for each in lag.services):
        clicks += 1  # what can't be seen may be on its way
    soon = time.time() + 86_400
    for name in ("sessions", "trending"):
        async with project.opened_store(name) as store:
            sql = "select count(*) as open from oyez_timer where due < :soon"
            rest += (await store.fetch(sql, {"soon": soon}))[0]["open"]
    async with project.opened_store("recommend") as store:
        sql = """select (select count(*) from seen) as pairs,
         (select trained_on from model order by version desc limit 1) as learned"""
        (row,) = await store.fetch(sql, {})
        rest += row["pairs"] != (row["learned"] or 0)
    return clicks, rest


async def until_handled(project: Project) -> None:
    """Wait until no click is on its way."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not (await waiting(project))[0]:
            return
        await asyncio.sleep(0.5)


async def run(project: Project, system: System, key: str, options: Any) -> int:
    """Feed, wait, check, print, draw; returns the exit code."""
    console, chance = Console(), random.Random(options.seed)
    root = project.config.root
    clicks, held, source = data.load(options.events, options.seed, root / ".oyez", options.data)
    console.print(f"{len(clicks)} clicks, {source}; a minute is {SPEED:g} minutes of the shop")
    assert project.config.gateway is not None
    feed = Feed(f"http://{project.config.gateway.listen}", key, clicks)
    names = sorted({click.name for click in clicks})
    erased = chance.sample(names, max(1, len(names) // 20))
    fed = check.Fed(speed=SPEED, erased=erased, held=held)
    (root / check.FED).write_bytes(msgspec.json.encode(fed))
    killed: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    begin = time.monotonic()
    with Progress(*columns, console=console) as progress:
        sending = progress.add_task("clicks sent    ", total=len(clicks))
        settling = progress.add_task("what follows   ", total=None)
        await feed.send(
            lambda count: progress.advance(sending, count),
            lambda: killed.append(system.kill(chance)),
        )
        await until_handled(project)
        seconds, most = time.monotonic() - begin, 0
        await feed.erase(erased)
        while any(left := await waiting(project)) and time.monotonic() < begin + PATIENCE + seconds:
            most = max(most, sum(left))
            progress.update(settling, total=most, completed=most - sum(left))
            await asyncio.sleep(1.0)
    verdict = check.judge(await check.read(project))
    memory = system.memory()
    slow = sorted(feed.latencies)
    p99 = slow[min(len(slow) - 1, int(len(slow) * 0.99))] if slow else 0.0
    figures = {
        "clicks/s, from the first sent to the last counted": f"{len(clicks) / seconds:,.0f}",
        f"from a click to its page, p99 of {len(slow)}": f"{p99 * 1_000:,.0f} ms",
        "peak memory, the largest process": "{1:.0f} MiB ({0})".format(
            *max(memory.items(), key=lambda each: each[1])
        ),
        "peak memory, all processes": f"{sum(memory.values()):.0f} MiB",
        "killed on the way": ", ".join(killed),
        **{name: f"{figure}" for name, figure in verdict.figures.items()},
        **{f"hit rate at 10, {by}": f"{rate:.3f}" for by, rate in verdict.rates.items()},
    }
    table = Table(title="activity", show_header=False)
    for name, figure in figures.items():
        table.add_row(name, figure)
    console.print(table)
    draw(verdict.rates, slow, root / "out" / "activity.svg")
    for problem in verdict.problems:
        console.print(f"does not hold: {problem}", style="bold red", markup=False, highlight=False)
    if not verdict.problems:
        console.print("[bold green]The invariant holds.[/]")
    return 1 if verdict.problems else 0


def draw(rates: dict[str, float], latencies: list[float], path: Path) -> None:
    """Write the picture: hit rates, and times from a click to its page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars = left.bar(list(rates), list(rates.values()), color=["#999", "#2a7", "#47b"])
    left.bar_label(bars, fmt="%.3f")
    left.margins(y=0.15)
    left.set(title="The last click is among ten that are shown", ylabel="hit rate at 10")
    share = [(n + 1) / len(latencies) for n in range(len(latencies))]
    right.plot([each * 1_000 for each in latencies], share, color="#47b", drawstyle="steps-post")
    right.set(title="From a click to the page of its person", xlabel="ms", ylabel="share",
              xscale="log", ylim=(0, 1.02))  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


def main() -> int:
    """Run the example; returns the exit code."""
    parser = argparse.ArgumentParser(prog="activity", description=__doc__)
    parser.add_argument("--events", type=int, default=0, help="feed so many clicks, then stop")
    parser.add_argument("--seed", type=int, default=4711, help="who is erased, what is killed")
    parser.add_argument("--data", choices=("ml-100k", "made"), default="ml-100k")
    options = parser.parse_args()
    if options.events < 0:
        parser.error("--events: expected 0 or more")
    os.chdir(HERE)
    try:
        project = Project(load(HERE))
        check_addresses(project.config)
        assert project.config.gateway is not None
        (HERE / ".oyez").mkdir(exist_ok=True)
        (HERE / ".oyez" / "keys.toml").unlink(missing_ok=True)
        key = add_key(project.config, "shop", scopes=SCOPES)
    except ConfigurationError as error:
        print(f"activity: {error}", file=sys.stderr)
        return 2
    os.environ["ACTIVITY_KEYS"] = f"http://{project.config.services['clicks'].http}"
    with running(project) as system:
        if options.events:
            return asyncio.run(run(project, system, key, options))
        base = f"http://{project.config.gateway.listen}"
        clicks, _, source = data.load(99_000, options.seed, HERE / ".oyez", options.data)
        print(f"{source}, fed slowly; Ctrl-C stops it", flush=True)
        print(f"{base}/#key={key}&name={clicks[0].name}", flush=True)
        try:
            asyncio.run(Feed(base, key, clicks).send(lambda _: None, lambda: None, pause=2.0))
            signal.pause()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
