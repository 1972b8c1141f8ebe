"""How the examples are run: the part of it that teaches nothing of them.

``run`` starts a project by ``oyez dev`` and lets its example feed it through the gateway. With
``--events N`` it kills processes on the way by SIGKILL, waits until the example finds everything
settled and right, makes each view once more from history, prints what was measured and has it drawn
to out/NAME.svg. Without, it stays up.

An example is a subclass of `Example`: what it feeds through a `Gateway`, the queries of its stores,
what has to be true of their rows, and its picture.
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
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import httpx
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from oyez.cli.dev import check_addresses
from oyez.config import load
from oyez.envelope import Envelope, open_record
from oyez.errors import ConfigurationError
from oyez.event import describe
from oyez.inspection import history
from oyez.inspection.drift import verify
from oyez.inspection.lag import measure_all
from oyez.ports import Record
from oyez.project import Project
from oyez.schedule import EVERY

UP = 60.0
"""Seconds that a system gets to start."""
PATIENCE = 400.0
"""Seconds that it gets to settle everything after the last event."""
REPEATED = 120.0
"""Seconds for which a request is repeated."""
BETWEEN, MOST = 10_000, 5
"""Events after which one process more is killed, and how many at most."""
LIVE = 100.0
"""Events in a second, where an example is not tried but shown."""
LOOK = 1.0
"""Seconds between two looks for what is never to be found."""
ALL = 100_000_000
"""More rows than any view has."""
SHOWN = 5
"""Things of one kind that are spelt out."""

_UNFINISHED = """select (select count(*) from oyez_outbox where due = 0) as announced,
 (select count(*) from oyez_inbox where state > 0) as parked,
 (select count(*) from oyez_dead where state = 'dead') as dead"""
_TIMERS = """select count(*) as timers from oyez_timer
 where due < :soon and kind <> :every"""

_SQLITE_TABLES = """select name from sqlite_master where type in ('table', 'view')
 and name not like 'sqlite_%'"""
_POSTGRESQL_TABLES = """select table_name as name from information_schema.tables
 where table_schema = current_schema()"""

T = TypeVar("T")
Rows = list[dict[str, Any]]
Queries = Mapping[str, Mapping[str, str]]
"""SQL of each service, by the name of the rows."""


class Gateway:
    """The gateway of the system that is fed: it keeps the speed, and tells how far it is."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        example: Example,
        rate: float = 0.0,
        sent: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.client = client
        self.rate = rate
        """Events in a second; 0 for as many as it takes."""
        self._keys = example.keys
        self._source = f"/{example.project.config.system.name}/gateway/key:"
        self._tell = sent
        self._count = 0
        self._effects = example.effects
        self._measuring: asyncio.Task[None] | None = None
        self._unmeasured: Callable[[], Awaitable[None]] | None = None

    async def parts(self, items: Sequence[T], size: int) -> AsyncIterator[Sequence[T]]:
        """Yield the items in their order, so many together or fewer, at the speed."""
        size = min(size, max(1, int(self.rate / 2))) if self.rate else size
        for first in range(0, len(items), size):
            turn = time.monotonic() + (size / self.rate if self.rate else 0)
            yield items[first : first + size]
            await asyncio.sleep(max(0.0, turn - time.monotonic()))

    def sent(self, count: int) -> None:
        """Tell that so many events more were sent."""
        self._count += count
        self._tell(self._count)

    def follow(self, shown: Callable[[], Awaitable[bool]]) -> None:
        """Measure how long it takes from now until something is shown.

        One is measured after the other, so some are left out, but never the last one.
        """
        self._unmeasured = partial(self._measure, shown, time.time())
        if self._measuring is None or self._measuring.done():
            if self._measuring is not None:
                self._measuring.result()
            self._measuring = asyncio.create_task(self._measure(shown, time.time()))
            self._unmeasured = None

    async def _measure(self, shown: Callable[[], Awaitable[bool]], since: float) -> None:
        await until(shown, every=0.02)
        self._effects.append((since, time.time()))

    async def followed(self) -> None:
        """Wait until all that is measured is shown."""
        if self._measuring is not None:
            await self._measuring
        left, self._unmeasured = self._unmeasured, None
        if left is not None:
            await left()

    async def post(
        self, key: str, told: Sequence[tuple[str, str, Any]], *, source: str = "", size: int = 500
    ) -> None:
        """Send events, each a type, an id and data, until they are taken; ``size`` in a request.

        ``key`` is the name of the key, which is the source as well if none is given. Raises what
        `ask` raises.
        """
        head = {"specversion": "1.0", "source": source or f"{self._source}{key}"}
        events = [{**head, "type": kind, "id": name, "data": data} for kind, name, data in told]
        for first in range(0, len(events), size):
            await post(self.client, self._keys[key], events[first : first + size])

    async def tell(
        self, key: str, events: Iterable[tuple[str, object]], *, size: int = 500
    ) -> None:
        """Send events of event classes, each with its id, as `post` does."""
        told = [(describe(type(event)).name, name, event) for name, event in events]
        await self.post(key, told, size=size)

    async def ask(
        self, method: str, path: str, *wanted: int, key: str = "", **more: Any
    ) -> httpx.Response:
        """Send a request, with a key if one is named, as `ask` does."""
        headers = {**more.pop("headers", {}), **({"X-Api-Key": self._keys[key]} if key else {})}
        return await ask(self.client, method, path, *wanted, headers=headers, **more)


