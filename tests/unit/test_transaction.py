"""The unit of work: each key's order is kept, equal SQL shares a call, events get their headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez import After, Event, InvalidEvent
from oyez.envelope import check_headers, open_record, parse_time
from oyez.errors import TransactionClosed
from oyez.ports import Changes, Parameters, Row, Writes
from oyez.testing import VirtualAmbient
from oyez.transaction import MAX_DELAY, TRACEPARENT, Announcer, Origin, UnitOfWork


class Placed(Event, type="test.tx.placed", key="order_id", version=2):
    order_id: str
    number: int = 0


class Keyless(Event, type="test.tx.keyless"):
    number: int = 0


class Recorder:
    """A store that keeps what reaches it, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Parameters]]] = []
        self.committed: Changes | None = None
        self.rolled_back = 0

    def begin(self, *, claims: bool = False) -> Recorder:
        return self

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        self.calls += before
        return [{"n": len(self.calls)}]

    async def commit(self, changes: Changes) -> None:
        self.calls += changes.writes
        self.committed = changes

    async def rollback(self) -> None:
        self.rolled_back += 1


def unit() -> tuple[UnitOfWork, Recorder, VirtualAmbient]:
    store, ambient = Recorder(), VirtualAmbient()
    return UnitOfWork(store, Announcer("shop", "orders", ambient)), store, ambient  # type: ignore[arg-type]


CALLS = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "b", "c"]),
        st.lists(st.sampled_from(["S1", "S2", "S3", "fetch"]), max_size=4),
    ),
    max_size=15,
)


@given(CALLS)
async def test_each_key_keeps_the_order_in_which_it_wrote(
    calls: Sequence[tuple[str | None, list[str]]],
) -> None:
    work, store, _ = unit()
    expected: dict[object, list[int]] = {}
    number = 0
    for index, (key, statements) in enumerate(calls):
        tx = work.transaction(Origin(), key)
        for sql in statements:
            if sql == "fetch":
                await tx.fetch("select 1")
                done = [row["n"] for _, rows in store.calls for row in rows]
                assert sorted(done) == list(range(number)), "a read sees every write before it"
                continue
            tx.execute(sql, n=number, of=key or index)
            expected.setdefault(key or index, []).append(number)
            number += 1
    await work.commit()
    found: dict[object, list[int]] = {}
    for _, rows in store.calls:
        for row in rows:
            found.setdefault(row["of"], []).append(row["n"])
    assert found == expected


@given(st.integers(1, 300), st.integers(1, 4))
async def test_equal_statements_of_many_events_share_a_call(events: int, statements: int) -> None:
    work, store, _ = unit()
    for event in range(events):
        tx = work.transaction(Origin(), f"key-{event}")
        for index in range(statements):
            tx.execute(f"S{index}", event=event)
    await work.commit()
    assert [sql for sql, _ in store.calls] == [f"S{index}" for index in range(statements)]
    assert all([row["event"] for row in rows] == list(range(events)) for _, rows in store.calls)


