"""Holds a broker to `oyez.ports.Broker` and to guarantees G1, G3, G5, G6 and G8.

`BrokerSuite` is for any broker, `ServerBrokerSuite` for one behind a socket: it also cuts, delays
and stalls the connection and kills the server.

::

    class TestMyBroker(BrokerSuite):
        def make(self, tmp_path):
            return lambda: MyBroker("localhost:1234", SystemAmbient())

A test is skipped only for a capability that the broker itself declares not to have. Needs pytest
and pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import uuid4

import pytest

from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.inspection import history
from oyez.inspection.history import STRETCH
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Batch, Broker, Capabilities, Position, Record
from oyez.testing.crash import run_and_kill
from oyez.testing.proxy import Proxy

DEADLINE = 60.0
"""Seconds that a test waits, at most, for what must come."""
RESUMES = 30.0
"""Seconds after the return of server or connection within which reading must go on."""
PARTITIONS = 4
HEARTBEAT = 65_536
"""Bytes that a broker and its client may exchange in half a second while nothing happens."""

Factory = Callable[[], Broker]

_CHILD = """
import asyncio, itertools, sys
from pathlib import Path
from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.ports import Record

url, root, stream, start = sys.argv[1:]

async def main():
    broker = connect(url, SystemAmbient(), root=Path(root))
    await broker.open()
    number = int(start)
    for size in itertools.cycle([1, 1, 20, 1, 3]):
        numbers = range(number, number + size)
        await broker.publish([
            Record(stream=stream, key="one", headers={"id": str(n)}, data=str(n).encode() * 50)
            for n in numbers
        ])
        for n in numbers:
            print(n)
        sys.stdout.flush()
        number += size

