"""Starts the bank; with ``--events N`` sends N transfers, kills a process, and checks the stores.

Without it, the bank stays up until Ctrl-C, for somebody who looks at the page. Exit codes: 0 when
all that must be true is true, 1 when it is not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from check import Audit, audit, ended, moment, opened
from feed import Plan, plan
from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.ports import Store
from oyez.project import Project
from picture import draw

HERE = Path(__file__).resolve().parent
TOGETHER = 100
"""Events in one request."""
OPEN = 500
"""Transfers that have not ended, above which no more are sent."""
SHOWN = 5_000
"""Transfers for somebody who looks at the page: five days in two minutes."""
PATIENCE = 120.0
"""Seconds for which nothing may go on before it counts as lost."""


class Bank:
    """The bank in processes of its own; their merged log goes to ``.oyez/dev.log``."""

    def __init__(self, project: Project, process: subprocess.Popen[str], log: Path) -> None:
        self.project = project
        self.peak = 0
        """The most bytes that all processes together had in memory when it was looked."""
        self._process = psutil.Process(process.pid)
        self._log = log

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of the log that tell of this."""
        lines = [line for line in self._log.read_text().split("\n")[:-1] if event in line]
        return [each for each in map(json.loads, lines) if event in each["event"]]

    def weigh(self) -> None:
        """Look at the memory."""
        total = 0
        for each in self._process.children(recursive=True):
            try:
                total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak = max(self.peak, total)

    def kill(self, chance: random.Random) -> str:
        """``kill -9`` a process by chance; its supervisor starts another. Return which."""
        pids = {each["process"]: each["pid"] for each in self.said("spawned")}
        victim = chance.choice(sorted(pids))
        psutil.Process(pids[victim]).kill()
        return str(victim)


@contextmanager
def running(project: Project) -> Iterator[Bank]:
    """Start the bank, and stop it at the end."""
    data = project.config.root / ".oyez"
    data.mkdir(exist_ok=True)
    log = data / "dev.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "oyez", "dev", "--no-reload", "--json"],
            cwd=project.config.root, stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            bank = Bank(project, process, log)
            limit = time.monotonic() + PATIENCE
            while not bank.said(" is up: "):
                if process.poll() is not None or time.monotonic() > limit:
                    raise SystemExit(f"run: the bank did not start; see {log}")
                time.sleep(0.05)
            yield bank
        finally:
            process.terminate()
            process.wait(60)


class Sender:
    """Sends events to the gateway as a client with the key ``feed``; again until it has a 202."""

    def __init__(self, project: Project, client: httpx.AsyncClient) -> None:
        self.times: dict[str, float] = {}
        """When each event was sent first, in seconds since 1970, by its id."""
        self._source = f"/{project.config.system.name}/gateway/key:feed"
        self._client = client

    async def send(self, items: list[tuple[str, dict[str, Any]]]) -> None:
        """Send these in one request."""
        batch = []
        for kind, data in items:
            name = f"{kind}/{data.get('transfer_id') or data['account']}"
            self.times.setdefault(name, time.time())
            batch.append({
                "specversion": "1.0", "id": name, "source": self._source, "type": kind, "data": data
            })  # fmt: skip
        head = {"Content-Type": "application/cloudevents-batch+json"}
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            try:
                body = json.dumps(batch)
                answer = await self._client.post("/events", content=body, headers=head)
                if answer.status_code == 202:
                    return
                if answer.status_code not in (429, 502, 503, 504):
                    raise RuntimeError(f"{answer.status_code}: {answer.text}")
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
        raise TimeoutError(f"the gateway took no events for {PATIENCE:.0f} s")


async def open_accounts(sender: Sender, stores: dict[str, Store], made: Plan) -> None:
    """Open the accounts, and wait until the ledger has them."""
    items = [("bank.account.opened", data) for data in made.accounts]
    for first in range(0, len(items), TOGETHER):
        await sender.send(items[first : first + TOGETHER])
    limit = time.monotonic() + PATIENCE
    sql = "select count(*) as many from accounts"
    while (await stores["accounts"].fetch(sql, {}))[0]["many"] <= len(items):
        if time.monotonic() > limit:
            raise TimeoutError("the accounts were not opened")
        await asyncio.sleep(0.1)