class Example(ABC):
    """What is fed to a system, what has to become of it, and its picture."""

    tables: ClassVar[Queries] = {}
    """What `judge` needs of the stores: its rows are in ``rows``."""
    never: ClassVar[Queries] = {}
    """What is not to be found at any moment, by what a row means: looked for once in a second."""
    panels = 1
    """How many pictures `draw` draws."""
    shown = ""
    """What the address of its page ends in."""

    def __init__(
        self, project: Project, total: int, *keys: str, scopes: Iterable[str] = ()
    ) -> None:
        """``total`` is how many events it feeds, ``keys`` are the names of its API keys."""
        self.project = project
        self.total = total
        self.keys = write_keys(project.config.root, keys, scopes)
        """The API keys by name."""
        self.rows: dict[str, Rows] = {}
        self.effects: list[tuple[float, float]] = []
        """When events were fed, and when each had its effect: the last one, and any others."""
        self.processes = ExitStack()
        """What ends with the run."""

    def beside(self, *command: str, up: str, **variables: str) -> None:
        """Run a process beside the system, from when its output has the text ``up``.

        Raises SystemExit when it does not start.
        """
        log = self.project.config.root / ".oyez" / f"{Path(command[0]).name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, **variables}
            )
        self.processes.callback(process.wait, 30)
        self.processes.callback(process.terminate)
        end = time.monotonic() + UP
        while up not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"run: {command[0]} did not start; see {log}")
            time.sleep(0.05)

    async def until(self, service: str, sql: str, **values: Any) -> None:
        """Wait until a query of a service's store finds a row. Raises TimeoutError."""

        async def found() -> bool:
            return bool(await fetch(self.project, service, sql, **values))

        await until(found)

    @abstractmethod
    async def feed(self, gateway: Gateway) -> None:
        """Feed all events."""

    @abstractmethod
    async def judge(self) -> Iterable[str]:
        """Return what does not hold, or not yet, and fill ``effects``."""

    @abstractmethod
    def figures(self) -> Mapping[str, object]:
        """Return what the table shows besides, once it was judged."""

    @abstractmethod
    def draw(self, *axes: Any) -> None:
        """Draw what was found last, on ``panels`` axes of matplotlib."""


def write_keys(root: Path, names: Iterable[str], scopes: Iterable[str] = ()) -> dict[str, str]:
    """Make an API key for each name; keys.toml, for the gateway, has their digests."""
    keys = {name: secrets.token_urlsafe(32) for name in names}
    file = root / "keys.toml"
    file.touch(mode=0o600)
    with file.open("w") as output:
        for name, key in keys.items():
            digest = hashlib.sha256(key.encode()).hexdigest()
            output.write(f'[keys.{name}]\nsha256 = "{digest}"\nscopes = {json.dumps([*scopes])}\n')
    return keys