asyncio.run(main())
"""


class BrokerSuite:
    """Subclass it under a name that begins with ``Test`` and override `make`."""

    pytestmark = pytest.mark.asyncio

    declared: ClassVar[Capabilities | None] = None
    """What the broker said of itself when a test last opened it."""

    def make(self, tmp_path: Path) -> Factory:
        """What opens nothing yet and gives another connection to one and the same broker.

        A broker without ``capabilities.processes`` may give the same object each time.
        """
        raise NotImplementedError

    def url(self, tmp_path: Path) -> str:
        """What `oyez.brokers.connect` makes of that broker in a child process.

        Asked for only where records survive a process.
        """
        raise NotImplementedError("a broker that is not volatile needs BrokerSuite.url()")

    # -- records -----------------------------------------------------------------------------------

    async def test_a_record_comes_back_as_it_was(self, tmp_path: Path) -> None:
        """Headers, key and data are unchanged, whatever they hold."""
        headers = {"id": "1", "type": "a.b", "subject": "Jürgen 🚚", "empty": ""}
        contents: dict[str, bytes | None] = {
            "plain": b'{"a":1}',
            "Straße 北京 🚚": "Grüße".encode(),
            "tombstone": None,
            "empty": b"",
            "binary": bytes(range(256)),
            " spaces ": b"\x00",
        }
        async with self._open(tmp_path) as (broker,):
            size = min(broker.capabilities.max_bytes or 1_049_600, 1_049_600) - 1_024
            contents["large"] = random.Random(1).randbytes(size)  # noqa: S311 - any bytes
            stream = await _stream(broker, 1)
            sent = [
                Record(stream=stream, key=key, headers=headers, data=data)
                for key, data in contents.items()
            ]
            await broker.publish(sent)
            found = await _take(broker, stream, 0, len(sent))
        assert [(r.stream, r.key, r.headers, r.data) for r in found] == [
            (r.stream, r.key, r.headers, r.data) for r in sent
        ]
        assert all(r.partition == 0 and r.position > BEGINNING and r.time > 0 for r in found)

    async def test_a_key_has_the_partition_that_kafka_gives_it(self, tmp_path: Path) -> None:
        """``partition_of(key, P)``, the same on every broker."""
        async with self._open(tmp_path) as (broker,):
            stream = await _stream(broker)
            keys = [f"order-{number}" for number in range(50)] + ["", "北京"]
            await broker.publish([_record(stream, key, 1) for key in keys])
            found = await _all(broker, stream, len(keys))
        assert {r.key: r.partition for r in found} == {
            key: partition_of(key, PARTITIONS) for key in keys
        }

    async def test_records_without_a_key_all_arrive(self, tmp_path: Path) -> None:
        """None is not one key: such records are spread, and a resent one lands where it did."""
        async with self._open(tmp_path) as (broker,):
            stream = await _stream(broker)
            sent = [_record(stream, None, number) for number in range(40)]
            await broker.publish(sent)
            await broker.publish(sent)
            found = await _all(broker, stream, 80)
        places = defaultdict(list)
        for record in found:
            assert record.key is None
            places[record.headers["id"]].append(record.partition)
        assert len(places) == 40
        assert all(len(set(where)) == 1 and len(where) == 2 for where in places.values())
        assert len({where[0] for where in places.values()}) > 1

    async def test_positions_grow_and_reading_resumes_behind_any(self, tmp_path: Path) -> None:
        """Reading after a position gives exactly what stands behind it."""
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            stream = await _stream(broker, 1)
            for number in range(12):
                await broker.publish([_record(stream, "one", number)])
            found = await _take(broker, stream, 0, 12)
            positions = [record.position for record in found]
            assert positions == sorted(set(positions))
            assert positions[0] > BEGINNING
            for index, position in enumerate(positions[:-1]):
                rest = await _take(broker, stream, 0, 11 - index, after=position)
                assert [r.position for r in rest] == positions[index + 1 :]

    async def test_history_is_read_from_the_beginning_again(self, tmp_path: Path) -> None:
        """A reader that comes late, on a connection of its own, gets everything, each time (G8)."""
        async with self._open(tmp_path, 2) as (broker, late):
            self._needs_history(broker)
            stream = await _stream(broker)
            await broker.publish([_record(stream, f"k{n % 7}", n) for n in range(300)])
            first = await _all(late, stream, 300)
            assert await _all(late, stream, 300) == first
            assert await _all(broker, stream, 300) == first
        assert sorted(_numbers(first)) == list(range(300))

    @pytest.mark.parametrize("most", [STRETCH, 20])
    async def test_history_is_looked_at_from_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        """Each record once, later stretches of a partition first, then only what is new."""
        monkeypatch.setattr(history, "STRETCH", most)
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            stream = await _stream(broker)
            await broker.publish([_record(stream, f"k{n % 7}", n) for n in range(300)])
            found: list[Record] = []

            async def look(**options: Any) -> history.Seen:
                return await history.look_back(
                    broker, found.append, now=0.0, seconds=30.0, prefix=stream, streams=1, **options
                )

            seen = await look()
            assert seen.since is None
            assert sorted(_numbers(found)) == list(range(300))
            found.clear()
            await broker.publish([_record(stream, "k1", 300)])
            assert (await look(after=seen.ends)).since is None
            assert _numbers(found) == [300]

    async def test_batches_are_bounded_and_never_empty(self, tmp_path: Path) -> None:
        """1 to 256 records, in order, nothing left out between them."""
        async with self._open(tmp_path) as (broker,):
            stream = await _stream(broker, 1)
            await broker.publish([_record(stream, "one", number) for number in range(600)])
            sizes: list[int] = []
            numbers: list[int] = []
            async with _reading(broker, stream, 0) as batches:
                while len(numbers) < 600:
                    batch = await anext(batches)
                    sizes.append(len(batch.records))
                    numbers.extend(_numbers(batch.records))
                    broker.handled(stream, 0, batch.records[-1].position)
        assert numbers == list(range(600))
        assert min(sizes) >= 1
        assert max(sizes) <= 256

    async def test_a_batch_does_not_wait_to_be_filled(self, tmp_path: Path) -> None:
        """One record is handed out although no other follows."""
        async with self._open(tmp_path) as (broker,):
            stream = await _stream(broker, 1)
            async with _reading(broker, stream, 0) as batches:
                for number in range(5):
                    await broker.publish([_record(stream, "one", number)])
                    (record,) = (await anext(batches)).records
                    assert _numbers([record]) == [number]
                    broker.handled(stream, 0, record.position)

    async def test_publishing_nothing_is_fine(self, tmp_path: Path) -> None:
        """An empty list returns, and nothing is there."""
        async with self._open(tmp_path) as (broker,):
            stream = await _stream(broker, 1)
            await broker.publish([])
            if broker.capabilities.history:
                assert list(await broker.ends(stream)) == [BEGINNING]
            else:
                assert await broker.lag(stream, {0: BEGINNING}) == {0: 0}

    # -- order and concurrency ---------------------------------------------------------------------

    async def test_concurrent_publishers_lose_double_and_reorder_nothing(
        self, tmp_path: Path
    ) -> None:
        """From several connections at once: each record once, each key in its publisher's order."""
        async with self._open(tmp_path, 3) as brokers:
            stream = await _stream(brokers[0])

            async def publisher(name: int) -> None:
                broker = brokers[name % len(brokers)]
                for start in range(0, 40, 4):
                    await broker.publish(
                        [_record(stream, f"{name}-{n % 2}", n) for n in range(start, start + 4)]
                    )

            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(publisher(name) for name in range(12)))
            found = await _all(brokers[-1], stream, 12 * 40)
        assert len(found) == 12 * 40
        by_key = defaultdict(list)
        for record in found:
            by_key[record.key].append(int(record.headers["id"]))
        assert by_key == {
            f"{name}-{parity}": list(range(parity, 40, 2))
            for name in range(12)
            for parity in (0, 1)
        }

    async def test_one_publish_keeps_its_order_over_many_streams(self, tmp_path: Path) -> None:
        """Records of one call may go to several streams; each partition keeps their order."""
        async with self._open(tmp_path) as (broker,):
            streams = [await _stream(broker, 2) for _ in range(3)]
            await broker.publish([_record(streams[n % 3], f"k{n % 5}", n) for n in range(90)])
            for index, stream in enumerate(streams):
                found = await _all(broker, stream, 30)
                assert sorted(_numbers(found)) == list(range(index, 90, 3))
                for key in {record.key for record in found}:
                    numbers = _numbers(r for r in found if r.key == key)
                    assert numbers == sorted(numbers)

    async def test_two_readers_are_independent(self, tmp_path: Path) -> None:
        """Each gets every record at its own pace; the end of one is nothing to the other."""
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            stream = await _stream(broker, 1)
            async with _reading(broker, stream, 0) as slow:
                async with _reading(broker, stream, 0) as fast:
                    for number in range(3):
                        await broker.publish([_record(stream, "one", number)])
                        assert _numbers((await anext(fast)).records) == [number]
                numbers: list[int] = []
                while len(numbers) < 3:
                    numbers.extend(_numbers((await anext(slow)).records))
        assert numbers == [0, 1, 2]

    # -- waiting (G5) ------------------------------------------------------------------------------

    async def test_a_waiting_reader_is_woken_by_another_connection(self, tmp_path: Path) -> None:
        """What one connection publishes reaches a reader that waits on another, again and again."""
        async with self._open(tmp_path, 2) as (broker, other):
            stream = await _stream(broker, 1)
            async with _reading(broker, stream, 0) as batches:
                for number in range(5):
                    waiting = asyncio.ensure_future(anext(batches))
                    await _turns(20)
                    assert not waiting.done()
                    await other.publish([_record(stream, "one", number)])
                    (record,) = (await waiting).records
                    assert _numbers([record]) == [number]
                    broker.handled(stream, 0, record.position)

    async def test_a_stream_that_does_not_exist_yet_is_waited_for(self, tmp_path: Path) -> None:
        """Its first record makes it and reaches the reader."""
        async with self._open(tmp_path, 2) as (broker, other):
            stream = _name()
            readers = [
                asyncio.ensure_future(_take(broker, stream, partition, 1)) for partition in range(2)
            ]
            await _turns(20)
            await other.create(stream, 2)
            for partition in range(2):
                key = next(k for k in map(str, range(99)) if partition_of(k, 2) == partition)
                await other.publish([_record(stream, key, partition)])
            found = await asyncio.gather(*readers)
        assert [_numbers(records) for records in found] == [[0], [1]]

    async def test_a_stream_is_made_by_its_first_record(self, tmp_path: Path) -> None:
        """Nobody needs to create it, and every connection hears of it."""
        async with self._open(tmp_path, 2) as (broker, other):
            heard = asyncio.Event()
            broker.on_streams(heard.set)
            stream = _name()
            await other.publish([_record(stream, "one", 1)])
            await _heard(heard)
            assert (await broker.streams())[stream] > 0
            assert _numbers(await _all(broker, stream, 1)) == [1]

    # -- streams and ends --------------------------------------------------------------------------

    async def test_creating_a_stream_again_leaves_it(self, tmp_path: Path) -> None:
        """With the same count it is left as it is, from any connection."""
        async with self._open(tmp_path, 2) as (broker, other):
            stream = await _stream(broker)
            await broker.publish([_record(stream, "one", 1)])
            await broker.create(stream, PARTITIONS)
            await other.create(stream, PARTITIONS)
            assert _numbers(await _all(broker, stream, 1)) == [1]
            assert (await other.streams())[stream] == PARTITIONS

    async def test_another_number_of_partitions_is_refused(self, tmp_path: Path) -> None:
        """BrokerRefused, and nothing is altered: keys would move to other partitions."""
        async with self._open(tmp_path) as (broker,):
            stream = await _stream(broker)
            await broker.publish([_record(stream, "one", 1)])
            ends = await _ends(broker, stream)
            for wrong in (PARTITIONS - 1, PARTITIONS + 1):
                with pytest.raises(BrokerRefused, match=str(PARTITIONS)):
                    await broker.create(stream, wrong)
            assert (await broker.streams())[stream] == PARTITIONS
            assert await _ends(broker, stream) == ends

    async def test_concurrent_creation_makes_one_stream(self, tmp_path: Path) -> None:
        """Two connections that create it at once agree on it."""
        async with self._open(tmp_path, 3) as brokers:
            stream = _name()
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(b.create(stream, PARTITIONS) for b in brokers for _ in "ab"))
            assert [(await b.streams())[stream] for b in brokers] == [PARTITIONS] * 3
            if brokers[0].capabilities.history:
                assert list(await brokers[0].ends(stream)) == [BEGINNING] * PARTITIONS

    async def test_on_streams_tells_of_a_stream_made_elsewhere(self, tmp_path: Path) -> None:
        """The callback runs on the event loop of the connection that asked for it."""
        async with self._open(tmp_path, 2) as (broker, other):
            heard = asyncio.Event()
            loops = []

            def hear() -> None:
                loops.append(asyncio.get_running_loop())
                heard.set()

            broker.on_streams(hear)
            stream = _name()
            await other.create(stream, 2)
            await _heard(heard)
            assert stream in await broker.streams()
            assert set(loops) == {asyncio.get_running_loop()}

    async def test_ends_are_the_last_positions(self, tmp_path: Path) -> None:
        """One per partition, BEGINNING for an empty one, none for a stream that is not there."""
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            assert list(await broker.ends(_name())) == []
            stream = await _stream(broker)
            assert list(await broker.ends(stream)) == [BEGINNING] * PARTITIONS
            await broker.publish([_record(stream, "one", n) for n in range(3)])
            partition = partition_of("one", PARTITIONS)
            found = await _take(broker, stream, partition, 3)
            expected = [BEGINNING] * PARTITIONS
            expected[partition] = found[-1].position
            assert list(await broker.ends(stream)) == expected

    async def test_starts_stand_before_everything_that_is_kept(self, tmp_path: Path) -> None:
        """Nothing was deleted yet, so that is the beginning of each partition."""
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            assert list(await broker.starts(_name())) == []
            stream = await _stream(broker)
            await broker.publish([_record(stream, f"k{n}", n) for n in range(30)])
            for partition, start in enumerate(await broker.starts(stream)):
                found = await _take(broker, stream, partition, 1)
                again = await _take(broker, stream, partition, 1, after=start)
                assert found[0] == again[0]
                assert start < found[0].position

    async def test_lag_is_what_stands_behind_a_position(self, tmp_path: Path) -> None:
        """Zero at the end and only there; a partition that does not exist is left out."""
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            stream = await _stream(broker, 2)
            assert await broker.lag(stream, {0: BEGINNING, 1: BEGINNING, 7: 3}) == {0: 0, 1: 0}
            key = next(k for k in map(str, range(99)) if partition_of(k, 2) == 1)
            await broker.publish([_record(stream, key, n) for n in range(30)])
            found = await _take(broker, stream, 1, 30)
            lag = await broker.lag(stream, {0: BEGINNING, 1: found[0].position})
            assert lag[0] == 0
            assert lag[1] > 0
            assert await broker.lag(stream, {1: found[-1].position}) == {1: 0}
            for record in found:
                broker.handled(stream, 1, record.position)  # is for display, and moves nothing
            assert await _take(broker, stream, 1, 30) == found

    async def test_what_is_wrong_with_the_setup_comes_with_its_remedy(self, tmp_path: Path) -> None:
        """Grave findings only where acknowledged records would not survive a crash."""
        async with self._open(tmp_path) as (broker,):
            found = await broker.inspect()
            assert all(finding.what and finding.remedy for finding in found)
            volatile = broker.capabilities.durability == "volatile"
            assert any(finding.grave for finding in found) == volatile, found

    async def test_reading_behind_the_end_gives_only_what_comes(self, tmp_path: Path) -> None:
        """``ends`` is how a reader starts from now."""
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            stream = await _stream(broker, 1)
            await broker.publish([_record(stream, "one", n) for n in range(5)])
            (end,) = await broker.ends(stream)
            await broker.publish([_record(stream, "one", 5)])
            assert _numbers(await _take(broker, stream, 0, 1, after=end)) == [5]

    # -- cancellation and the end ------------------------------------------------------------------

    async def test_a_cancelled_publish_leaves_the_broker_usable(self, tmp_path: Path) -> None:
        """At whatever await it is cancelled: at most once there, in order, and others go on."""
        async with self._open(tmp_path) as (broker,):
            stream = await _stream(broker, 1)
            kept = []
            for number in range(40):
                task = asyncio.ensure_future(broker.publish([_record(stream, "one", number)]))
                await _turns(number)
                task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                if result is None:
                    kept.append(number)
            async with asyncio.timeout(DEADLINE):
                await broker.publish([_record(stream, "one", 40)])
            numbers = _numbers(await _all(broker, stream, partial(_arrived, number=40)))
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 40
        assert set(kept) <= set(numbers)

    async def test_a_cancelled_read_leaves_the_broker_usable(self, tmp_path: Path) -> None:
        """Whether it waits or is being handed a batch; other readers and later ones get all."""
        async with self._open(tmp_path) as (broker,):
            self._needs_history(broker)
            stream = await _stream(broker, 1)
            steady = asyncio.ensure_future(_take(broker, stream, 0, 20))
            for number in range(20):
                task = asyncio.ensure_future(_take(broker, stream, 0, 99))
                await _turns(number)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await broker.publish([_record(stream, "one", number)])
            assert _numbers(await steady) == list(range(20))
            assert _numbers(await _take(broker, stream, 0, 20)) == list(range(20))

    async def test_closing_is_safe_at_any_time(self, tmp_path: Path) -> None:
        """Never opened, and twice."""
        broker = self.make(tmp_path)()
        await broker.close()
        await broker.open()
        await broker.close()
        await broker.close()

    async def test_records_survive_closing(self, tmp_path: Path) -> None:
        """What was acknowledged is there for who connects later (G1)."""
        async with self._open(tmp_path) as (broker,):
            self._needs_durability(broker)
            stream = await _stream(broker)
            await broker.publish([_record(stream, f"k{n}", n) for n in range(20)])
            ends = await _ends(broker, stream)
        async with self._open(tmp_path) as (broker,):
            assert sorted(_numbers(await _all(broker, stream, 20))) == list(range(20))
            assert await _ends(broker, stream) == ends
            assert (await broker.streams())[stream] == PARTITIONS

    async def test_acknowledged_records_survive_kill_9(self, tmp_path: Path) -> None:
        """A publisher is killed at a random moment, five times: nothing acknowledged is lost (G1).

        Others that use the broker meanwhile are not held up, and the order stands.
        """
        chance = random.Random()  # noqa: S311 - any moment will do
        async with self._open(tmp_path) as (broker,):
            self._needs_durability(broker)
            self._needs_processes(broker)
            stream = await _stream(broker, 1)
            acknowledged: set[int] = set()
            mark = 0
            for turn in range(5):
                start = turn * 1_000_000
                arguments = (self.url(tmp_path), str(tmp_path), stream, str(start))
                lines = chance.randrange(1, 120)
                said = await asyncio.to_thread(run_and_kill, _CHILD, *arguments, lines=lines)
                acknowledged.update(map(int, said))
                mark = start + 999_999
                async with asyncio.timeout(DEADLINE):
                    await broker.publish([_record(stream, "one", mark)])
                acknowledged.add(mark)
        async with self._open(tmp_path) as (broker,):
            found = await _all(broker, stream, partial(_arrived, number=mark))
        numbers = list(dict.fromkeys(_numbers(found)))
        assert acknowledged <= set(numbers)
        # What was on its way when its publisher died may land behind what others publish then.
        ordered = [number for number in numbers if number in acknowledged]
        assert ordered == sorted(ordered)
        for record in found:
            number = record.headers["id"]
            assert record.data in (number.encode() * 50, number.encode())

    # -- for the tests above -----------------------------------------------------------------------

    @asynccontextmanager
    async def _open(self, tmp_path: Path, count: int = 1) -> AsyncIterator[list[Broker]]:
        connect = self.make(tmp_path)
        async with AsyncExitStack() as stack:
            brokers = [connect() for _ in range(count)]
            for broker in brokers:
                stack.push_async_callback(broker.close)
                await broker.open()
            type(self).declared = brokers[0].capabilities
            yield brokers

    def _needs_history(self, broker: Broker) -> None:
        if not broker.capabilities.history:
            pytest.skip("capabilities.history is declared False")

    def _needs_processes(self, broker: Broker) -> None:
        if not broker.capabilities.processes:
            pytest.skip("capabilities.processes is declared False")

    def _needs_durability(self, broker: Broker) -> None:
        if broker.capabilities.durability == "volatile":
            pytest.skip("capabilities.durability is declared volatile")


