"""How fast a process starts, and what it weighs at rest; each figure from a fresh process.

Beside ``import oyez`` stand the two modules that it can't do without, beside ``oyez --help`` a bare
interpreter, beside ``oyez run`` a program of Starlette, uvicorn and two SQLite files that answers
``GET /readyz``, and beside the first batch a program that reads 256 rows from one file and commits
them into another.

Bytecode is cached, as in an installation; what the first process of all pays is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import apsw

from benchmarks.comparison import Aim, Figures, Report, Row, Way, interleave
from benchmarks.consume_job import LEDGER, fill, ledger
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from oyez.ambient import SystemAmbient
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.cli.invocation import run_async
from oyez.runtime.interpreter import tune
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import BatchHandled, Signal, Signals
from oyez.stores.sqlite import SqliteStore

_REST = 1.5
"""Seconds after which a service that does nothing is at rest."""
_HERE = Path(__file__).resolve().parents[1]
_IMPORT, _HELP, _READY = "import oyez", "oyez --help", "oyez run, ready"
_NEW, _KNOWN = "first batch, new store", "first batch, known store"
_PARTS, _BARE, _SERVER = "asyncio and msgspec", "bare interpreter", "a server by hand"
_HAND = "one batch by hand"

_PROJECT = """[system]
name = "bench"
broker = "embedded:.oyez/events.db"
log = "json"

[services.ledger]
app = "ledger:service"
admin = "127.0.0.1:{port}"
"""
_SERVICE = """from oyez import Event, Service, Transaction

class Paid(Event, type="bench.paid", key="account"):
    account: str
    order: str
    cents: int

class Booked(Event, type="bench.booked", key="account"):
    account: str
    order: str

service = Service("ledger", migrations="migrations")

@service.on(Paid)
async def book(event: Paid, tx: Transaction) -> Booked:
    sql = "update account set cents = cents + :cents where id = :account"
    tx.execute(sql, cents=event.cents, account=event.account)
    return Booked(account=event.account, order=event.order)
"""
_SERVED = """
import asyncio, socket, sys
import apsw, uvicorn, uvloop
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def ready(_):
    return JSONResponse({"ok": True})

for name in ("own.db", "log.db"):
    apsw.Connection(name).pragma("journal_mode", "wal")
app = Starlette(routes=[Route("/readyz", ready)])
settings = uvicorn.Config(app, http="httptools", ws="none", log_config=None, port=int(sys.argv[1]))
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(uvicorn.Server(settings).serve())
"""
_CLOCK = "import time; start, cpu = time.perf_counter(), time.process_time()"
_PRINT = "print(time.perf_counter() - start, time.process_time() - cpu)"
_BATCH = f"""
import apsw
{_CLOCK}
log, own = apsw.Connection("log.db"), apsw.Connection("own.db")
own.pragma("journal_mode", "wal")
own.pragma("synchronous", "full")
own.execute("create table t (i)")
rows = list(log.execute("select * from log order by position limit 256"))
with own:
    own.executemany("insert into t values (?)", [(row[0],) for row in rows])
{_PRINT}
"""
_BACKLOG = 5_000
"""Events that wait for a service that starts."""


async def run(here: Surroundings) -> Report:
    """A turn is a process, or two."""
    rounds = here.pick(5, 21)
    least: dict[str, Figures] = {}
    rows: list[Row] = []
    for case, ways in (
        (_IMPORT, {"oyez": partial(_import, "oyez"), _PARTS: partial(_import, "asyncio, msgspec")}),
        (
            _HELP,
            {"oyez": partial(_whole, "-m", "oyez", "--help"), _BARE: partial(_whole, "-c", "")},
        ),
        (_READY, {"oyez": partial(_service, here), _SERVER: partial(_served, here)}),
        (_NEW, {"oyez": partial(_first, here, known=False), _HAND: partial(_batch, here)}),
        (_KNOWN, {"oyez": partial(_first, here, known=True), _HAND: partial(_batch, here)}),
    ):
        turns = [
            Way(name, partial(_keep, least, f"{case}, {name}", turn)) for name, turn in ways.items()
        ]
        rows += await interleave(case, turns, rounds)
    return Report(
        benchmark="start",
        about="a fresh process each time; below 1 is faster, or smaller",
        rows=rows,
        notes=[
            f"the least of {rounds}: {name}: "
            + ", ".join(f"{figure} {value:.1f}" for figure, value in figures.items())
            for name, figures in least.items()
        ],
        aims=[
            _aim("ms to import oyez", _IMPORT, "ms", 80.0),
            _aim("ms that oyez --help takes", _HELP, "ms", 150.0),
            _aim("ms until a service is ready", _READY, "ms", 400.0),
            _aim("MiB of a service at rest", _READY, "MiB", 45.0),
            _aim("ms from start() to the first batch, new store", _NEW, "ms", 30.0),
            _aim("ms from start() to the first batch, known store", _KNOWN, "ms", 30.0),
        ],
        lacks={
            _SERVER: "consume and publish, claims, a lease, a relay, migrations, metrics, logs",
            _HAND: "partitions, claims, a lease, checksums, an inbox, an outbox, migrations",
        },
    )


def _aim(what: str, case: str, figure: str, at_most: float) -> Aim:
    return Aim(what=what, case=case, figure=figure, way="oyez", at_most=at_most, absolute=True)


async def _keep(
    least: dict[str, Figures], name: str, turn: Callable[[], Awaitable[Figures]]
) -> Figures:
    found = await turn()
    best = least.setdefault(name, found)
    least[name] = {figure: min(value, best[figure]) for figure, value in found.items()}
    return found


def _environment() -> dict[str, str]:
    # Bytecode is cached wherever the sources are.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    path = [str(_HERE), kept.get("PYTHONPATH", "")]
    return {**kept, "PYTHONPATH": os.pathsep.join(part for part in path if part)}


async def _import(modules: str) -> Figures:
    """The import alone, without the start of the interpreter."""
    return _measured(Path(), "-c", f"{_CLOCK}\nimport {modules}\n{_PRINT}")


async def _whole(*arguments: str) -> Figures:
    """From the start of a process to its end."""
    before = _children()
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=_environment()
    )
    seconds = time.perf_counter() - start
    return {"ms": seconds * 1e3, "CPU ms": (_children() - before) * 1e3}


def _children() -> float:
    """The CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- a service that is ready ----------------------------------------------------------------------


