"""What is done to a running system: each fault is a class with a name, counted when it has fired.

`Fault.strike` does it and returns when the cause is gone: what the journal calls its end, from
which recovery is counted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, ClassVar, Literal
from uuid import uuid4

import httpx
import msgspec
from evidence import POISON, SHOP, WITNESS
from system_calls import ATTACHES, CHANGES, Point, points, threads, traced
from transactions import frozen, inside

from oyez.envelope import Envelope, format_time
from oyez.errors import BrokerError
from oyez.inspection import history
from oyez.ports import BEGINNING, Record
from oyez.testing.proxy import Proxy

if TYPE_CHECKING:
    from campaign import Run

SERVICES = (*SHOP, WITNESS)
IN_TRANSACTIONS = ("pwrite64", "fdatasync", "fsync")
"""System calls that SQLite makes inside a transaction alone."""
SLICES = 6
"""Runs that share the system calls of one order."""
AIMED = 2.0
"""Seconds for which a kill waits for a transaction to land in."""


class Fault(ABC):
    """One kind of harm."""

    name: str

    @abstractmethod
    async def strike(self, run: Run) -> dict[str, object] | None:
        """Do it, and undo its cause; what there is to say of it."""

    async def fire(self, run: Run) -> None:
        """Strike, and write down that it was done, or that it missed."""
        began = time.time()
        told = await self.strike(run) or {}
        told.setdefault("ended", time.time())
        kind = "missed" if told.pop("missed", False) else "fault"
        run.journal.write(kind, name=self.name, began=began, **told)


# -- processes -------------------------------------------------------------------------------------


class Kill(Fault):
    """``kill -9`` of a process of the shop, three of four aimed inside a transaction of its store.

    Of five processes that are started again, four may start before the next dies in their place.
    """

    name = "kill"

    def __init__(self, processes: tuple[str, ...] = (*SERVICES, "gateway")) -> None:
        self._processes = processes

    async def strike(self, run: Run) -> dict[str, object]:
        async with run.held(run.processes(self._processes)) as process:
            aimed = run.chance.random() < 0.75
            pid, within = await _stopped(run, process, AIMED if aimed else 0.0)
            os.kill(pid, signal.SIGKILL)
            ended = time.time()
            await run.respawned(process, pid)
            if run.chance.random() < 0.8:
                await run.started(process)
        return {"process": process, "inside": within, "ended": ended}


async def _stopped(run: Run, process: str, patience: float) -> tuple[int, bool]:
    """Freeze a process, in a transaction if it has one within so many seconds.

    It is looked at first, and frozen where it seems worth it: it goes on undisturbed until then.
    """
    service = process.partition(".")[0]
    end = time.monotonic() + (patience if service in SERVICES else 0.0)
    while True:
        pid, late = run.pid(process), time.monotonic() > end
        if late or await inside(run, service, pid):
            os.kill(pid, signal.SIGSTOP)
            await frozen(pid)
            within = service in SERVICES and await inside(run, service, pid)
            if within or late:
                return pid, within
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(run.chance.uniform(0, 0.004))


class Terminate(Fault):
    """SIGTERM, every other time inside a transaction, which it then has to end well."""

    name = "terminate"

    async def strike(self, run: Run) -> dict[str, object]:
        async with run.held(run.processes(SERVICES)) as process:
            pid, within = await _stopped(run, process, AIMED if run.chance.random() < 0.5 else 0.0)
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
            ended = time.time()
            await run.respawned(process, pid)
        return {"process": process, "inside": within, "ended": ended}


class Freeze(Fault):
    """A replica that is stopped past its lease, and goes on when another has its partitions."""

    name = "freeze"
    seconds = 5.0
    """Longer than the lease of a service, which is 3 s."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._services = services

    async def strike(self, run: Run) -> dict[str, object]:
        async with run.held(run.processes(self._services)) as process:
            pid = run.pid(process)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self.seconds)
            os.kill(pid, signal.SIGCONT)
        return {"process": process}


class JoinAndLeave(Fault):
    """A replica more, which joins, takes partitions, and leaves: told to, or killed."""

    name = "join and leave"
    services = ("inventory", "payments", "shipping", "notifications", WITNESS)
    """Those that have no address of their own."""

    async def strike(self, run: Run) -> dict[str, object]:
        service = run.chance.choice(self.services)
        number = run.chance.choice((signal.SIGTERM, signal.SIGKILL))
        member = subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", service],
            cwd=run.shop.root,
            env=run.shop.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await asyncio.sleep(run.chance.uniform(0.7, 2.0))
        member.send_signal(number)
        await asyncio.to_thread(member.wait, 30)
        return {"service": service, "signal": number.name}


