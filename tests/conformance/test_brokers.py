"""Every broker that ships is certified by the suite that third parties use."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import apsw
import pytest

from oyez.ambient import SystemAmbient
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import BrokerCorrupt, BrokerError
from oyez.ports import BEGINNING, Broker, Record
from oyez.testing import VirtualAmbient
from oyez.testing.broker_suite import BrokerSuite, Factory

NEVER = 3_600.0
FLIPPED_EACH = int(os.environ.get("OYEZ_TEST_FLIPPED_EACH", "127"))
"""Bytes of the embedded broker's file from one that is flipped to the next."""
DEADLINE = 60.0


class TestMemory(BrokerSuite):
    row = "memory"

    def make(self, tmp_path: Path) -> Factory:
        broker = MemoryBroker(SystemAmbient())
        return lambda: broker


class TestEmbedded(BrokerSuite):
    """It never polls here, so that only the doorbell can wake a reader."""

    row = "embedded"

    def make(self, tmp_path: Path) -> Factory:
        options = EmbeddedOptions(poll=NEVER)
        return lambda: EmbeddedBroker(tmp_path / "events.db", SystemAmbient(), options)

    def url(self, tmp_path: Path) -> str:
        return "embedded:events.db"

    async def test_acknowledged_records_survive_kill_9(self, tmp_path: Path) -> None:
        await super().test_acknowledged_records_survive_kill_9(tmp_path)
        assert _integrity(tmp_path / "events.db") == "ok"


class TestEmbeddedWithoutDoorbell(BrokerSuite):
    """The safety net alone: no datagram ever arrives."""

    @pytest.fixture(autouse=True)
    def _deaf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("oyez.doorbell.Doorbell.ring", lambda bell: None)

    def make(self, tmp_path: Path) -> Factory:
        options = EmbeddedOptions(poll=0.01)
        return lambda: EmbeddedBroker(tmp_path / "events.db", SystemAmbient(), options)

    def url(self, tmp_path: Path) -> str:
        return "embedded:events.db"


def _integrity(path: Path) -> str:
    connection = apsw.Connection(str(path))
    try:
        return connection.execute("pragma integrity_check").get
    finally:
        connection.close()


def _record(number: int, size: int = 1) -> Record:
    headers = {"id": str(number)}
    return Record(stream="s", key="one", headers=headers, data=b"x" * size)


async def _first(broker: Broker, after: int = BEGINNING) -> tuple[list[int], int]:
    batches = broker.read("s", 0, after)
    async with asyncio.timeout(DEADLINE):
        batch = await anext(batches)
    await batches.aclose()
    return [int(record.headers["id"]) for record in batch.records], batch.missed


async def _contents(path: Path, options: EmbeddedOptions) -> list[tuple[int, str]]:
    """Every record of the stream, as far as its starts and ends reach."""
    found = []
    broker = EmbeddedBroker(path, SystemAmbient(), options)
    try:
        await broker.open()
        assert await broker.streams() == {"s": options.partitions}
        starts, ends = await broker.starts("s"), await broker.ends("s")
        for partition, (after, end) in enumerate(zip(starts, ends, strict=True)):
            batches = broker.read("s", partition, after)
            while after < end:
                async with asyncio.timeout(DEADLINE):
                    batch = await anext(batches)
                found += [(partition, record.headers["id"]) for record in batch.records]
                after = batch.records[-1].position
            await batches.aclose()
    finally:
        await broker.close()
    return found