async def ask(
    client: httpx.AsyncClient, method: str, path: str, *wanted: int, **more: Any
) -> httpx.Response:
    """Send a request until its answer has a status that is wanted.

    Raises ValueError when it never will, and TimeoutError.
    """
    end = time.monotonic() + REPEATED
    while True:
        wait = 0.2
        try:
            answer = await client.request(method, path, **more)
            if answer.status_code in wanted:
                return answer
            if answer.status_code not in (429, 502, 503, 504):
                raise ValueError(f"{method} {path}: {answer.status_code}: {answer.text}")
            wait = float(answer.headers.get("retry-after", wait))
        except httpx.TransportError:
            pass  # it may have been taken: what is asked under the same ids changes nothing
        if time.monotonic() > end:
            raise TimeoutError(f"{method} {path}: no answer within {REPEATED:.0f} s")
        await asyncio.sleep(wait)


async def post(client: httpx.AsyncClient, key: str, events: list[dict[str, Any]]) -> None:
    """Send CloudEvents to the gateway until it has taken them, under the ids that they have.

    Raises ValueError when it never will take them, and TimeoutError.
    """
    headers = {"Content-Type": "application/cloudevents-batch+json", "X-Api-Key": key}
    body = msgspec.json.encode(events)
    await ask(client, "POST", "/events", 202, content=body, headers=headers)


async def read(project: Project, tables: Queries) -> tuple[dict[str, Rows], list[str]]:
    """Return the rows of the stores by the name of their query, and what is not finished.

    Not finished is what a service has yet to publish, what waits for a retry, and dead letters.
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


class Watch:
    """Looks, again and again, for what is never to be found (`Example.never`)."""

    def __init__(self, example: Example) -> None:
        self.found: set[str] = set()
        """What was found, with the first rows."""
        self.looks = 0
        self._example = example

    async def go_on(self) -> None:
        """Look once in a second, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """Look once."""
        for service, queries in self._example.never.items():
            for what, sql in queries.items():
                if rows := await fetch(self._example.project, service, sql):
                    self.found.add(f"{what}: {rows[:SHOWN]}")
        self.looks += 1


async def fetch(project: Project, service: str, sql: str, **values: Any) -> Rows:
    """Return rows of a service's store."""
    async with project.opened_store(service) as store:
        return [dict(row) for row in await store.fetch(sql, values)]


async def tables(project: Project, service: str) -> dict[str, Rows]:
    """Return all rows of all tables and SQL views of a service's store, by name."""
    async with project.opened_store(service) as store:
        if project.store_file(service):
            found = await store.fetch(_SQLITE_TABLES, {})
        else:
            found = await store.fetch(_POSTGRESQL_TABLES, {})
        names = [row["name"] for row in found]
        return {name: await store.fetch(f"select * from {name}", {}) for name in names}