async def _service(here: Surroundings) -> Figures:
    folder = here.fresh("run")
    _prepare(folder)
    port = _free_port()
    (folder / "oyez.toml").write_text(_PROJECT.format(port=port))
    (folder / "ledger.py").write_text(_SERVICE)
    return await _until_ready(folder, port, "-m", "oyez", "run", "ledger")


async def _served(here: Surroundings) -> Figures:
    port = _free_port()
    return await _until_ready(here.fresh("served"), port, "-c", _SERVED, str(port))


async def _until_ready(folder: Path, port: int, *arguments: str) -> Figures:
    with open(folder / "log", "wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, stdout=log, stderr=log, env=_environment()
        )
    try:
        while not await _is_ready(port):
            if process.poll() is not None:
                raise AssertionError((folder / "log").read_text())
            await asyncio.sleep(0.002)
        seconds = time.perf_counter() - start
        cpu = _cpu(process.pid)
        await asyncio.sleep(_REST)
        resident = _resident(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return {"ms": seconds * 1e3, "CPU ms": cpu * 1e3, "MiB": resident}


async def _is_ready(port: int) -> bool:
    """Ask once; a socket that listens already answers when its server has started."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        return (await reader.readline()).split()[1:2] == [b"200"]
    except OSError:
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _cpu(pid: int) -> float:
    """The CPU seconds of a process's threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _resident(pid: int) -> float:
    """The resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


# -- the first batch ------------------------------------------------------------------------------


async def _first(here: Surroundings, *, known: bool) -> Figures:
    """A service that finds a backlog; ``known`` if it has run before."""
    folder = here.fresh("first")
    _prepare(folder)
    if known:
        await fill(here, folder, make_records(here, 1))
        _measured(folder, "-m", "benchmarks.start", str(folder))
    await fill(here, folder, make_records(here, _BACKLOG))
    return _measured(folder, "-m", "benchmarks.start", str(folder))


async def _batch(here: Surroundings) -> Figures:
    folder = here.fresh("batch")
    log = apsw.Connection(str(folder / "log.db"))
    log.pragma("journal_mode", "wal")
    log.execute("create table log (position integer primary key, data)")
    with log:
        log.executemany("insert into log (data) values (?)", [("x" * 80,)] * _BACKLOG)
    log.close()
    return _measured(folder, "-c", _BATCH)


def _measured(folder: Path, *arguments: str) -> Figures:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=_environment()
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    seconds, cpu = map(float, done.stdout.split())
    return {"ms": seconds * 1e3, "CPU ms": cpu * 1e3}


async def _until_handled(folder: Path) -> None:
    """In a process of its own: print the seconds from ``start()`` to the first batch."""
    ambient, signals, handled = SystemAmbient(), Signals(), asyncio.Event()
    process = ServiceProcess(
        ledger(),
        ProcessSettings(system="bench", root=folder),
        broker=EmbeddedBroker(folder / "events.db", ambient),
        store=SqliteStore(folder / "ledger.db", ambient),
        ambient=ambient,
        signals=signals,
    )

    def look(signal: Signal) -> None:
        if isinstance(signal, BatchHandled) and not handled.is_set():
            print(time.perf_counter() - start, time.process_time() - cpu)
            handled.set()

    signals.listen(look)
    start, cpu = time.perf_counter(), time.process_time()
    await process.start()
    await handled.wait()
    await process.drain()


def _prepare(folder: Path) -> None:
    (folder / "migrations").mkdir()
    (folder / "migrations" / "001_account.sql").write_text(LEDGER)


if __name__ == "__main__":
    # As `oyez run` sets it.
    tune()
    run_async(_until_handled(Path(sys.argv[1])))