class TestAnnouncements:
    async def test_carry_the_headers_of_a_cloudevent(self) -> None:
        work, store, ambient = unit()
        event_id = work.transaction(Origin()).publish(Placed(order_id="o1", number=5))
        await work.commit()
        assert store.committed is not None
        (row,) = store.committed.announced
        check_headers(row.headers)
        envelope = open_record(row.headers, row.data)
        assert (row.stream, row.key, row.due) == ("shop.orders", "o1", 0.0)
        assert row.data == b'{"order_id":"o1","number":5}'
        assert (envelope.id, envelope.source, envelope.type) == (
            event_id, "/shop/orders", "test.tx.placed"
        )  # fmt: skip
        assert envelope.subject == envelope.partitionkey == envelope.key == "o1"
        assert envelope.dataschema == "urn:oyez:test.tx.placed:2"
        assert envelope.datacontenttype == "application/json"
        assert parse_time(envelope.time or "").timestamp() == ambient.now()
        assert envelope.correlationid == event_id
        assert envelope.causationid is None
        assert TRACEPARENT.fullmatch(envelope.traceparent or "")

    async def test_carry_on_what_led_to_them(self) -> None:
        work, store, _ = unit()
        work.transaction(Origin()).publish(Placed(order_id="o1"))
        first = work.changes.announced[0]
        since = Origin.of(open_record({**first.headers, "tracestate": "a=b"}, first.data))
        tx = work.transaction(since)
        tx.publish_all([Placed(order_id="o2"), Keyless()])
        await work.commit()
        assert store.committed is not None
        for row in store.committed.announced[1:]:
            assert row.headers["correlationid"] == first.headers["id"]
            assert row.headers["causationid"] == first.headers["id"]
            assert row.headers["traceparent"][:36] == first.headers["traceparent"][:36]
            assert row.headers["traceparent"] != first.headers["traceparent"]
            assert row.headers["tracestate"] == "a=b"
        keyless = store.committed.announced[2]
        assert keyless.key is None
        assert not {"subject", "partitionkey"} & keyless.headers.keys()

    async def test_a_broken_trace_is_not_carried_on(self) -> None:
        work, _, _ = unit()
        work.transaction(Origin()).publish(Placed(order_id="o1"))
        row = work.changes.announced[0]
        for bad in ("", "00-zz", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "x" * 55):
            since = Origin.of(
                open_record({**row.headers, "traceparent": bad, "tracestate": "a"}, row.data)
            )
            assert since.traceparent is since.tracestate is None

    async def test_ids_grow_in_the_order_of_announcement(self) -> None:
        work, _, _ = unit()
        ids = [work.transaction(Origin()).publish(Keyless()) for _ in range(300)]
        assert ids == sorted(set(ids))

    async def test_a_key_may_be_given(self) -> None:
        work, _, _ = unit()
        work.transaction(Origin()).publish(Placed(order_id="o1"), key="other")
        work.transaction(Origin()).publish(Keyless(), key="given")
        assert [row.key for row in work.changes.announced] == ["other", "given"]
        assert work.changes.announced[1].headers["partitionkey"] == "given"

    @pytest.mark.parametrize("order_id", ["", "a\nb", "a\x00b", "a\ud800b", "x" * 513, None])
    def test_a_bad_key_is_refused_by_its_field(self, order_id: Any) -> None:
        work, _, _ = unit()
        with pytest.raises(InvalidEvent) as caught:
            work.transaction(Origin()).publish(Placed(order_id=order_id))
        assert caught.value.field == "$.order_id"
        assert work.changes.announced == []

    def test_delays_are_bounded(self) -> None:
        work, _, ambient = unit()
        tx = work.transaction(Origin())
        now = ambient.now()
        for delay, due in ((None, 0.0), (0, 0.0), (0.5, now + 0.5), (MAX_DELAY, now + MAX_DELAY)):
            tx.publish(Keyless(), delay=delay)
            assert work.changes.announced[-1].due == due
        count = len(work.changes.announced)
        for delay in (-1, -1e-9, MAX_DELAY + 1, float("inf"), float("nan")):
            with pytest.raises(InvalidEvent) as caught:
                tx.publish(Keyless(), delay=delay)
            assert caught.value.field == "delay"
        assert len(work.changes.announced) == count


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_an_ended_transaction_takes_nothing_more(end: str) -> None:
    work, store, _ = unit()
    tx = work.transaction(Origin())
    tx.execute("S1")
    await getattr(work, end)()
    with pytest.raises(TransactionClosed):
        tx.execute("S2")
    with pytest.raises(TransactionClosed):
        tx.publish(Keyless())
    with pytest.raises(TransactionClosed):
        await tx.fetch("select 1")
    with pytest.raises(TransactionClosed):
        await tx.fetch_one("select 1")
    await work.rollback()
    assert store.rolled_back == (1 if end == "commit" else 2)
    assert len(store.calls) == (1 if end == "commit" else 0)


async def test_fetch_one_is_the_first_row_or_none() -> None:
    work, store, _ = unit()
    tx = work.transaction(Origin())
    assert await tx.fetch_one("select 1") == {"n": 0}
    store.fetch = lambda *_: _nothing()  # type: ignore[assignment,method-assign]
    assert await tx.fetch_one("select 1") is None


async def _nothing() -> list[Row]:
    return []


class TestAfter:
    async def test_what_it_queues_is_of_the_one_commit_in_its_order(self) -> None:
        work, store, _ = unit()
        after = After(work.transaction(Origin(), "o1"))
        after.execute("S1", n=1)
        first = after.publish(Placed(order_id="o1"))
        after.execute("S2", n=2)
        second = after.publish(Keyless(), key="given")
        assert (store.calls, store.committed) == ([], None)
        await work.commit()
        assert store.calls == [("S1", [{"n": 1}]), ("S2", [{"n": 2}])]
        assert store.committed is not None
        assert [row.headers["id"] for row in store.committed.announced] == [first, second]
        assert [row.key for row in store.committed.announced] == ["o1", "given"]

    async def test_time_goes_on_while_the_handler_waits(self) -> None:
        work, store, ambient = unit()
        begun = ambient.now()
        after = After(work.transaction(Origin()))
        await ambient.advance(20.0)
        assert parse_time(after.time).timestamp() == begun + 20
        await ambient.advance(20.0)
        after.publish(Keyless(), delay=5.0)
        await work.commit()
        assert store.committed is not None
        (row,) = store.committed.announced
        assert parse_time(row.headers["time"]).timestamp() == begun + 40
        assert row.due == begun + 45
        assert store.committed.time == begun + 40

    async def test_ids_are_those_of_the_transaction(self) -> None:
        ids = [After(work.transaction(Origin())).new_id() for work, _, _ in (unit(), unit())]
        assert ids[0] == ids[1]

    def test_it_can_not_read(self) -> None:
        work, _, _ = unit()
        assert not [name for name in dir(After(work.transaction(Origin()))) if "fetch" in name]

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    async def test_it_takes_nothing_more_when_the_handler_has_ended(self, end: str) -> None:
        work, store, _ = unit()
        after = After(work.transaction(Origin()))
        await getattr(work, end)()
        for late in (lambda: after.execute("S1"), lambda: after.publish(Keyless())):
            with pytest.raises(TransactionClosed, match="the handler has ended"):
                late()
        assert store.calls == work.changes.announced == []