class Server(Protocol):
    """A server that a test may kill. Both calls block."""

    def kill(self) -> None:
        """``kill -9`` it."""
        ...

    def start(self) -> None:
        """Bring it back, at the same address and with the same data; return when it answers."""
        ...


class ServerBrokerSuite(BrokerSuite):
    """Besides, for a broker behind a socket: connections and servers that fail (G1, G5, G6)."""

    def server(self, tmp_path: Path) -> Server:
        """The server behind `make`."""
        raise NotImplementedError

    def proxy(self, tmp_path: Path) -> Proxy:
        """Between client and server; not started yet."""
        raise NotImplementedError

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        """As `make`, but connecting to the proxy; a short deadline keeps the tests short."""
        raise NotImplementedError

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    async def test_a_waiting_reader_resumes_after_the_connection(
        self, tmp_path: Path, fault: str
    ) -> None:
        """Refused, or alive to look at and dead: what was published meanwhile arrives (G5)."""
        async with self._faulty(tmp_path) as (proxy, broker, direct):
            stream = await _stream(direct, 2)
            async with _listening(broker, stream, 2) as found:
                for turn in range(2):
                    await direct.publish(
                        [_record(stream, f"k{n}", n + turn * 20) for n in range(9)]
                    )
                    await _until(partial(_arrived, found, turn * 20))
                    getattr(proxy, fault)()
                    await direct.publish(
                        [_record(stream, f"k{n}", n + turn * 20) for n in range(10, 20)]
                    )
                    await _turns(50)
                    proxy.restore()
                    await _until(partial(_arrived, found, turn * 20 + 19))
                await _until(lambda: len(set(_numbers(found))) >= 38)
            for partition in range(2):
                places = [record.position for record in found if record.partition == partition]
                assert places == sorted(places)
                assert len(set(_numbers(found))) == 38
                if direct.capabilities.history:
                    assert len(found) == 38

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    async def test_publishing_has_a_deadline_and_recovers(self, tmp_path: Path, fault: str) -> None:
        """BrokerUnavailable while it lasts, never a hang; then the same connection works again."""
        async with self._faulty(tmp_path) as (proxy, broker, direct):
            stream = await _stream(direct, 1)
            async with _listening(direct, stream, 1) as found:
                await broker.publish([_record(stream, "one", 1)])
                getattr(proxy, fault)()
                with pytest.raises(BrokerUnavailable):
                    async with asyncio.timeout(RESUMES):
                        await broker.publish([_record(stream, "one", 2)])
                proxy.restore()
                await _retry(lambda: broker.publish([_record(stream, "one", 3)]))
                await broker.publish([_record(stream, "one", 4)])
                await _until(lambda: 4 in _numbers(found))
        numbers = _numbers(found)
        assert [n for n in dict.fromkeys(numbers) if n != 2] == [1, 3, 4]
        assert numbers == sorted(numbers)

    async def test_questions_have_a_deadline(self, tmp_path: Path) -> None:
        """Each raises BrokerUnavailable, so that readiness tells; lag is never a made-up zero."""
        async with self._faulty(tmp_path) as (proxy, broker, direct):
            stream = await _stream(direct, 1)
            await _retry(lambda: broker.lag(stream, {0: BEGINNING}))
            proxy.cut()
            questions: list[Callable[[], Awaitable[object]]] = [
                broker.streams,
                lambda: broker.lag(stream, {0: BEGINNING}),
                lambda: broker.create(_name(), 1),
            ]
            for question in questions:
                with pytest.raises(BrokerUnavailable):
                    async with asyncio.timeout(RESUMES):
                        await question()
            proxy.restore()
            await _retry(lambda: broker.lag(stream, {0: BEGINNING}))

    async def test_a_slow_connection_is_only_slow(self, tmp_path: Path) -> None:
        """Everything arrives once and in order."""
        async with self._faulty(tmp_path) as (proxy, broker, direct):
            stream = await _stream(direct, 1)
            await broker.publish([_record(stream, "one", 0)])
            proxy.delay(0.1)
            async with _listening(broker, stream, 1) as found:
                for start in range(1, 31, 10):
                    await broker.publish(
                        [_record(stream, "one", n) for n in range(start, start + 10)]
                    )
                await _until(lambda: 30 in _numbers(found))
        assert list(dict.fromkeys(_numbers(found)))[-30:] == list(range(1, 31))

    async def test_a_broker_out_of_reach_is_open_all_the_same(self, tmp_path: Path) -> None:
        """``open`` says so; once the server is there, reading and publishing just begin."""
        async with self._open(tmp_path) as (direct,), self.proxy(tmp_path) as proxy:
            stream = await _stream(direct, 1)
            proxy.cut()
            broker = self.make_through(tmp_path, proxy)()
            try:
                with pytest.raises(BrokerUnavailable) as refused:
                    async with asyncio.timeout(RESUMES):
                        await broker.open()
                assert str(proxy.port) in str(refused.value)
                async with _listening(broker, stream, 1) as found:
                    await _turns(50)
                    proxy.restore()
                    await _retry(lambda: broker.publish([_record(stream, "one", 1)]))
                    await _until(lambda: 1 in _numbers(found))
            finally:
                await broker.close()

    async def test_a_reader_that_does_not_take_holds_little(self, tmp_path: Path) -> None:
        """Backpressure reaches the broker: of 64 MiB no more than half is fetched ahead (G6)."""
        async with self._faulty(tmp_path) as (proxy, broker, direct):
            stream = await _stream(direct, 1)
            size = min(direct.capabilities.max_bytes or 131_072, 131_072) - 1_024
            count = 64 * 1_048_576 // size
            block = random.Random(1).randbytes(size)  # noqa: S311 - any bytes
            async with _reading(broker, stream, 0, deadline=100.0) as batches:
                first = asyncio.ensure_future(anext(batches))
                for start in range(0, count, 64):
                    await direct.publish(
                        [
                            Record(stream=stream, key="one", headers={"id": str(n)}, data=block)
                            for n in range(start, min(start + 64, count))
                        ]
                    )
                taken = (await first).records
                numbers = _numbers(taken)
                ahead = await _settled(lambda: proxy.received)
                assert ahead < 32 * 1_048_576
                broker.handled(stream, 0, taken[-1].position)  # a queue may wait for that
                while len(set(numbers)) < count:
                    batch = await anext(batches)
                    numbers += _numbers(batch.records)
                    broker.handled(stream, 0, batch.records[-1].position)
        assert list(dict.fromkeys(numbers)) == list(range(count))

    @pytest.mark.timeout(300)
    async def test_the_server_is_killed_and_comes_back(self, tmp_path: Path) -> None:
        """Twice: what was acknowledged is there, readers and publishers go on (G1, G5)."""
        server = self.server(tmp_path)
        async with self._open(tmp_path, 2) as (broker, reader):
            self._needs_durability(broker)
            stream = await _stream(broker, 2)
            acknowledged: list[int] = []
            stopping = False

            async def publish_for_ever() -> None:
                number = 0
                while not stopping:
                    try:
                        await broker.publish([_record(stream, f"k{number % 5}", number)])
                    except BrokerUnavailable:
                        await asyncio.sleep(0.05)
                        continue  # the same one again, as the relay does
                    acknowledged.append(number)
                    number += 1

            async with _listening(reader, stream, 2) as found:
                publishing = asyncio.create_task(publish_for_ever())
                for _ in range(2):
                    await _until(partial(_longer, acknowledged, len(acknowledged) + 50))
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                    more = len(acknowledged) + 50
                    await _until(partial(_longer, acknowledged, more), RESUMES)
                    try:
                        await _until(partial(_arrived, found, acknowledged[-1]), RESUMES)
                    except TimeoutError:
                        raise AssertionError(await _missing(reader, found, acknowledged)) from None
                stopping = True
                await publishing
                await _until(lambda: set(acknowledged) <= set(_numbers(found)), RESUMES)
            for name in range(5):
                numbers = list(dict.fromkeys(_numbers(r for r in found if r.key == f"k{name}")))
                assert numbers == sorted(numbers)

    @asynccontextmanager
    async def _faulty(self, tmp_path: Path) -> AsyncIterator[tuple[Proxy, Broker, Broker]]:
        """A proxy, a broker behind it and one that reaches the server directly."""
        async with self._open(tmp_path) as (direct,), self.proxy(tmp_path) as proxy:
            broker = self.make_through(tmp_path, proxy)()
            await broker.open()
            try:
                yield proxy, broker, direct
            finally:
                proxy.restore()
                await broker.close()