async def trade(bank: Bank, client: httpx.AsyncClient, made: Plan) -> int:
    """Send everything, kill a process on the way, wait, check, and tell. Return the exit code."""
    console, chance = Console(), random.Random()  # noqa: S311 - which process is killed, and when
    sender, total = Sender(bank.project, client), made.transfers
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    looks, wrong, killed = 0, set[str](), ""
    async with opened(bank.project) as stores:
        await open_accounts(sender, stores, made)
        begin = time.monotonic()
        with Progress(*columns, console=console) as progress:
            sending = progress.add_task("sent ", total=len(made.items))
            ending = progress.add_task("ended", total=total)
            sent = done = started = 0
            kill_at = chance.uniform(0.2, 0.8) * total
            moved = time.monotonic()
            while done < total and time.monotonic() - moved < PATIENCE:
                while sent < len(made.items) and started - done < OPEN:
                    batch = made.items[sent : sent + TOGETHER]
                    await sender.send(batch)
                    sent += len(batch)
                    started += sum(kind == "bank.transfer.requested" for kind, _ in batch)
                    progress.update(sending, completed=sent)
                    if not killed and started >= kill_at:
                        killed = bank.kill(chance)
                        progress.console.print(f"killed: {killed}")
                before, done = done, await ended(stores)
                moved = time.monotonic() if done > before else moved
                progress.update(ending, completed=done)
                wrong.update(await moment(stores))
                looks += 1
                bank.weigh()
                await asyncio.sleep(0.1)
        took = time.monotonic() - begin
        found = await settle(bank, stores, made)
    found.problems += sorted(wrong)
    times = sorted(
        at - sender.times[f"bank.transfer.requested/{name}"]
        for name, at in found.ended.items()
        if at
    )
    draw(found.cases, made.culprits, times, bank.project.config.root / "out" / "payments_fraud.svg")
    figures = {
        "transfers": total,
        "transfers/s": f"{total / took:.0f}",
        "request to end, p50": f"{_share(times, 0.5) * 1000:.0f} ms",
        "request to end, p99": f"{_share(times, 0.99) * 1000:.0f} ms",
        "peak memory of all processes": f"{bank.peak / 2**20:.0f} MiB",
        "killed": killed or "nobody",
        "looks at the ledger meanwhile": looks,
        **found.figures,
    }
    _print(console, figures, found.problems)
    return 1 if found.problems else 0


async def settle(bank: Bank, stores: dict[str, Store], made: Plan) -> Audit:
    """Look at the stores until nothing is wrong, or nothing changes any more."""
    limit = time.monotonic() + PATIENCE / 4
    while True:
        found = await audit(stores, made, bank.project.config.root / "out")
        if not found.problems or time.monotonic() > limit:
            return found
        bank.weigh()
        await asyncio.sleep(1.0)


async def show(bank: Bank, client: httpx.AsyncClient, made: Plan) -> int:
    """Send fifty transfers a second, and leave the page up when all are sent."""
    sender = Sender(bank.project, client)
    print(f"the page: {client.base_url}  (Ctrl-C stops the bank)", flush=True)
    async with opened(bank.project) as stores:
        await open_accounts(sender, stores, made)
    for first in range(0, len(made.items), 5):
        await sender.send(made.items[first : first + 5])
        await asyncio.sleep(0.1)
    await asyncio.Event().wait()
    return 0


async def operate(bank: Bank, key: str, events: int, seed: int) -> int:
    """Do what was asked for; return the exit code."""
    gateway = bank.project.config.gateway
    assert gateway is not None
    url, head = f"http://{gateway.listen}", {"X-Api-Key": key}
    made = plan(events or SHOWN, seed, datetime.now(UTC) - timedelta(days=1))
    async with httpx.AsyncClient(base_url=url, headers=head, timeout=20.0) as client:
        if events:
            return await trade(bank, client, made)
        return await show(bank, client, made)


def main() -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--events", type=int, default=0, help="send so many transfers, then stop")
    parser.add_argument("--seed", type=int, default=4711, help="which transfers they are")
    options = parser.parse_args()
    if options.events < 0:
        parser.error("--events: expected 0 or more")
    os.chdir(HERE)
    shutil.rmtree(".oyez", ignore_errors=True)
    for name in (".oyez", "out"):
        Path(name).mkdir(exist_ok=True)
    try:
        project = Project(load(HERE))
        key = subprocess.run(
            [sys.executable, "-m", "oyez", "gateway", "key", "feed"],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout.strip()  # fmt: skip
        with running(project) as bank:
            return asyncio.run(operate(bank, key, options.events, options.seed))
    except ConfigurationError as error:
        print(f"run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _share(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0


def _print(console: Console, figures: dict[str, Any], problems: list[str]) -> None:
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, figure in figures.items():
        table.add_row(what, str(figure))
    console.print(table)
    for problem in problems[:10]:
        console.print(f"[bold red]wrong:[/] {problem}", highlight=False)
    if len(problems) > 10:
        console.print(f"and {len(problems) - 10} more")
    if not problems:
        console.print("[bold green]The ledger is right, and every decision stands.[/]")


if __name__ == "__main__":
    sys.exit(main())
