"""Starts the shop; with ``--orders N`` also places orders, waits, and checks the books.

With ``--guests`` two services in other languages join it by the broker, and a clerk looks at the
orders that one of them flags: some go on, some are cancelled, and the rest stays held.

``make demo`` runs it. Exit codes: 0 when the books balance, 1 when they do not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from books import Books, audit
from guests import GuestError, check_broker, read_ledger, running_guests
from oyez.cli.dev import check_addresses
from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.project import Project

HERE = Path(__file__).resolve().parent
AT_ONCE = 16
"""Customers that place orders at the same time."""
PATIENCE = 120.0
"""Seconds that the shop gets to settle everything after the last order."""
UP = 60.0
"""Seconds that the shop gets to start."""

_GOODS = ("lantern", "bell", "scroll", "boots", "quill")


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--orders", type=int, default=0, help="place so many orders, then stop")
    parser.add_argument("--seed", type=int, default=4711, help="which orders they are")
    parser.add_argument("--guests", action="store_true", help="with services in other languages")
    options = parser.parse_args()
    if options.orders < 0:
        parser.error("--orders: expected 0 or more")
    os.chdir(HERE)
    guests = None
    try:
        project = Project(load(HERE))
        check_addresses(project.config)
        broker, name = project.config.system.broker, project.config.system.name
        if options.guests:
            check_broker(broker)
            print("building the guests, unless they are built", flush=True)
            guests = project.config.root / ".oyez" / "guests"
            os.environ["SHOP_REVIEW"] = "1"
        with running_guests(broker, name, guests) if guests else nullcontext():
            if options.orders:
                with running_shop(project):
                    return asyncio.run(trade(project, options.orders, options.seed, guests))
            print("starting the shop; Ctrl-C stops it", flush=True)
            return subprocess.run([sys.executable, "-m", "oyez", "dev"], check=False).returncode
    except (ConfigurationError, GuestError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


@contextmanager
def running_shop(project: Project) -> Iterator[subprocess.Popen[str]]:
    """The shop in processes of its own; their merged log goes to ``.oyez/dev.log``."""
    log = project.config.root / ".oyez" / "dev.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "oyez", "dev", "--no-reload", "--json"],
            cwd=project.config.root,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            _wait_until_up(process, log)
            yield process
        finally:
            process.terminate()
            process.wait(30)


async def trade(project: Project, count: int, seed: int, guests: Path | None = None) -> int:
    """Place ``count`` orders, wait until all is settled, print the outcome.

    ``guests`` is the folder of the guests' stores, if there are any; then a clerk is at work, too.
    """
    clerk = asyncio.create_task(review(project)) if guests else None
    console = Console()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        placing = progress.add_task("orders placed ", total=count)
        settling = progress.add_task("orders settled", total=count)
        accepted = await place_orders(project, count, seed, lambda: progress.advance(placing))
        books = await settle(
            project, accepted, lambda done: progress.update(settling, completed=done), guests
        )
    if clerk is not None:
        clerk.cancel()
        with suppress(asyncio.CancelledError):
            await clerk
    _print_outcome(console, books, accepted)
    if guests is not None:
        ledger = read_ledger(guests)
        console.print(
            f"guests: {len(ledger.flagged)} orders looked at, {sum(ledger.flagged.values())} "
            f"flagged; {sum(ledger.points.values())} points = cents that were paid",
            highlight=False,
        )
    for problem in books.problems:
        console.print(f"[bold red]does not balance:[/] {problem}", highlight=False)
    if not books.problems:
        console.print("[bold green]The books balance.[/]")
    return 1 if books.problems else 0


async def place_orders(
    project: Project, count: int, seed: int, placed: Callable[[], object]
) -> list[str]:
    """Place orders through the gateway as customers do; the ids of those that got a 202.

    An order whose answer is lost is sent again under its Idempotency-Key until it is answered.
    """
    assert project.config.gateway is not None
    chance = random.Random(seed)  # noqa: S311 - the same orders again for the same seed
    wishes = [make_order(chance, number) for number in range(count)]
    accepted: list[str] = []
    base = f"http://{project.config.gateway.listen}"
    async with httpx.AsyncClient(base_url=base, timeout=20.0) as client:
        (await client.post("/session")).raise_for_status()
        queue = iter(enumerate(wishes))

        async def customer() -> None:
            for number, wish in queue:
                key = f"demo-{seed}-{os.getpid()}-{number}"
                accepted.append(await _place(client, wish, key))
                placed()

        await asyncio.gather(*(customer() for _ in range(AT_ONCE)))
    return accepted


def make_order(chance: random.Random, number: int) -> dict[str, Any]:
    """An order: of a hundred, about ten are declined, five want what is not in stock."""
    lot = chance.random()
    lines = [
        {"sku": sku, "quantity": chance.randint(1, 3)}
        for sku in chance.sample(_GOODS, chance.randint(1, 3))
    ]
    card = "tok_ok"
    if lot < 0.10:
        card = "tok_declined"
    elif lot < 0.15:
        lines.append({"sku": "cloak", "quantity": 60})
    elif lot < 0.16:
        card = "tok_slow"
    elif lot < 0.18:
        card = "tok_flaky"
    phone = f"+3161234{number % 10_000:04d}" if chance.random() < 0.5 else None
    return {"lines": lines, "email": f"customer{number}@example.org", "phone": phone, "card": card}


async def review(project: Project) -> None:
    """Look at held orders as a clerk does, for ever: of three, one goes on, one is cancelled."""
    assert project.config.gateway is not None
    base = f"http://{project.config.gateway.listen}"
    seen: set[str] = set()
    async with httpx.AsyncClient(base_url=base, timeout=20.0) as client:
        await log_in(client, "carol")
        while True:
            listed = await client.get("/clerk/orders")
            listed.raise_for_status()
            for order in listed.json()["orders"]:
                if order["can_be_approved"] and order["order_id"] not in seen:
                    decision = ("approve", "cancel", "")[len(seen) % 3]
                    seen.add(order["order_id"])
                    if decision:
                        await client.post(f"/clerk/orders/{order['order_id']}/{decision}")
            await asyncio.sleep(0.2)


async def log_in(client: httpx.AsyncClient, account: str) -> None:
    """Go to the provider of logins and back, as a browser does."""
    there = (await client.get("/login")).headers["location"]
    page = await client.get(there)
    (action,) = re.findall(r'action="([^"]+)"', page.text)
    form = str(httpx.URL(there).join(html.unescape(action)))
    back = (await client.post(form, data={"account": account})).headers["location"]
    assert (await client.get(back)).headers["location"] == "/"


async def settle(
    project: Project,
    accepted: list[str],
    settled: Callable[[int], object],
    guests: Path | None = None,
) -> Books:
    """Look at the books until they balance, or until ``PATIENCE`` is at its end."""
    end = time.monotonic() + PATIENCE
    while True:
        books = await audit(project, accepted, guests)
        settled(sum(books.status(order_id).startswith(("shipped", "cancelled", "held"))
                    for order_id in accepted))  # fmt: skip
        if not books.problems or time.monotonic() > end:
            return books
        await asyncio.sleep(0.5)


async def _place(client: httpx.AsyncClient, wish: dict[str, Any], key: str) -> str:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            answer = await client.post("/orders", json=wish, headers={"Idempotency-Key": key})
            if answer.status_code == 202:
                order_id: str = answer.json()["order_id"]
                return order_id
            if answer.status_code not in (409, 429, 502, 503, 504):
                raise RuntimeError(f"{answer.status_code}: {answer.text}")
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise TimeoutError(f"order {key} was not accepted within {PATIENCE:.0f} s")
        await asyncio.sleep(0.2)


def _wait_until_up(process: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + UP
    with log.open() as lines:
        while time.monotonic() < end:
            line = lines.readline()
            if not line:
                if process.poll() is not None:
                    break
                time.sleep(0.05)
            elif line.endswith("\n") and " is up: " in str(json.loads(line).get("event")):
                return
    raise SystemExit(f"demo: the shop did not start; see {log}")


def _print_outcome(console: Console, books: Books, accepted: list[str]) -> None:
    outcomes = Counter(books.status(order_id) for order_id in accepted)
    table = Table(title=f"{len(accepted)} orders")
    table.add_column("status")
    table.add_column("orders", justify="right")
    for status, count in sorted(outcomes.items(), key=lambda item: -item[1]):
        table.add_row(status.replace("_", " "), str(count))
    console.print(table)
    times = sorted(
        seconds
        for order_id in accepted
        if (seconds := _seconds_to_settle(books.orders.get(order_id))) is not None
    )
    if times:
        p50, p99 = (times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.99))
        console.print(f"placed to settled: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")


def _seconds_to_settle(order: dict[str, Any] | None) -> float | None:
    history = order["history"] if order is not None else {}
    ends = [history[stage] for stage in ("shipped", "cancelled") if stage in history]
    if not ends:
        return None
    start = datetime.fromisoformat(history["placed"])
    return (datetime.fromisoformat(min(ends)) - start).total_seconds()


if __name__ == "__main__":
    sys.exit(main())