def _name() -> str:
    return f"suite.{uuid4().hex}"


async def _stream(broker: Broker, partitions: int = PARTITIONS) -> str:
    name = _name()
    await broker.create(name, partitions)
    return name


def _record(stream: str, key: str | None, number: int) -> Record:
    text = str(number)
    return Record(stream=stream, key=key, headers={"id": text}, data=text.encode())


def _numbers(records: Iterable[Record]) -> list[int]:
    return [int(record.headers["id"]) for record in records]


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _heard(event: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE):
        await event.wait()


def _arrived(found: Sequence[Record], number: int) -> bool:
    return any(record.headers["id"] == str(number) for record in reversed(found))


async def _missing(reader: Broker, found: Sequence[Record], acknowledged: Sequence[int]) -> str:
    """What was acknowledged and not read: whether its partition stands still, or it is lost."""
    read = set(_numbers(found))
    missing = [number for number in acknowledged if number not in read]
    last = {r.partition: r.headers["id"] for r in found}
    stream = found[-1].stream if found else ""
    lag = await reader.lag(stream, dict.fromkeys(last, BEGINNING)) if stream else {}
    return (
        f"{len(missing)} of {len(acknowledged)} acknowledged were not read, {missing[:5]} first; "
        f"last read of each partition: {last}; records that wait: {dict(lag)}"
    )