# -- load and events -------------------------------------------------------------------------------


class Overload(Fault):
    """A hundred orders at the same moment."""

    name = "overload"

    async def strike(self, run: Run) -> None:
        await run.customers.rush(100)


class Weather(Fault):
    """A slow or failing consumer: what Payments calls crawls, answers errors, or is away."""

    name = "slow consumer"
    seconds = 3.0

    async def strike(self, run: Run) -> dict[str, object]:
        mode = run.chance.choice(("slow", "errors", "down"))
        provider = f"http://127.0.0.1:{run.shop.ports['8090']}"
        async with httpx.AsyncClient(base_url=provider, timeout=10.0) as client:
            (await client.post("/weather", json={"mode": mode})).raise_for_status()
            await asyncio.sleep(self.seconds)
            (await client.post("/weather", json={"mode": "fair"})).raise_for_status()
        return {"mode": mode}


class Poison(Fault):
    """An event that harms whoever handles it, on the stream of the orders."""

    def __init__(self, how: Literal["raise", "hang", "exit", "exhaust"]) -> None:
        self.name = f"poison: {how}"
        self._how = how

    async def strike(self, run: Run) -> dict[str, object]:
        system, key, event_id = run.project.config.system.name, uuid4().hex, str(uuid4())
        event = Envelope(
            id=event_id,
            source=f"/{system}/torture",
            type=POISON,
            subject=key,
            time=format_time(time.time()),
        )
        data = msgspec.json.encode({"key": key, "how": self._how})
        record = Record(stream=f"{system}.orders", key=key, headers=event.headers(), data=data)
        async with run.project.opened_broker(group=False) as broker:
            await broker.publish([record])
        run.journal.write("injected", what=POISON, event=event_id)
        return {"event": event_id}


class Duplicate(Fault):
    """Events that the broker has had already, again, late and in another order."""

    name = "duplicate"
    at_once = 20
    stretches = 8
    """Partitions of which a batch is read, from anywhere."""

    async def strike(self, run: Run) -> dict[str, object]:
        try:
            return {"events": await self._deliver(run)}
        except BrokerError:
            return {"missed": True}  # another lane has it down

    async def _deliver(self, run: Run) -> int:
        prefix = f"{run.project.config.system.name}."
        async with run.project.opened_broker() as broker:
            if not broker.capabilities.history:
                return 0
            places = await history.ends(broker, await history.streams(broker))
            own = [
                (place, end)
                for place, end in places.items()
                if place[0].startswith(prefix) and end > BEGINNING
            ]
            found: list[Record] = []
            for place, end in run.chance.sample(own, min(self.stretches, len(own))):
                after = run.chance.randrange(BEGINNING, end)
                async with aclosing(history.read(broker, place, end, after)) as batches:
                    async for batch in batches:
                        found.extend(batch.records)
                        break
            facts = [each for each in found if each.headers.get("type") != POISON]
            again = run.chance.sample(facts, min(self.at_once, len(facts)))
            await broker.publish(
                [
                    Record(stream=each.stream, key=each.key, headers=each.headers, data=each.data)
                    for each in again
                ]
            )
        return len(again)


# -- servers ---------------------------------------------------------------------------------------


class ServerKilled(Fault):
    """``kill -9`` of a server, which is started again at once."""

    def __init__(self, server: str) -> None:
        self.name = f"{server} killed"
        self.server = server

    async def strike(self, run: Run) -> None:
        async with run.held([self.server]):
            await self.harm(run)

    async def harm(self, run: Run) -> None:
        """Do it; nobody else is at this server meanwhile."""
        await asyncio.to_thread(run.servers.kill, self.server)
        await asyncio.to_thread(run.servers.start, self.server)


class ServerDown(ServerKilled):
    """A server that is away for some seconds."""

    seconds = 5.0

    def __init__(self, server: str) -> None:
        super().__init__(server)
        self.name = f"{server} down"

    async def harm(self, run: Run) -> None:
        await asyncio.to_thread(run.servers.kill, self.server)
        await asyncio.sleep(self.seconds)
        await asyncio.to_thread(run.servers.start, self.server)