async def until(true: Callable[[], Awaitable[object]], every: float = 0.1) -> None:
    """Wait until it is true, looking again after so many seconds. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while not await true():
            await asyncio.sleep(every)


async def under_way(project: Project, service: str) -> tuple[int, int]:
    """Return how many events of a service are on their way, and how much there is to do in all."""
    lag = await measure_all(project, project.config.services)
    unseen = bool(lag.gaps) or any(each.lag is None for each in lag.services)
    stream = f"{project.config.system.name}.{service}"
    places = [place for each in lag.services for place in each.partitions]
    first = sum(place.lag or 0 for place in places if place.stream == stream) + unseen
    first += sum(each.outbox for each in lag.services if each.service == service)
    rest = sum((each.lag or 0) + each.outbox + each.parked for each in lag.services)
    for name in project.config.services:
        rows = await fetch(project, name, _TIMERS, soon=time.time() + 86_400, every=EVERY)
        rest += rows[0]["timers"]
    return first, rest


class History(list[Any]):
    """Events, those of one key in their order."""

    def of(self, cls: type[T]) -> list[T]:
        """Return those of a class."""
        return [event for event in self if isinstance(event, cls)]


async def told(
    project: Project, *classes: type[Any], look: Callable[[Envelope], object] = lambda event: None
) -> History:
    """Return the events of these classes in all of history, each once.

    ``look`` is called with every event there is, whatever its class. Raises TimeoutError when the
    broker does not return it in time.
    """
    kinds = {describe(cls).name: describe(cls) for cls in classes}
    known: set[tuple[str, str]] = set()
    found = History()

    def add(record: Record) -> None:
        event = open_record(record.headers, record.data)
        if (event.source, event.id) not in known:  # a relay that died has sent some twice
            known.add((event.source, event.id))
            look(event)
            if event.type in kinds:
                found.append(kinds[event.type].decode(event.data))

    system = f"{project.config.system.name}."
    async with project.opened_broker() as broker:
        streams = [each for each in await history.streams(broker) if each.startswith(system)]
        left = await history.ends(broker, streams)
        async with asyncio.timeout(PATIENCE):
            while left:  # nothing is deleted of it: a broker that is slow is asked once more
                left = {place: left[place] for place in await history.scan(broker, left, add)}
    return found


async def unsettled(project: Project) -> list[str]:
    """Return how many events are on their way and how many timers are to come; empty for none."""
    _, rest = await under_way(project, "")
    return [f"{rest} events or timers are on their way"] if rest else []


async def recompute(project: Project) -> tuple[int, list[str]]:
    """Make every view from history, and compare; how many rows are so, and which are not."""
    rows = 0
    problems: list[str] = []
    for service in project.config.services:
        for view in project.service(service).views:
            made = await verify(project, service, view.view, sample=ALL)
            rows += made.rows
            found = {f"{each.key} {each.field}" for each in made.differences}
            problems += differ(f"rows of {view.view} that history has not", found, set())
            problems += [f"{view.view}: {each}" for each in made.gaps]
    return rows, problems


def counts(rows: Rows, column: str) -> Counter[Any]:
    """Return how many rows have each value of a column."""
    return Counter(row[column] for row in rows)


def differ(what: str, found: Any, wanted: Any = frozenset()) -> Iterator[str]:
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
        self.killed: dict[str, int] = {}
        """Those that were killed, and the process that each was."""
        self._process = process
        self._log = log
        self._peaks: dict[str, float] = {}

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

    def kill(self, chance: random.Random) -> None:
        """Kill one by SIGKILL, as nobody can prepare for; it is started again."""
        self.peaks()
        alive = {name: pid for name, pid in self.pids().items() if Path(f"/proc/{pid}").exists()}
        name = chance.choice(sorted(alive))
        self.killed[name] = alive[name]
        os.kill(alive[name], signal.SIGKILL)

    def peaks(self) -> dict[str, float]:
        """Return the most memory that each has had when it was looked, in MiB."""
        for name, pid in self.pids().items():
            with suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        most = int(line.split()[1]) / 1024
                        self._peaks[name] = max(self._peaks.get(name, 0.0), most)
        return self._peaks


def run(name: str, make: Callable[[Project, int, int], Example], live: int) -> NoReturn:
    """Run an example as its command line says, in the folder of the script, and exit.

    ``make`` is called with the project, how many events, and the seed, before anything starts;
    ``live`` is how many events are played, a hundred in a second, where none are asked for.
    """
    parser = argparse.ArgumentParser(prog="run", description=f"Runs the example {name}.")
    parser.add_argument("--events", type=int, default=0, help="feed so many events, then stop")
    parser.add_argument("--live", type=int, default=live, help="play so many where --events is 0")
    parser.add_argument("--seed", type=int, default=4711, help="which events they are")
    options = parser.parse_args()
    if min(options.events, options.live) < 0:
        parser.error("--events, --live: expected 0 or more")
    root = Path(sys.argv[0]).resolve().parent
    os.chdir(root)
    try:
        if options.events:  # runs stand beside each other; a page has a known address
            _free_addresses(root)
        project = Project(load(root))
        check_addresses(project.config)
        assert project.config.gateway is not None
        base = f"http://{project.config.gateway.listen}"
        example = make(project, options.events or options.live, options.seed)
        with running(root) as system, example.processes:
            if options.events:
                sys.exit(asyncio.run(_trial(name, root, example, base, system, options.seed)))
            print(f"the page: {base}/{example.shown}  (Ctrl-C stops it)", flush=True)
            asyncio.run(_show(example, base))
            signal.pause()
    except ConfigurationError as error:
        print(f"run: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass
    sys.exit()


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


async def _show(example: Example, base: str) -> None:
    async with httpx.AsyncClient(base_url=base, timeout=30.0) as client:
        await example.feed(Gateway(client, example, LIVE))


async def _trial(
    name: str, root: Path, example: Example, base: str, system: Supervised, seed: int
) -> int:
    chance, console = random.Random(seed), Console()
    kills = max(1, min(MOST, example.total // BETWEEN))
    moments = sorted(example.total * chance.uniform(0.05, 0.95) for _ in range(kills))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    async with (
        asyncio.TaskGroup() as group,
        httpx.AsyncClient(base_url=base, timeout=30.0) as client,
    ):
        watch = Watch(example)
        watching = group.create_task(watch.go_on())
        with Progress(*columns, console=console) as progress:
            sending = progress.add_task("events sent   ", total=example.total)
            settling = progress.add_task("events settled", total=example.total)

            def sent(count: int) -> None:
                progress.update(sending, completed=count)
                if moments and count >= moments[0]:
                    del moments[0]
                    system.kill(chance)

            started = time.time()
            gateway = Gateway(client, example, 0.0, sent)
            await example.feed(gateway)
            await gateway.followed()
            end = time.monotonic() + PATIENCE
            while True:
                example.rows, problems = await read(example.project, example.tables)
                problems += await example.judge()
                settled = len(example.effects) if problems else example.total
                progress.update(settling, completed=min(settled, example.total))
                if not problems or time.monotonic() > end:
                    break
                await asyncio.sleep(2.0)
        watching.cancel()
    await watch.look()
    last = max((at for _, at in example.effects), default=time.time())
    took, peaks = last - started, system.peaks()
    rows, differences = await recompute(example.project)
    problems += [*sorted(watch.found), *differences]
    problems += [
        f"{each} was killed and not started again"
        for each, pid in system.killed.items()
        if system.pids()[each] == pid
    ]
    delays = sorted(at - fed for fed, at in example.effects) or [0.0]
    p50, p99 = (delays[int(len(delays) * share)] * 1000 for share in (0.5, 0.99))
    largest = max(peaks, key=peaks.__getitem__)
    table = Table("", "", title=name, show_header=False)
    table.columns[1].justify = "right"
    for what, figure in {
        **example.figures(),
        **({"looks at the stores meanwhile": watch.looks} if example.never else {}),
        "killed on the way": f"{kills}: {', '.join(system.killed)}",
        "rows of views, the same from history": rows,
        "events/s": f"{example.total / took:.0f}",
        f"from event to effect, p50, p99 of {len(delays)}": f"{p50:.0f} ms, {p99:.0f} ms",
        "peak memory, all processes": f"{sum(peaks.values()):.0f} MiB",
        "peak memory, the largest process": f"{peaks[largest]:.0f} MiB ({largest})",
    }.items():
        table.add_row(what, str(figure))
    console.print(table)
    for problem in problems:
        console.print(f"[bold red]does not hold:[/] {escape(problem)}", highlight=False)
    if not problems:
        console.print(f"[bold green]The invariant holds.[/] See out/{name}.svg.")
    _draw(example, delays, root / "out" / f"{name}.svg")
    return 1 if problems else 0


def _draw(example: Example, delays: list[float], path: Path) -> None:
    import matplotlib as mpl  # only at the end of a run

    mpl.use("svg")
    from matplotlib import pyplot

    size = (5 * example.panels + 5, 4.5)
    figure, axes = pyplot.subplots(1, example.panels + 1, figsize=size, layout="constrained")
    example.draw(*axes[:-1])
    axes[-1].ecdf([each * 1000 for each in delays])
    axes[-1].set(title="From event to effect", xlabel="ms", ylabel="share", xscale="log")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


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
