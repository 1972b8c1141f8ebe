"""This release takes over from the one before it: with a full outbox, and replica by replica.

``wheels/NAME`` is the release before; `wheels/README.md` says where it is from. ``stored/NAME`` is
what the processes of a release left behind when they were killed: the files of the broker and of
the stores, as SQL, with announced, parked and half-finished work in each.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from uuid import uuid4

import apsw
import asyncpg
import pytest
from releases import HERE, PREVIOUS, SERVICES, THIS, Books, System, count, until

from servers import server

ORDERS = int(os.environ.get("OYEZ_TEST_ORDERS", "100"))
ROOT = HERE.parents[1]
STORED = sorted(path.name for path in (HERE / "stored").iterdir())


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """The project on the embedded broker and SQLite; its processes are killed in the end."""
    made = System(tmp_path)
    yield made
    made.kill()


@asynccontextmanager
async def books_of(system: System) -> AsyncIterator[Books]:
    async with AsyncExitStack() as stack:
        project = system.project()
        stores = {name: project.store(name) for name in SERVICES}
        for store in stores.values():
            await store.open(create=False)
            stack.push_async_callback(store.close)
        yield Books(stores)


async def settled(books: Books) -> None:
    """Return when no work waits anywhere."""
    waiting: dict[str, int] = {}
    try:
        async with asyncio.timeout(120):
            while waiting := await books.waiting():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(waiting) from None


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """The broker's file is held, so that nobody can publish."""
    connection = apsw.Connection(str(file))
    connection.set_busy_timeout(30_000)
    connection.execute("begin immediate")
    try:
        yield
    finally:
        connection.execute("rollback")
        connection.close()


async def test_a_full_outbox_and_parked_events_outlive_the_upgrade(system: System) -> None:
    """The broker's file is locked while orders come in, then every process is killed."""
    for service in SERVICES:
        system.start(service, PREVIOUS)
    system.down.touch()
    system.place(0, ORDERS)
    until(lambda: count(system.file("till"), "oyez_inbox where state > 0") >= ORDERS // 5)
    with locked(system.file("events")):
        system.place(ORDERS, ORDERS)
        assert count(system.file("desk"), "oyez_outbox") >= ORDERS
        system.kill()
    announced = count(system.file("desk"), "oyez_outbox")
    parked = count(system.file("till"), "oyez_inbox where state > 0")
    half = count(system.file("desk"), "oyez_saga where status = 'running'")
    assert announced >= ORDERS
    assert parked >= ORDERS // 5
    assert half >= parked
    system.down.unlink()
    for service in SERVICES:
        system.start(service, THIS)
    async with books_of(system) as books:
        await settled(books)
        assert await books.problems(2 * ORDERS) == []
        assert await books.count("till", f"charge where by = '{THIS}'") >= parked
    print(f"upgrade: {announced} announced, {parked} parked, {half} sagas half-way; books balance")


@asynccontextmanager
async def _embedded() -> AsyncIterator[dict[str, str]]:
    yield {}


@asynccontextmanager
async def _servers() -> AsyncIterator[dict[str, str]]:
    """NATS as the broker and PostgreSQL for the stores, under names of the test's own."""
    run = uuid4().hex[:8]
    place = server("postgresql").url
    mark = "&" if "?" in place else "?"
    yield {
        "OYEZ_NAME": f"books-{run}",
        "OYEZ_BROKER": server("nats").url,
        "OYEZ_STORE": f"{place}{mark}schema=books_{run}_{{service}}",
    }
    admin = await asyncpg.connect(place)
    for service in SERVICES:
        await admin.execute(f'drop schema if exists "books_{run}_{service}" cascade')
    await admin.close()


@pytest.mark.parametrize("places", [_embedded, _servers], ids=["embedded", "servers"])
async def test_half_of_the_replicas_are_of_the_release_before(
    tmp_path: Path, places: Callable[[], AbstractAsyncContextManager[dict[str, str]]]
) -> None:
    """Two replicas of each service: of the release before, then one of each, then of this one."""
    async with places() as environment:
        system = System(tmp_path, environment)
        try:
            for service in SERVICES:
                system.start(service, PREVIOUS)
            system.place(0, ORDERS)
            for service in SERVICES:
                system.start(service, THIS)
            async with books_of(system) as books:
                await mixed(system, books)
                for service in SERVICES:
                    system.drain(service, PREVIOUS)
                first = await books.count("desk", "placed")
                system.place(first, ORDERS)
                await settled(books)
                assert await books.problems(first + ORDERS) == []
        finally:
            system.kill()


async def mixed(system: System, books: Books) -> None:
    """Place orders until processes of both releases have charged and booked some of them."""
    first = ORDERS
    async with asyncio.timeout(120):
        while True:
            system.place(first, ORDERS)
            await settled(books)
            assert await books.problems(first + ORDERS) == []
            shares = [
                await books.count(
                    service, f"{table} where by = '{release}' and order_id >= '{first:06}'"
                )
                for service, table in (("till", "charge"), ("ledger", "entry"))
                for release in (PREVIOUS, THIS)
            ]
            first += ORDERS
            if all(shares):
                return


@pytest.mark.parametrize("release", STORED)
async def test_what_a_release_left_behind_is_taken_up(system: System, release: str) -> None:
    waits = 0
    (system.folder / ".oyez").mkdir()
    for script in sorted((HERE / "stored" / release).glob("*.sql")):
        connection = apsw.Connection(str(system.file(script.stem)))
        for _ in connection.execute(script.read_text()):
            pass
        if script.stem == "desk":  # what is due in its year would be long past
            connection.execute("update oyez_timer set due = due + unixepoch() - armed")
        connection.close()
        if script.stem in SERVICES:
            waits += count(system.file(script.stem), "oyez_outbox")
            waits += count(system.file(script.stem), "oyez_inbox where state > 0")
    assert waits
    orders = count(system.file("desk"), "placed")
    for service in SERVICES:
        system.start(service, THIS)
    async with books_of(system) as books:
        await settled(books)
        assert await books.problems(orders) == []


def test_the_release_before_is_stored_as_it_was() -> None:
    """Every file of the wheel is that of its commit, where the history has it."""
    (wheel,) = (HERE / "wheels" / PREVIOUS).glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert packed.testzip() is None
        names = [name for name in packed.namelist() if name.startswith("oyez/")]
        assert len(names) > 300
        if not _known(PREVIOUS):
            return  # a shallow clone, or an sdist: the wheel's own checksums are all there is
        with tarfile.open(fileobj=io.BytesIO(_git("archive", PREVIOUS, "src/oyez"))) as commit:
            for name in names:
                file = commit.extractfile(f"src/{name}")
                assert file is not None
                assert packed.read(name) == file.read(), name


def _known(commit: str) -> bool:
    asked = ["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
    try:
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _git(*arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, check=True
    ).stdout


def test_each_release_has_left_its_stores() -> None:
    assert PREVIOUS in STORED
    assert all(re.fullmatch(r"[0-9a-f]{7}|\d+\.\d+\.\d+", name) for name in STORED)
