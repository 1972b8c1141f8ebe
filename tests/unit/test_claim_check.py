"""Claim check without a server: what is bounded, what is deleted when, and what a service sees."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez import Event, InvalidEvent, Service, Transaction
from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.claim_check import ClaimCheck, ClaimCheckOptions, open_storage
from oyez.brokers.claim_check.broker import FRESH, HOUSEKEEPING, WINDOW
from oyez.brokers.claim_check.folder import Folder
from oyez.brokers.claim_check.storage import CONCURRENT, MARGIN
from oyez.brokers.memory.broker import MemoryBroker
from oyez.config import load
from oyez.envelope import open_record
from oyez.errors import BrokerRefused, BrokerUnavailable, ConfigurationError
from oyez.event import MAX_DATA
from oyez.ports import BEGINNING, Batch, Finding, Position, Record, weigh
from oyez.project import Project
from oyez.runtime.dead import list_dead
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient

DEADLINE = 20.0
RETENTION = 1_000.0
LIMIT = 10_000


class Small(MemoryBroker):
    """A broker that takes no large records."""

    def __init__(self, ambient: SystemAmbient | VirtualAmbient) -> None:
        super().__init__(ambient, partitions=1)
        self.capabilities = msgspec.structs.replace(MemoryBroker.capabilities, max_bytes=LIMIT)

    async def publish(self, records: Sequence[Record]) -> None:
        if any(weigh(record.headers, record.data) > LIMIT for record in records):
            raise BrokerRefused("too large")
        await super().publish(records)


class Shelf:
    """A storage in memory that counts, and waits or fails when told to."""

    where = "the shelf"
    prefix = "shelf:///"

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.puts = 0
        self.at_once = 0
        self.most_at_once = 0
        self.error: Exception | None = None
        self.stuck = False

    async def put(self, name: str, data: bytes) -> None:
        self.puts += 1
        await self._work()
        self.kept[name] = data

    async def get(self, name: str, most: int) -> bytes | None:
        await self._work()
        data = self.kept.get(name)
        return None if data is None else data[: most + 1]

    async def sweep(self) -> None: ...

    async def inspect(self) -> Sequence[Finding]:
        return []

    async def close(self) -> None: ...

    async def _work(self) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        self.at_once -= 1


def record(number: int, data: bytes | None, **headers: str) -> Record:
    return Record(stream="s", key="k", headers={"id": str(number), **headers}, data=data)


def data(number: int, size: int = 2 * LIMIT) -> bytes:
    return number.to_bytes(4) * (size // 4)


async def take(broker: Any, count: int) -> list[Batch]:
    batches: list[Batch] = []
    reader = broker.read("s", 0, BEGINNING)
    async with asyncio.timeout(DEADLINE):
        while sum(len(batch.records) for batch in batches) < count:
            batches.append(await anext(reader))
    await reader.aclose()
    return batches


async def test_what_the_broker_takes_goes_whole_and_what_it_refuses_goes_by_claim_check() -> None:
    ambient, shelf = VirtualAmbient(), Shelf()
    inner = Small(ambient)
    broker = ClaimCheck(inner, shelf, ambient)
    at_limit = b"x" * (LIMIT - weigh({"id": "1"}, b""))
    sent = [record(1, at_limit), record(2, at_limit + b"x"), record(3, None), record(4, b"")]
    await broker.publish(sent)
    assert list(shelf.kept.values()) == [at_limit + b"x"]
    (found,) = await take(broker, 4)
    assert [(r.headers, r.data) for r in found.records] == [(r.headers, r.data) for r in sent]
    assert broker.capabilities.max_bytes == 0
    assert [record.data for record in inner.logs["s"][0]] == [at_limit, b"", None, b""]


async def test_a_lower_threshold_is_kept_to_on_a_broker_without_a_limit() -> None:
    ambient, shelf = VirtualAmbient(), Shelf()
    broker = ClaimCheck(MemoryBroker(ambient), shelf, ambient, ClaimCheckOptions(over=100))
    await broker.publish([record(1, b"x" * 97), record(2, b"x" * 98)])
    assert [len(each) for each in shelf.kept.values()] == [98]


async def test_it_stores_and_fetches_a_few_at_once_and_holds_no_more_than_a_window() -> None:
    ambient, shelf = VirtualAmbient(), Shelf()
    inner = Small(ambient)
    broker = ClaimCheck(inner, shelf, ambient)
    sent = [record(n, data(n, WINDOW // 10)) for n in range(25)] + [record(99, b"small")]
    await broker.publish(sent)
    assert shelf.most_at_once == CONCURRENT
    shelf.most_at_once = 0
    batches = await take(broker, len(sent))
    assert shelf.most_at_once == CONCURRENT
    assert [len(batch.records) for batch in batches] == [10, 10, 6]
    assert [r.data for batch in batches for r in batch.records] == [r.data for r in sent]


async def test_the_first_part_of_a_batch_tells_of_what_was_missed() -> None:
    class Gapped(Small):
        async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
            async for batch in super().read(stream, partition, after):
                yield msgspec.structs.replace(batch, missed=3, restarted=True)

    ambient = VirtualAmbient()
    broker = ClaimCheck(Gapped(ambient), Shelf(), ambient)
    await broker.publish([record(n, data(n, WINDOW // 4)) for n in range(8)])
    first, second = await take(broker, 8)
    assert (first.missed, first.restarted) == (3, True)
    assert (second.missed, second.restarted) == (0, False)


async def test_a_record_larger_than_a_reader_takes_is_not_fetched() -> None:
    ambient, shelf = VirtualAmbient(), Shelf()
    inner = Small(ambient)
    sender = ClaimCheck(inner, shelf, ambient)
    await sender.publish([record(1, b"x" * 30_001), record(2, b"x" * 30_000)])
    (found,) = await take(ClaimCheck(inner, shelf, ambient, ClaimCheckOptions(most=30_000)), 2)
    assert not found.records[0].data
    assert found.records[0].headers["dataref"].endswith("-30001")
    assert found.records[1].data == b"x" * 30_000


async def test_what_is_resent_soon_is_not_stored_again_and_later_it_is() -> None:
    ambient, shelf = VirtualAmbient(), Shelf()
    broker = ClaimCheck(Small(ambient), shelf, ambient)
    for _ in range(3):
        await broker.publish([record(1, data(1))])
    assert shelf.puts == 1
    await ambient.advance(FRESH + 1)
    await broker.publish([record(1, data(1))])
    assert shelf.puts == 2


async def test_nothing_is_published_while_the_storage_is_out_of_reach() -> None:
    ambient, shelf = VirtualAmbient(), Shelf()
    inner = Small(ambient)
    broker = ClaimCheck(inner, shelf, ambient, ClaimCheckOptions(deadline=5.0))
    shelf.error = BrokerUnavailable("no")
    with pytest.raises(BrokerUnavailable, match="no"):
        await broker.publish([record(n, data(n)) for n in range(20)])
    shelf.error, shelf.stuck = None, True
    publishing = asyncio.ensure_future(broker.publish([record(1, data(1)), record(2, b"small")]))
    await ambient.advance(5.0)
    with pytest.raises(BrokerUnavailable, match="the shelf did not answer within 5 s"):
        await publishing
    assert inner.logs == {}
    shelf.stuck = False
    await broker.publish([record(1, data(1)), record(2, b"small")])
    assert len(inner.logs["s"][0]) == 2


# -- a folder --------------------------------------------------------------------------------------


def files(path: Path) -> list[Path]:
    return sorted(path.glob("??/*"))


async def test_files_are_their_owners_alone_and_nothing_else_lies_beside_them(
    tmp_path: Path,
) -> None:
    ambient = SystemAmbient()
    path = tmp_path / "a" / "large"
    broker = ClaimCheck(Small(ambient), Folder(path, ambient, RETENTION), ambient)
    await broker.publish([record(n, data(n % 3)) for n in range(30)])
    assert len(files(path)) == 3
    for each in files(path):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
        assert stat.S_IMODE(each.parent.stat().st_mode) == 0o700
    assert await broker.inspect() == await MemoryBroker(ambient).inspect()
    path.chmod(0o755)
    (finding,) = (await broker.inspect())[1:]
    assert "chmod o-rwx" in finding.remedy
    await broker.close()


A, B, C = (f"{where}/{what * 62}-1" for where, what in (("00", "a"), ("00", "b"), ("ff", "c")))


async def test_a_folder_is_swept_by_age_and_what_is_stored_again_is_new(tmp_path: Path) -> None:
    ambient = VirtualAmbient()
    path = tmp_path / "large"
    storage = Folder(path, ambient, RETENTION)
    for name in (A, B, C):
        await storage.put(name, b"1")
    (path / "00" / ".0123456789abcdef").write_bytes(b"left by a process that was killed")
    others = [path / "notes.txt", path / "00" / "notes.txt", tmp_path / "other" / A]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("someone else's")
    (path / "ee").symlink_to(tmp_path / "other" / "00")
    for file in [*others, path / "00" / ".0123456789abcdef"]:
        os.utime(file, (ambient.now(), ambient.now()))
    await ambient.advance(RETENTION + MARGIN - 1)
    await storage.put(B, b"1")
    await storage.sweep()
    assert await storage.get(A, 1) == await storage.get(C, 1) == b"1"
    await ambient.advance(2)
    await storage.sweep()
    assert await storage.get(A, 1) is None
    assert await storage.get(B, 1) == b"1"
    assert files(path) == sorted([path / B, path / "00" / "notes.txt", path / "ee" / A[3:]])
    assert all(other.exists() for other in others)
    await storage.close()


def waits_for_a_lock(file: Path) -> bool:
    """Whether someone waits for the lock of the file: see proc_locks(5)."""
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if " -> " in line]
    return any(line.split()[6].endswith(f":{file.stat().st_ino}") for line in waiting)


async def test_storing_and_deleting_take_turns(tmp_path: Path) -> None:
    ambient = VirtualAmbient()
    storage = Folder(tmp_path, ambient, RETENTION)
    await storage.put(A, b"1")
    await ambient.advance(RETENTION + MARGIN + 1)
    holder = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_SH)
    sweeping = asyncio.ensure_future(storage.sweep())
    async with asyncio.timeout(DEADLINE):
        while not waits_for_a_lock(tmp_path / ".lock"):
            await asyncio.sleep(0)
    await storage.put(A, b"1")  # beside whoever holds the lock, and before it is let go
    assert not sweeping.done()
    os.close(holder)
    await sweeping
    assert await storage.get(A, 1) == b"1"
    await storage.close()


async def test_the_folder_is_swept_now_and_then_while_the_broker_is_open(tmp_path: Path) -> None:
    ambient = VirtualAmbient()
    broker = ClaimCheck(Small(ambient), Folder(tmp_path, ambient, RETENTION), ambient)
    await broker.open()
    publishing = asyncio.ensure_future(broker.publish([record(1, data(1))]))
    await publishing
    (file,) = files(tmp_path)
    async with asyncio.timeout(DEADLINE):
        while file.exists():
            await ambient.advance(HOUSEKEEPING)
            await asyncio.sleep(0.001)
    assert ambient.monotonic() >= RETENTION + MARGIN
    await broker.close()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
async def test_what_was_not_stored_as_a_file_is_not_read(tmp_path: Path, kind: str) -> None:
    ambient = SystemAmbient()
    path = tmp_path / "large"
    broker = ClaimCheck(Small(ambient), Folder(path, ambient, RETENTION), ambient)
    await broker.publish([record(1, data(1))])
    (file,) = files(path)
    file.rename(tmp_path / "moved")
    if kind == "link":
        file.symlink_to(tmp_path / "moved")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    (found,) = await take(broker, 1)
    assert found.records[0].data is None
    await broker.close()


# -- the setting -----------------------------------------------------------------------------------


def project(tmp_path: Path, more: str) -> Project:
    file = tmp_path / "oyez.toml"
    file.write_text(f'[system]\nname = "shop"\n{more}\n')
    return Project(load(file, {}))


async def test_the_setting_wraps_every_broker_of_a_project(tmp_path: Path) -> None:
    assert not isinstance(project(tmp_path, "").broker(), ClaimCheck)
    broker = project(tmp_path, 'claim_check = "folder:large"\nclaim_check_over = 100').broker()
    assert isinstance(broker, ClaimCheck)
    assert broker.options == ClaimCheckOptions(over=100, most=MAX_DATA)
    await broker.open()
    await broker.publish([record(1, b"x" * 100)])
    await broker.close()
    assert len(files(tmp_path / "large")) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("folder:", "one of folder:PATH, s3://"),
        ("ftp://host/path", "one of folder:PATH, s3://"),
        ("s3:bucket", "one of folder:PATH, s3://"),
        ("postgresql:db", "one of folder:PATH, s3://…, postgresql://"),
    ],
)
def test_another_setting_is_refused(tmp_path: Path, value: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        project(tmp_path, f'claim_check = "{value}"')


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket?colour=red", "option 'colour' is unknown"),
        ("s3://one,two/x", "s3://BUCKET/PREFIX"),
        ("s3://u:canary@bucket:9000/x", "s3://BUCKET/PREFIX"),
        ("gopher://u:canary@host", "found 'gopher://u"),
        ("postgresql://u:canary@host/db?colour=red", "option 'colour' is unknown"),
    ],
)
def test_another_storage_is_refused(tmp_path: Path, url: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected) as refused:
        connect("memory:", SystemAmbient(), root=tmp_path, claim_check=url)
    assert "canary" not in str(refused.value)


def test_a_storage_shows_no_secret(tmp_path: Path) -> None:
    url = "s3://key:canary@bucket/x?region=eu-central-1"
    storage = open_storage(url, SystemAmbient(), root=tmp_path, retention=RETENTION)
    assert "canary" not in f"{storage!r} {storage.where} {storage.prefix} {vars(storage)}"


# -- what a service sees ---------------------------------------------------------------------------


class Scanned(Event, type="test.scanned", key="number"):
    number: int
    text: str


def scanner(seen: list[int]) -> Service:
    service = Service("scanner")

    @service.on(Scanned)
    async def keep(event: Scanned, tx: Transaction) -> None:
        seen.append(len(event.text))

    return service


@asynccontextmanager
async def serving(service: Service, broker: Any, folder: Path) -> AsyncIterator[ServiceProcess]:
    ambient = SystemAmbient()
    process = ServiceProcess(
        service,
        ProcessSettings(system="test", partitions=1),
        broker=broker,
        store=SqliteStore(folder / "store.db", ambient),
        ambient=ambient,
        signals=Signals(),
    )
    await process.start()
    try:
        yield process
    finally:
        await process.drain()


async def test_without_claim_check_a_large_event_is_refused_where_it_is_announced(
    tmp_path: Path,
) -> None:
    service = scanner([])
    inner = Small(SystemAmbient())
    async with serving(service, inner, tmp_path) as process:
        async with service.transaction() as tx:
            tx.publish(Scanned(number=1, text="x" * (LIMIT - 1_000)))
            with pytest.raises(InvalidEvent) as refused:
                tx.publish(Scanned(number=1, text="x" * LIMIT))
        assert "system.claim_check" in refused.value.problem
        assert f"the broker takes {LIMIT}" in refused.value.problem
        async with asyncio.timeout(DEADLINE):
            while await process.store.outbox(0, process.ambient.now(), 10):
                await asyncio.sleep(0.01)
        assert len(inner.logs["test.scanner"][0]) == 1


async def test_with_it_the_event_arrives_and_one_whose_data_is_gone_is_a_dead_letter(
    tmp_path: Path,
) -> None:
    ambient, seen = SystemAmbient(), []
    service = scanner(seen)
    inner = Small(ambient)
    path = tmp_path / "large"
    broker = ClaimCheck(inner, Folder(path, ambient, RETENTION), ambient)
    async with serving(service, broker, tmp_path) as process:
        async with service.transaction() as tx:
            tx.publish(Scanned(number=1, text="x" * 5 * LIMIT))
        async with asyncio.timeout(DEADLINE):
            while not seen:
                await asyncio.sleep(0.01)
        lost = inner.logs["test.scanner"][0][0]
        files(path)[0].unlink()
        await inner.publish([msgspec.structs.replace(lost, headers={**lost.headers, "id": "2"})])
        async with service.transaction() as tx:
            tx.publish(Scanned(number=1, text="small"))
        async with asyncio.timeout(DEADLINE):
            while len(seen) < 2:
                await asyncio.sleep(0.01)
        (dead,) = await list_dead(process.store)
    assert seen == [5 * LIMIT, len("small")]
    assert lost.headers["dataref"] in dead["reason"]
    assert "is gone" in dead["reason"]


def test_an_event_without_its_data_says_where_that_should_be() -> None:
    headers = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    for nothing in (None, b""):
        with pytest.raises(InvalidEvent, match="the data at 's3://b/x' is gone"):
            open_record({**headers, "dataref": "s3://b/x"}, nothing)
    assert open_record({**headers, "dataref": "s3://b/x"}, b"{}").dataref == "s3://b/x"