class DownInRecovery(ServerKilled):
    """A server that is killed again while the services recover from its first end."""

    def __init__(self, server: str) -> None:
        super().__init__(server)
        self.name = f"{server} down in recovery"

    async def harm(self, run: Run) -> None:
        for _ in range(2):
            await asyncio.to_thread(run.servers.kill, self.server)
            await asyncio.to_thread(run.servers.start, self.server)
            await asyncio.sleep(run.chance.uniform(0, 0.5))


# -- links -----------------------------------------------------------------------------------------


class LinkFault(Fault):
    """Something is wrong with the way to a broker, a store or the payment provider."""

    kind: ClassVar[str]

    def __init__(self, link: str) -> None:
        self.name = f"{self.kind}: {link}"
        self._link = link

    async def strike(self, run: Run) -> None:
        async with run.held([self._link]):
            link = run.links[self._link]
            try:
                await self.harm(link, run.chance.uniform(0.5, 4.0))
            finally:
                link.restore()

    @abstractmethod
    async def harm(self, link: Proxy, seconds: float) -> None:
        """Do it for so many seconds; `strike` restores the link."""


class Partition(LinkFault):
    """Connections are reset, and none is accepted."""

    kind = "partition"

    async def harm(self, link: Proxy, seconds: float) -> None:
        link.cut()
        await asyncio.sleep(seconds)


class HalfOpen(LinkFault):
    """Connections stay, and no byte passes."""

    kind = "half-open"

    async def harm(self, link: Proxy, seconds: float) -> None:
        link.stall()
        await asyncio.sleep(seconds)


class Reset(LinkFault):
    """Connections are reset, and new ones work."""

    kind = "reset"

    async def harm(self, link: Proxy, seconds: float) -> None:
        link.cut()


class Delay(LinkFault):
    """Every byte is late."""

    kind = "delay"

    async def harm(self, link: Proxy, seconds: float) -> None:
        link.delay(0.2)
        await asyncio.sleep(seconds)


class LostReply(LinkFault):
    """What is asked arrives, and no answer comes back before the connection is reset.

    Among what is asked are commits: they are made, and nobody hears of it.
    """

    kind = "lost reply"

    async def harm(self, link: Proxy, seconds: float) -> None:
        link.mute()
        await asyncio.sleep(seconds / 4)
        link.cut()


# -- clocks ----------------------------------------------------------------------------------------


class ClockMoved(Fault):
    """The wall clock of every process of the shop is wrong by some hours for some seconds."""

    seconds = 4.0

    def __init__(self, hours: int) -> None:
        self.name = f"clock {hours:+d} h"
        self._hours = hours

    async def strike(self, run: Run) -> dict[str, object]:
        clock = run.ground.clock
        assert clock is not None
        clock.move(self._hours * 3_600)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            clock.move(0)
        return {"clock": True}


# -- disks -----------------------------------------------------------------------------------------


class PowerLost(Fault):
    """The file system of a store or broker is shut down: what was not flushed is gone.

    All that uses it has ended with it, the file system is mounted again, and they are started.
    """

    name = "power lost"

    async def strike(self, run: Run) -> dict[str, object]:
        assert run.disk is not None
        on_disk = run.servers.names
        within = False
        if on_disk:
            for server in on_disk:
                await asyncio.to_thread(run.servers.kill, server)
        else:
            within = await _in_any_transaction(run)
            await asyncio.to_thread(run.shop.crash)
        async with run.looking:
            run.disk.lose_power()
            run.disk.remount()
        ended = time.time()
        for server in on_disk:
            await asyncio.to_thread(run.servers.start, server)
        if not on_disk:
            await asyncio.to_thread(run.shop.start)
        return {"inside": within, "ended": ended}


async def _in_any_transaction(run: Run) -> bool:
    """Wait, not for long, until a service is inside a transaction, and leave it there frozen."""
    _, within = await _stopped(run, run.chance.choice(SERVICES), AIMED)
    return within


class DiskFull(Fault):
    """The file system has no byte left for some seconds.

    Servers on it are started again afterwards: NATS stores nothing more until then.
    """

    name = "disk full"
    seconds = 3.0

    async def strike(self, run: Run) -> None:
        assert run.disk is not None
        with run.disk.filled():
            await asyncio.sleep(self.seconds)
        for server in run.servers.names:
            await asyncio.to_thread(run.servers.kill, server)
            await asyncio.to_thread(run.servers.start, server)


