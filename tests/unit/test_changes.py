"""`Service.changes`: who shows the service's data live wakes when it has committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oyez import Event, Service, Transaction
from oyez.ambient import SystemAmbient
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import DeclarationError, StoreUnavailable
from oyez.ports import Changes
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore, SqliteTransaction
from oyez.testing import System, running
from oyez.testing.clock import quiescent

DEADLINE = 60.0
NEVER = 3_600.0


class Noted(Event, type="test.noted", key="name"):
    name: str


def made() -> Service:
    service = Service("desk", publishes=(Noted,))

    @service.on(Noted)
    def note(event: Noted, tx: Transaction) -> None:
        _write(tx)

    return service


def _write(tx: Transaction) -> None:
    tx.execute("create table if not exists note (name text)")


async def commit(service: Service) -> None:
    async with service.transaction() as tx:
        _write(tx)


async def fail(service: Service) -> None:
    async with service.transaction() as tx:
        _write(tx)
        raise ZeroDivisionError


async def following(system: System) -> AsyncIterator[None]:
    """A follower that has woken at the beginning and may wake again."""
    await system.settled()
    changes = system.processes["desk"].service.changes()
    await anext(changes)
    await system.advance(0.1)
    return changes


async def wakes(changes: AsyncIterator[None]) -> bool:
    """Whether it wakes now; it can be asked again if not."""
    task = asyncio.ensure_future(anext(changes))
    await quiescent()
    if task.done():
        task.result()
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


async def test_it_wakes_at_the_beginning_and_then_after_a_commit() -> None:
    service = made()
    async with running(service) as system:
        await system.settled()
        changes = service.changes()
        assert await wakes(changes)
        await system.advance(0.1)
        assert not await wakes(changes)
        await commit(service)
        assert await wakes(changes)


async def test_a_handlers_commit_wakes_every_follower() -> None:
    service = made()
    async with running(service) as system:
        await system.settled()
        followers = [await following(system) for _ in range(3)]
        await system.publish(Noted(name="1"))
        await system.settled()
        for changes in followers:
            assert await wakes(changes)


async def test_many_commits_are_one_wake_up() -> None:
    service = made()
    async with running(service) as system:
        changes = await following(system)
        for _ in range(5):
            await commit(service)
        assert await wakes(changes)
        await system.advance(0.1)
        assert not await wakes(changes)


async def test_a_busy_service_wakes_a_follower_ten_times_a_second() -> None:
    service = made()
    async with running(service) as system:
        changes = await following(system)
        await commit(service)
        assert await wakes(changes)
        await commit(service)
        assert not await wakes(changes)
        await system.advance(0.1)
        assert await wakes(changes)


async def test_what_was_undone_wakes_no_one() -> None:
    service = made()
    async with running(service) as system:
        changes = await following(system)
        with pytest.raises(ZeroDivisionError):
            await fail(service)
        assert not await wakes(changes)


async def test_a_commit_whose_end_is_unknown_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    service = made()
    async with running(service) as system:
        changes = await following(system)

        async def cut(transaction: SqliteTransaction, changes: Changes) -> None:
            raise StoreUnavailable("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(SqliteTransaction, "commit", cut)
            with pytest.raises(StoreUnavailable):
                await commit(service)
        assert await wakes(changes)


async def test_silence_wakes_when_asked() -> None:
    service = made()
    async with running(service) as system:
        await system.settled()
        changes = service.changes(every=15.0)
        assert await wakes(changes)
        task = asyncio.ensure_future(anext(changes))
        await system.advance(14.0)
        assert not task.done()
        await system.advance(2.0)
        assert task.done()


async def test_it_ends_with_the_process() -> None:
    service = made()
    async with running(service) as system:
        waiting, late = await following(system), service.changes()
        task = asyncio.create_task(_rest(waiting))
        await quiescent()
        system.processes["desk"].stop_soon()
        await quiescent()
        assert task.result() == 0
        assert await _rest(late) == 0
        assert await _rest(service.changes()) == 0
    with pytest.raises(DeclarationError, match="is not running"):
        service.changes()


async def _rest(changes: AsyncIterator[None]) -> int:
    return len([each async for each in changes])


async def test_it_costs_nothing_while_no_one_follows() -> None:
    service = made()
    async with running(service) as system:
        await system.settled()

        def watching() -> bool:
            return any(task.get_name() == "watch" for task in asyncio.all_tasks())

        assert not watching()
        changes = await following(system)
        assert watching()
        del changes  # as when a browser leaves in the middle
        await system.advance(2.0)
        assert not watching()


@contextlib.asynccontextmanager
async def replicas(folder: Path) -> AsyncIterator[list[Service]]:
    """Two processes of one service, as two replicas on one file."""
    ambient = SystemAmbient()
    broker = MemoryBroker(ambient)
    async with contextlib.AsyncExitStack() as stack:
        services, processes = [made(), made()], []
        for service in services:
            process = ServiceProcess(
                service,
                ProcessSettings(system="test"),
                broker=broker,
                store=SqliteStore(folder / "desk.db", ambient),
                ambient=ambient,
                signals=Signals(),
            )
            await process.start()
            stack.push_async_callback(process.drain)
            processes.append(process)
        # They share the partitions out first, which are commits, too.
        async with asyncio.timeout(DEADLINE):
            while any(len(process.lanes) != 4 for process in processes):
                await asyncio.sleep(0.01)
        yield services


async def until_awake(changes: AsyncIterator[None]) -> None:
    async with asyncio.timeout(DEADLINE):
        await anext(changes)


async def test_an_event_that_another_replica_announces_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oyez.runtime.watch.REPLICAS", NEVER)
    async with replicas(tmp_path) as (mine, other):
        changes = mine.changes()
        await until_awake(changes)
        async with other.transaction() as tx:
            tx.publish(Noted(name="1"))
        await until_awake(changes)


async def test_rows_that_another_replica_writes_wake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oyez.doorbell.Doorbell.ring", lambda bell: None)
    async with replicas(tmp_path) as (mine, other):
        changes = mine.changes()
        await until_awake(changes)
        await commit(other)
        await until_awake(changes)
        assert await mine.fetch("select * from note") == []


async def test_a_service_alone_is_not_woken_for_others(tmp_path: Path) -> None:
    async with running(made()) as system:
        changes = await following(system)
        await system.advance(60.0)
        assert not await wakes(changes)