class TestEmbeddedRetention:
    async def test_by_age(self, tmp_path: Path) -> None:
        ambient = VirtualAmbient()
        options = EmbeddedOptions(partitions=1, retention=100.0, poll=NEVER)
        broker = EmbeddedBroker(tmp_path / "events.db", ambient, options)
        await broker.open()
        await broker.publish([_record(n) for n in range(5)])
        await ambient.advance(60.0)
        await broker.publish([_record(n) for n in range(5, 8)])
        await broker._keep_house()
        assert await _first(broker) == ([0, 1, 2, 3, 4, 5, 6, 7], 0)
        await ambient.advance(60.0)
        await broker._keep_house()
        assert await _first(broker) == ([5, 6, 7], 5)
        assert await _first(broker, after=3) == ([5, 6, 7], 2)
        assert await _first(broker, after=5) == ([5, 6, 7], 0)
        await ambient.advance(200.0)
        await broker._keep_house()
        assert list(await broker.ends("s")) == [8]
        reading = asyncio.ensure_future(_first(broker))
        await broker.publish([_record(8)])
        assert await reading == ([8], 8)
        await broker.close()

    async def test_by_size_oldest_first_and_the_file_shrinks(self, tmp_path: Path) -> None:
        path = tmp_path / "events.db"
        ambient = VirtualAmbient()
        options = EmbeddedOptions(partitions=1, retention_bytes=2_000_000, poll=NEVER)
        broker = EmbeddedBroker(path, ambient, options)
        await broker.open()
        for start in range(0, 4_000, 250):
            await broker.publish([_record(n, 1_000) for n in range(start, start + 250)])
        keeping = asyncio.ensure_future(broker._keep_house())
        async with asyncio.timeout(DEADLINE):
            while not keeping.done():
                await asyncio.sleep(0)
                await ambient.advance(1.0)
        await keeping
        numbers, missed = await _first(broker)
        assert numbers[0] == missed
        assert 1_000 < missed < 3_900
        assert list(await broker.ends("s")) == [4_000]
        await broker.close()
        assert _integrity(path) == "ok"
        assert path.stat().st_size < 3_000_000

    async def test_a_clock_that_went_back_does_not_keep_it_from_ending(
        self, tmp_path: Path
    ) -> None:
        ambient = VirtualAmbient()
        await ambient.advance(1_000.0)
        options = EmbeddedOptions(partitions=1, retention_bytes=100_000, poll=NEVER)
        broker = EmbeddedBroker(tmp_path / "events.db", ambient, options)
        await broker.open()
        for start in range(0, 200, 10):
            await broker.publish([_record(n, 1_000) for n in range(start, start + 10)])
        await broker.close()
        broker = EmbeddedBroker(tmp_path / "events.db", VirtualAmbient(), options)
        await broker.open()
        rounds = 0
        while await broker._file.write(lambda c: broker._log.delete_old(0.0, c)):
            rounds += 1
            assert rounds < 100
        numbers, missed = await _first(broker)
        assert numbers[0] == missed > 100
        await broker.close()


class TestEmbeddedDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            "body = cast(substr(body, 1, 20) || x'ff' || substr(body, 22) as blob)",
            "body = substr(body, 1, length(body) - 1)",
            "body = cast(body || x'ff' as text)",
            "count = cast(x'ff' as text)",
            "body = x''",
            "count = 1",
            "time = time + 1",
            "crc = crc + 1",
            "last = last - 1",
        ],
    )
    async def test_a_damaged_batch_is_refused_not_skipped(
        self, tmp_path: Path, damage: str
    ) -> None:
        path = tmp_path / "events.db"
        options = EmbeddedOptions(partitions=1, poll=NEVER)
        broker = EmbeddedBroker(path, SystemAmbient(), options)
        await broker.open()
        await broker.publish([_record(0)])
        await broker.publish([_record(n) for n in range(1, 4)])
        await broker.publish([_record(4)])
        await broker.close()
        connection = apsw.Connection(str(path))
        connection.execute(f"update batch set {damage} where count = 3")
        assert connection.changes() == 1
        connection.close()
        broker = EmbeddedBroker(path, SystemAmbient(), options)
        await broker.open()
        with pytest.raises(BrokerCorrupt, match=r"events\.db: the batch of s\[0\].*restore"):
            await _first(broker)
        with pytest.raises(BrokerCorrupt, match=r"events\.db: the batch of s\[0\].*restore"):
            await _first(broker, after=2)
        assert await _first(broker, after=4) == ([4], 0)
        await broker.close()

    @pytest.mark.parametrize(
        "gone", ["last <= 3", "last between 4 and 6", "last = 7", "last >= 8", "true"]
    )
    async def test_batches_that_are_not_found_are_refused_not_skipped(
        self, tmp_path: Path, gone: str
    ) -> None:
        """As by an index that is damaged: retention alone deletes, and the oldest first."""
        path = tmp_path / "events.db"
        options = EmbeddedOptions(partitions=1, poll=NEVER)
        broker = EmbeddedBroker(path, SystemAmbient(), options)
        await broker.open()
        for start, end in ((0, 3), (3, 6), (6, 7), (7, 10)):
            await broker.publish([_record(n) for n in range(start, end)])
        await broker.close()
        connection = apsw.Connection(str(path))
        connection.execute("drop trigger batch_deleted")
        connection.execute(f"delete from batch where {gone}")
        assert connection.changes() > 0
        connection.close()
        with pytest.raises(BrokerCorrupt, match=r"events\.db: .*s\[0\].*restore"):
            await _contents(path, options)

    @pytest.mark.parametrize(
        "damage", ["stream = 't'", "partition = 1", "last = last - 1", "last = last + 1"]
    )
    async def test_a_partition_that_is_damaged_is_refused_at_the_start(
        self, tmp_path: Path, damage: str
    ) -> None:
        path = tmp_path / "events.db"
        broker = EmbeddedBroker(path, SystemAmbient(), EmbeddedOptions(partitions=1, poll=NEVER))
        await broker.open()
        await broker.publish([_record(n) for n in range(3)])
        await broker.close()
        connection = apsw.Connection(str(path))
        connection.execute(f"update partition set {damage}")
        connection.close()
        broker = EmbeddedBroker(path, SystemAmbient(), EmbeddedOptions(partitions=1, poll=NEVER))
        with pytest.raises(BrokerCorrupt, match=r"events\.db: .*restore"):
            await broker.open()
        await broker.close()

    async def test_a_beginning_that_is_damaged_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "events.db"
        broker = EmbeddedBroker(path, SystemAmbient(), EmbeddedOptions(partitions=1, poll=NEVER))
        await broker.open()
        await broker.publish([_record(n) for n in range(3)])
        connection = apsw.Connection(str(path))
        connection.execute("update partition set first = 2")
        connection.close()
        with pytest.raises(BrokerCorrupt, match=r"events\.db: .*s\[0\].*restore"):
            await broker.starts("s")
        await broker.close()

    async def test_a_flipped_byte_is_refused_or_has_changed_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "events.db"
        options = EmbeddedOptions(partitions=2, poll=NEVER)
        broker = EmbeddedBroker(path, SystemAmbient(), options)
        await broker.open()
        for n in range(120):
            await broker.publish([_record(n)])
        await broker.close()
        whole, contents = path.read_bytes(), await _contents(path, options)
        assert len(contents) == 120
        refused = 0
        for place in range(0, len(whole), FLIPPED_EACH):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                assert await _contents(path, options) == contents, f"byte {place} was read past"
            except BrokerError:
                refused += 1
        assert refused > 0

    async def test_a_reader_that_waits_meets_the_damage_too(self, tmp_path: Path) -> None:
        path = tmp_path / "events.db"
        options = EmbeddedOptions(partitions=1, poll=NEVER)
        broker = EmbeddedBroker(path, SystemAmbient(), options)
        await broker.open()
        await broker.create("s", 1)
        reading = asyncio.ensure_future(_first(broker))
        while not list(broker._waiting):
            await asyncio.sleep(0)
        connection = apsw.Connection(str(path))
        (place,) = next(connection.execute("update partition set last = 1 returning id"))
        connection.execute("insert into batch values (1, ?, 1, 1, 0, 0, x'00')", (place,))
        connection.close()
        await broker._refresh()
        with pytest.raises(BrokerCorrupt, match="that ends with record 1 fails its checksum"):
            await reading
        await broker.close()