class Errors(Fault):
    """A service's writes and flushes of files fail for a second, by strace."""

    seconds = 1.0

    def __init__(self, error: Literal["EIO", "ENOSPC"]) -> None:
        self.name = f"writes fail: {error}"
        self._error = error

    async def strike(self, run: Run) -> dict[str, object]:
        process = run.chance.choice(SERVICES)
        harm = f"error={self._error}"
        async with traced(run.pid(process), ",".join(IN_TRANSACTIONS), harm=harm) as log:
            await asyncio.sleep(self.seconds)
        failed = "".join(log).count("(INJECTED)")
        return {"process": process, "failed": failed, "missed": not failed}


class KillAtSystemCalls(Fault):
    """``kill -9`` of services at each of the system calls of one order that change something.

    One order shows which there are, thread by thread. During each later order every service dies at
    the next of its own; one that does not reach it has another go at the end. A run takes those of
    one slice, by its seed, and `SLICES` runs take them all.
    """

    name = "kill at a system call"

    def __init__(self) -> None:
        self._points: dict[str, deque[Point]] | None = None
        self._again: set[Point] = set()
        self._threads: dict[str, int] = {}

    async def fire(self, run: Run) -> None:
        if self._points is None:
            self._points = await self._look(run)
        chosen = [points.popleft() for points in self._points.values() if points]
        if not chosen:
            raise Exhausted
        async with AsyncExitStack() as stack:
            strikes = []
            for point in chosen:
                pid = await self._whole(run, point.process)
                thread, harm = threads(pid)[point.thread], f"signal=KILL:when={point.nth}"
                await stack.enter_async_context(
                    traced(thread, point.syscall, harm=harm, follow=False)
                )
                strikes.append((point, pid, asyncio.create_task(self._death(run, pid))))
            began = time.time()
            await run.customers.order()
            await run.settled()
        for point, pid, death in strikes:
            ended = death.result() if death.done() else None
            death.cancel()
            self._tell(run, point, began, ended)
            if ended is not None:
                await run.respawned(point.process, pid)

    async def strike(self, run: Run) -> None:
        """Nothing besides: `fire` strikes at several processes."""

    async def _death(self, run: Run, pid: int) -> float:
        await run.gone(pid)
        return time.time()

    def _tell(self, run: Run, point: Point, began: float, ended: float | None) -> None:
        if ended is None and point not in self._again:
            assert self._points is not None
            self._again.add(point)
            self._points[point.process].append(point)
        run.journal.write(
            "missed" if ended is None else "fault",
            name=self.name,
            began=began,
            process=point.process,
            point=f"{point.syscall} {point.nth} of thread {point.thread}",
            inside=ended is not None and point.syscall in IN_TRANSACTIONS,
            ended=ended or time.time(),
        )

    async def _look(self, run: Run) -> dict[str, deque[Point]]:
        for process in SERVICES:
            self._threads[process] = len(threads(run.pid(process)))
        async with AsyncExitStack() as logs:
            read = {}
            for process in SERVICES:
                pid = run.pid(process)
                log = await logs.enter_async_context(traced(pid, ",".join(CHANGES)))
                read[process] = (threads(pid), log)
            await run.customers.order()
            await run.settled()
        found = {
            process: points(process, order, "".join(log)) for process, (order, log) in read.items()
        }
        of = run.seed % SLICES
        sliced = {process: sorted(each)[of::SLICES] for process, each in found.items()}
        run.journal.write(
            "points",
            count=sum(map(len, found.values())),
            chosen=sum(map(len, sliced.values())),
        )
        for each in sliced.values():
            run.chance.shuffle(each)
        return {process: deque(each) for process, each in sliced.items()}

    async def _whole(self, run: Run, process: str) -> int:
        """Wait until a process has all its threads; its number."""
        await run.started(process)
        end = time.monotonic() + ATTACHES
        while len(threads(pid := run.pid(process))) < self._threads[process]:
            if time.monotonic() > end:
                raise TimeoutError(f"{process} has fewer threads than it had")
            await asyncio.sleep(0.05)
        return pid


class Exhausted(Exception):
    """There is nothing more of this fault to fire."""