def _longer(things: Sequence[object], length: int) -> bool:
    return len(things) > length


async def _until(reached: Callable[[], bool], seconds: float = DEADLINE) -> None:
    async with asyncio.timeout(seconds):
        while not reached():  # noqa: ASYNC110 - what is awaited has no event of its own
            await asyncio.sleep(0.01)


async def _settled(value: Callable[[], int]) -> int:
    """The bytes once they have hardly changed for half a second: a heartbeat is no traffic."""
    async with asyncio.timeout(DEADLINE):
        last = -HEARTBEAT
        while value() - last >= HEARTBEAT:
            last = value()
            await asyncio.sleep(0.5)
    return last


async def _retry(call: Callable[[], Awaitable[object]]) -> None:
    """Until the broker is in reach again."""
    async with asyncio.timeout(RESUMES):
        while True:
            try:
                await call()
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


@asynccontextmanager
async def _listening(broker: Broker, stream: str, partitions: int) -> AsyncIterator[list[Record]]:
    """Fills the list with what arrives on each partition, as a lane would: it starts anew."""
    found: list[Record] = []

    async def listen(partition: int) -> None:
        after = BEGINNING
        while True:
            batches = broker.read(stream, partition, after)
            try:
                async for batch in batches:
                    found.extend(batch.records)
                    after = batch.records[-1].position
                    broker.handled(stream, partition, after)
            except BrokerError:
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(listen(partition)) for partition in range(partitions)]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def _reading(
    broker: Broker,
    stream: str,
    partition: int,
    after: Position = BEGINNING,
    *,
    deadline: float = DEADLINE,
) -> AsyncIterator[AsyncIterator[Batch]]:
    batches = broker.read(stream, partition, after)
    try:
        async with asyncio.timeout(deadline):
            yield batches
    finally:
        close = getattr(batches, "aclose", None)
        if close is not None:
            await close()


async def _take(
    broker: Broker, stream: str, partition: int, count: int, after: Position = BEGINNING
) -> list[Record]:
    records: list[Record] = []
    async with _reading(broker, stream, partition, after) as batches:
        while len(records) < count:
            batch = await anext(batches)
            records.extend(batch.records)
            broker.handled(stream, partition, batch.records[-1].position)
    return records


async def _ends(broker: Broker, stream: str) -> list[Position]:
    return list(await broker.ends(stream)) if broker.capabilities.history else []


async def _all(
    broker: Broker, stream: str, enough: int | Callable[[list[Record]], bool]
) -> list[Record]:
    """Every record. A queue does not tell where it ends: it is read until there is ``enough``."""
    records: list[Record] = []
    if not broker.capabilities.history:
        partitions = (await broker.streams())[stream]
        async with _listening(broker, stream, partitions) as found:
            await _until(lambda: enough(found) if callable(enough) else len(found) >= enough)
            return found
    for partition, end in enumerate(await broker.ends(stream)):
        position = BEGINNING
        async with _reading(broker, stream, partition) as batches:
            while position < end:
                batch = await anext(batches)
                records.extend(batch.records)
                position = batch.records[-1].position
    return records