class TestEmbeddedBatches:
    """What one append adds to a partition is one row, which nobody notices."""

    async def test_a_reader_begins_anywhere_and_takes_what_it_has_room_for(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "events.db"
        options = EmbeddedOptions(partitions=1, poll=NEVER)
        broker = EmbeddedBroker(path, SystemAmbient(), options)
        await broker.open()
        for start, end in ((0, 3), (3, 4), (4, 10), (10, 300)):
            await broker.publish([_record(n) for n in range(start, end)])
        assert await broker._file.read(lambda c: c.execute("select count(*) from batch").get) == 5
        for after in range(300):
            numbers, missed = await _first(broker, after)
            assert missed == 0
            assert numbers == list(range(after, after + len(numbers)))
        await broker.close()
        small = EmbeddedOptions(batch=4, batch_bytes=1_000, poll=NEVER)
        broker = EmbeddedBroker(path, SystemAmbient(), small)
        await broker.open()
        await broker.publish([_record(300 + n, 400) for n in range(5)])
        after, sizes = 0, []
        while after < 305:
            numbers, _ = await _first(broker, after)
            assert numbers == list(range(after, after + len(numbers)))
            sizes.append(len(numbers))
            after += len(numbers)
        assert max(sizes) == 4
        assert sizes[-3:] == [2, 2, 1]
        await broker.close()

    async def test_headers_that_differ_come_back_as_they_were(self, tmp_path: Path) -> None:
        options = EmbeddedOptions(partitions=1, poll=NEVER)
        broker = EmbeddedBroker(tmp_path / "events.db", SystemAmbient(), options)
        await broker.open()
        headers = (
            [{"id": "1", "type": "a"}, {"id": "2", "type": "a"}],
            [{"id": "3", "type": "a"}, {"type": "b", "id": "4", "more": "\u00e4"}, {}],
            [{}, {}],
            [{"id": "8", "only": ""}],
        )
        for some in headers:
            records = [Record(stream="s", key="k", headers=one, data=None) for one in some]
            await broker.publish(records)
        async with asyncio.timeout(DEADLINE):
            async for batch in broker.read("s", 0, BEGINNING):
                assert [r.headers for r in batch.records] == [
                    one for some in headers for one in some
                ]
                break
        await broker.close()
