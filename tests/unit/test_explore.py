"""Exploring a stream: pages of it, one event, what arrives, and that all of it is bounded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oyez.brokers.claim_check import ClaimCheck
from oyez.brokers.claim_check.folder import Folder
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import BrokerRefused, InvalidEvent, NotThere
from oyez.inspection import explore as module
from oyez.inspection.explore import (
    Arrivals,
    Page,
    Shown,
    Sighting,
    Wanted,
    arrivals,
    at_of,
    at_text,
    explore,
    payload,
    show,
    sight,
)
from oyez.ports import Batch, Broker, Capabilities, Position, Record
from oyez.testing import VirtualAmbient

STREAM = "shop.orders"


class SparseBroker(MemoryBroker):
    """A broker between whose positions there are gaps, as where positions are made of times."""

    def __init__(self, ambient: VirtualAmbient, gaps: Sequence[int]) -> None:
        super().__init__(ambient, partitions=3)
        self._far = [0, *accumulate(1 + gaps[n % len(gaps)] for n in range(20_000))]
        self.taken = 0
        """Records that readers were given."""

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        first = bisect_right(self._far, after) - 1
        async for batch in super().read(stream, partition, first):
            self.taken += len(batch.records)
            yield Batch(
                [
                    msgspec.structs.replace(record, position=self._far[record.position])
                    for record in batch.records
                ]
            )

    async def ends(self, stream: str) -> Sequence[Position]:
        return [self._far[end] for end in await super().ends(stream)]


def event(number: int, **more: Any) -> Record:
    key = more.pop("key", f"k{number % 7}")
    headers = {"specversion": "1.0", "id": f"e{number}", "source": "/shop/orders",
               "type": f"shop.order.{'placed' if number % 3 else 'cancelled'}", "subject": key,
               **more.pop("headers", {})}  # fmt: skip
    data = more.pop("data", b'{"n": %d, "name": "caf\xc3\xa9"}' % number)
    return Record(stream=STREAM, key=key, headers=headers, data=data)


async def filled(broker: MemoryBroker, ambient: VirtualAmbient, sizes: Sequence[int]) -> None:
    """Publish so many events in each second; the first has the number 0."""
    number = 0
    await broker.create(STREAM, 3)
    for size in sizes:
        await broker.publish([event(number + more) for more in range(size)])
        number += size
        await ambient.advance(1.0)


async def every(broker: Broker, wanted: Wanted, *, newest: bool, limit: int = 5) -> list[Sighting]:
    """All events, page by page."""
    found: list[Sighting] = []
    at: dict[int, Position] = {}
    for _ in range(1_000):
        page = await explore(broker, STREAM, wanted, newest=newest, at=at, limit=limit)
        assert len(page.events) <= limit
        found += page.events
        if not page.at:
            return found
        assert page.at != at, "it goes on for ever"
        at = at_of(at_text(page.at))
    raise AssertionError("it goes on for ever")


@pytest.fixture
def ambient() -> VirtualAmbient:
    return VirtualAmbient()


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 30), max_size=8),
    gaps=st.lists(st.sampled_from([0, 0, 1, 50, 2**30]), min_size=1, max_size=4),
    newest=st.booleans(),
    key=st.sampled_from(["", "k3"]),
    kind=st.sampled_from(["", "shop.order.placed", "shop.order.*", "shop.order.c*"]),
    text=st.sampled_from(["", '"n": 1', "café"]),
    since=st.sampled_from([None, 2.0]),
    until=st.sampled_from([None, 4.0]),
)
async def test_pages_have_every_event_once_and_in_order(
    sizes: list[int],
    gaps: list[int],
    newest: bool,
    key: str,
    kind: str,
    text: str,
    since: float | None,
    until: float | None,
) -> None:
    ambient = VirtualAmbient()
    begun = ambient.now()
    broker = SparseBroker(ambient, gaps)
    await filled(broker, ambient, sizes)
    wanted = Wanted(
        key=key,
        type=kind,
        text=text,
        since=None if since is None else begun + since,
        until=None if until is None else begun + until,
    )
    found = await every(broker, wanted, newest=newest)
    for partition in range(3):
        mine = [each for each in found if each.partition == partition]
        assert [each.position for each in mine] == sorted(
            (each.position for each in mine), reverse=newest
        )
    expected = []
    number = 0
    for second, size in enumerate(sizes):
        for each in range(number, number + size):
            name = f"shop.order.{'placed' if each % 3 else 'cancelled'}"
            if (
                (not key or f"k{each % 7}" == key)
                and (not kind or name == kind or (kind[-1] == "*" and name.startswith(kind[:-1])))
                and (text != '"n": 1' or str(each).startswith("1"))
                and (since is None or second >= since)
                and (until is None or second <= until)
            ):
                expected.append(f"e{each}")
        number += size
    assert sorted(each.id or "" for each in found) == sorted(expected)


@pytest.mark.parametrize("newest", [True, False])
async def test_a_page_is_by_time_over_the_partitions(ambient: VirtualAmbient, newest: bool) -> None:
    broker = MemoryBroker(ambient, partitions=3)
    await filled(broker, ambient, [7] * 6)
    page = await explore(broker, STREAM, Wanted(), newest=newest, limit=20)
    times = [each.time for each in page.events]
    assert times == sorted(times, reverse=newest)
    assert len({each.partition for each in page.events}) == 3
    assert not page.cut


@pytest.mark.parametrize("newest", [True, False])
async def test_what_is_looked_at_is_bounded_and_said(
    ambient: VirtualAmbient, monkeypatch: pytest.MonkeyPatch, newest: bool
) -> None:
    monkeypatch.setattr(module, "EXAMINED", 60)
    monkeypatch.setattr(module, "_LEAST", 10)
    broker = SparseBroker(ambient, [0])
    await filled(broker, ambient, [1_000])
    page = await explore(broker, STREAM, Wanted(text="nowhere"), newest=newest)
    assert page.cut
    assert page.events == ()
    assert page.examined <= 3 * 256
    assert len(page.at) == 3
    assert await every(broker, Wanted(text="nowhere"), newest=newest) == []


async def test_the_newest_page_of_a_long_stream_reads_little(ambient: VirtualAmbient) -> None:
    broker = SparseBroker(ambient, [0])
    await filled(broker, ambient, [20_000])
    page = await explore(broker, STREAM, Wanted(), limit=50)
    assert len(page.events) == 50
    assert broker.taken < 3 * 300


async def test_a_busy_day_before_a_quiet_one(ambient: VirtualAmbient) -> None:
    broker = SparseBroker(ambient, [0] * 6_000 + [2**20] * 40)
    await broker.create(STREAM, 3)
    await broker.publish([event(number, key="k") for number in range(6_040)])
    page = await explore(broker, STREAM, Wanted(key="k"), limit=60)
    assert [each.id for each in page.events] == [f"e{n}" for n in range(6_039, 5_979, -1)]
    assert not page.cut


async def test_a_time_is_found_without_reading_up_to_it(ambient: VirtualAmbient) -> None:
    broker = SparseBroker(ambient, [0])
    await filled(broker, ambient, [1_000] * 20)
    begun = ambient.now() - 20
    for newest in (True, False):
        broker.taken = 0
        wanted = Wanted(since=begun + 10, until=begun + 10)
        page = await explore(broker, STREAM, wanted, newest=newest, limit=50)
        assert {each.time for each in page.events} == {begun + 10}
        assert page.examined < 1_500


async def test_a_broker_that_says_nothing_ends_the_page(
    ambient: VirtualAmbient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    broker = MemoryBroker(ambient, partitions=3)
    await filled(broker, ambient, [30])

    async def ends(stream: str) -> list[int]:
        return [10_000] * 3  # what stands there was deleted, and no reader will ever be told

    monkeypatch.setattr(broker, "ends", ends)
    for newest in (True, False):
        page = await explore(broker, STREAM, Wanted(), newest=newest)
        assert page.cut
        assert len(page.at) == 3


async def test_a_full_page_says_that_a_partition_was_not_looked_at(
    ambient: VirtualAmbient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    broker = MemoryBroker(ambient, partitions=3)
    await filled(broker, ambient, [300])
    ends = await broker.ends(STREAM)

    async def short(stream: str) -> list[int]:
        return [ends[0], ends[1], 10_000]

    monkeypatch.setattr(broker, "ends", short)
    page = await explore(broker, STREAM, Wanted(), limit=20)
    assert (len(page.events), page.cut, page.at[2]) == (20, True, 10_000)


async def test_of_many_partitions_one_has_to_be_chosen(ambient: VirtualAmbient) -> None:
    broker = MemoryBroker(ambient, partitions=1_000)
    await broker.create(STREAM, 1_000)
    await broker.publish([event(number, key=f"k{number}") for number in range(2_000)])
    page = await explore(broker, STREAM, Wanted())
    assert (page.choose, page.partitions, page.events) == (True, 1_000, ())
    by_key = await explore(broker, STREAM, Wanted(key="k7"))
    assert [each.id for each in by_key.events] == ["e7"]
    one = await explore(broker, STREAM, Wanted(), partition=by_key.events[0].partition)
    assert "e7" in {each.id for each in one.events}
    with pytest.raises(NotThere, match="choose"):
        await arrivals(broker, STREAM, Wanted(), at={})


async def test_what_is_not_there(ambient: VirtualAmbient) -> None:
    broker = MemoryBroker(ambient, partitions=3)
    await filled(broker, ambient, [3])
    for call in (
        explore(broker, "shop.none", Wanted()),
        explore(broker, STREAM, Wanted(), partition=3),
        arrivals(broker, "shop.none", Wanted(), at={}),
        show(broker, STREAM, 9, 1),
        show(broker, STREAM, 0, 0),
        show(broker, STREAM, 0, 99),
        payload(broker, "shop.none", 0, 1),
    ):
        with pytest.raises(NotThere):
            await call
    assert (await explore(broker, STREAM, Wanted(), at={0: 2**60, 7: 4})).partitions == 3


async def test_a_queue_is_never_read(ambient: VirtualAmbient) -> None:
    broker = MemoryBroker(ambient)
    broker.capabilities = Capabilities(durability="volatile", history=False, processes=False)
    await broker.publish([event(1)])
    for call in (
        explore(broker, STREAM, Wanted()),
        arrivals(broker, STREAM, Wanted(), at={}),
        show(broker, STREAM, 0, 1),
        payload(broker, STREAM, 0, 1),
    ):
        with pytest.raises(BrokerRefused, match="keeps no history"):
            await call


@pytest.mark.parametrize("text", ["x", "1", "1.", "1.2_", "1.2 3.4", "-1.2", "1." + "9" * 20])
def test_a_place_that_is_none(text: str) -> None:
    with pytest.raises(InvalidEvent):
        at_of(text)


# -- what arrives ----------------------------------------------------------------------------------


async def test_what_arrives_is_seen_once(ambient: VirtualAmbient) -> None:
    broker = MemoryBroker(ambient, partitions=3)
    await filled(broker, ambient, [5])
    before = await arrivals(broker, STREAM, Wanted(), at={})
    assert (before.events, before.dropped) == ((), 0)
    await broker.publish([event(number) for number in range(5, 25)])
    now = await arrivals(broker, STREAM, Wanted(type="shop.order.placed"), at=before.at)
    assert sorted(each.id or "" for each in now.events) == sorted(
        f"e{number}" for number in range(5, 25) if number % 3
    )
    assert now.dropped == 0
    again = await arrivals(broker, STREAM, Wanted(), at=now.at)
    assert again == Arrivals(events=(), at=now.at, dropped=0)


async def test_too_many_are_dropped_and_counted(ambient: VirtualAmbient) -> None:
    broker = SparseBroker(ambient, [0])
    await filled(broker, ambient, [1])
    before = await arrivals(broker, STREAM, Wanted(), at={})
    broker.taken = 0
    await broker.publish([event(number) for number in range(1, 5_001)])
    now = await arrivals(broker, STREAM, Wanted(), at=before.at)
    assert 90 < len(now.events) <= module.ARRIVED
    assert len(now.events) + now.dropped == 5_000
    assert broker.taken <= 3 * 256
    assert (await arrivals(broker, STREAM, Wanted(), at=now.at)).dropped == 0


# -- one event -------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=()), max_size=40)  # surrogates too


@settings(max_examples=200)
@given(
    headers=st.dictionaries(st.sampled_from(["id", "type", "source", "specversion", "subject",
                                             "datacontenttype", "dataref", "odd\u202e"]), TEXTS),
    key=st.none() | TEXTS,
    data=st.none() | st.binary(max_size=300) | st.sampled_from([b"", b'{"data": {"a": 1}}']),
    structured=st.booleans(),
)  # fmt: skip
async def test_any_record_can_be_told(
    headers: dict[str, str], key: str | None, data: bytes | None, structured: bool
) -> None:
    if structured:
        headers["datacontenttype"] = "application/cloudevents+json"
    broker = MemoryBroker(VirtualAmbient())
    await broker.create(STREAM, 1)
    foreign = Record(
        stream=STREAM, key=key, headers=headers, data=data, partition=0, position=1, time=1.0
    )
    broker.logs[STREAM][0].append(foreign)  # as another publisher may have sent it
    page = await explore(broker, STREAM, Wanted(type="*", text=""))
    shown = await show(broker, STREAM, 0, 1)
    assert msgspec.json.decode(msgspec.json.encode(page), type=Page) == page
    assert msgspec.json.decode(msgspec.json.encode(shown), type=Shown) == shown
    if not shown.sighting.elsewhere:
        assert await payload(broker, STREAM, 0, 1) == data


async def test_large_ones_are_cut_and_never_opened(ambient: VirtualAmbient) -> None:
    broker = MemoryBroker(ambient, partitions=1)
    start = b'{"specversion":"1.0","id":"e1","source":"/a","type":"shop.x","data":"'
    body = start + b"x" * 10_000_000 + b'"}'
    huge = {"datacontenttype": "application/cloudevents+json", "type": "t" * 9_000}
    many = {f"h{number}": "v" * 9_000 for number in range(500)}
    await broker.publish([event(1, key="k" * 600, data=body, headers={**huge, **many})])
    shown = await show(broker, STREAM, 0, 1)
    assert len(msgspec.json.encode(shown)) < 400_000
    assert (shown.size, len(shown.data or b"")) == (len(body), module.SHOWN)
    assert shown.attributes == {}
    page = await explore(broker, STREAM, Wanted(text="xxx"))
    assert len(msgspec.json.encode(page)) < 4_000
    assert await payload(broker, STREAM, 0, 1) == body


def test_a_structured_event_is_told_by_its_body() -> None:
    body = {"specversion": "1.0", "id": "e1", "source": "/a", "type": "shop.x", "data": {"a": 1}}
    headers = {"datacontenttype": "application/cloudevents+json"}
    record = Record(stream=STREAM, key="k", headers=headers, data=msgspec.json.encode(body))
    seen = sight(record)
    assert (seen.type, seen.id, seen.beginning, seen.flaw) == ("shop.x", "e1", b'{"a":1}', "")
    tombstone = sight(Record(stream=STREAM, key="k", headers={}, data=None))
    assert tombstone.size is None
    assert "tombstone" in tombstone.flaw


@pytest.fixture
def storage(tmp_path: Any, ambient: VirtualAmbient) -> Folder:
    return Folder(tmp_path, ambient, 3_600.0)


async def test_a_claim_check_is_fetched_for_one_event_alone(
    ambient: VirtualAmbient, storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = MemoryBroker(ambient, partitions=1)
    options = module.ClaimCheck(bare, storage, ambient).options
    small = msgspec.structs.replace(options, over=1_000)
    broker = ClaimCheck(bare, storage, ambient, small)
    data = b'{"long": "' + b"y" * 100_000 + b'"}'
    await broker.publish([event(1, data=data)])
    fetched: list[str] = []
    get = storage.get

    async def counted(name: str, length: int) -> bytes | None:
        fetched.append(name)
        return await get(name, length)

    monkeypatch.setattr(storage, "get", counted)
    page = await explore(broker, STREAM, Wanted())
    assert (page.events[0].elsewhere, page.events[0].flaw, fetched) == (True, "", [])
    shown = await show(broker, STREAM, 0, 1)
    assert (shown.size, shown.unfetched, len(fetched)) == (len(data), "", 1)
    assert shown.data == data[: module.SHOWN]
    assert shown.dataref.startswith("file:///")
    assert await payload(broker, STREAM, 0, 1) == data
    foreign = {"dataref": "https://elsewhere/secret"}
    await bare.publish([event(2, data=b"", headers=foreign)])
    other = await show(broker, STREAM, 0, 2)
    assert "no place below" in other.unfetched
    assert other.dataref == "https://elsewhere/secret"
    assert len(fetched) == 2
    alone = await show(bare, STREAM, 0, 1)
    assert "names no storage" in alone.unfetched
    with pytest.raises(NotThere, match="no place below"):
        await payload(broker, STREAM, 0, 2)
