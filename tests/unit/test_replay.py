"""What may be replayed, which part of history, and how its events are marked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import pytest
from fakes import FakeBroker, FakeStore
from parts import headers

from oyez import After, Context, Event, Service, State, Transaction
from oyez.envelope import STRUCTURED, open_record
from oyez.errors import DeclarationError, ReplayRefused
from oyez.ports import Position, Record
from oyez.runtime.handlers import Handlers
from oyez.runtime.replay import Chosen, Stretch, Withheld, choose, deleted, ends, once_more
from oyez.testing import VirtualAmbient
from oyez.transaction import Announcer, Origin


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Ready(Event, type="shop.ready", key="order"):
    order: str


class Parcel(State, key="order"):
    placed: int = 0


class Till(State, key="order"):
    cents: int = 0


class Clock:
    """Something that a service provides."""


def shipping() -> Service:
    """A service with one handler of every sort."""
    service = Service("shipping")

    @service.on(Placed)
    async def place(event: Placed, parcel: Parcel, context: Context) -> Ready | None:
        parcel.placed += 1
        return None

    @service.on(Ready)
    async def ready(event: Ready, parcel: Parcel) -> None:
        parcel.placed += 1

    @service.on(Placed)
    async def reserve(event: Placed, tx: Transaction) -> None: ...

    @service.on(Placed)
    async def mail(event: Placed, after: After) -> None: ...

    @service.on(Placed)
    async def tick(event: Placed, parcel: Till, clock: Clock) -> None: ...

    @service.on(Placed, replay="safe")
    async def note(event: Placed, tx: Transaction) -> None: ...

    @service.on(Placed, replay="safe")
    async def call(event: Placed) -> None: ...

    return service


def names(chosen: Chosen) -> tuple[list[str], list[str]]:
    return [each.name for each in chosen.folds], [each.name for each in chosen.safe]


class TestChoice:
    """`choose`."""

    def test_all_that_may(self) -> None:
        chosen = choose(shipping())
        assert names(chosen) == (["place", "ready"], ["note"])
        assert chosen.refused.keys() == {"reserve", "mail", "tick", "call"}
        assert [kind.name for kind in chosen.kinds] == ["Parcel"]

    def test_one_that_acts_outside_when_that_is_permitted(self) -> None:
        chosen = choose(shipping(), outward=True)
        assert names(chosen) == (["place", "ready"], ["note", "call"])

    def test_those_named(self) -> None:
        assert names(choose(shipping(), ["ready", "place"])) == (["place", "ready"], [])
        assert names(choose(shipping(), ["note"])) == ([], ["note"])

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("reserve", 'reserve writes to tables by itself.*declare it replay="safe"'),
            ("mail", "mail acts outside of the store, and would do so twice"),
            ("call", "call acts outside of the store: permit that with --outward"),
            ("tick", "tick is given clock, and may act with it"),
            ("place", "place makes Parcel only together with ready: add --handler ready"),
            ("plaice", "no handler 'plaice'; there are: call, mail, note, place, ready"),
        ],
    )
    def test_refused(self, name: str, why: str) -> None:
        with pytest.raises(ReplayRefused, match=why):
            choose(shipping(), [name])

    def test_state_that_another_handler_changes_as_well(self) -> None:
        """Also over a second kind that they share."""
        service = Service("shipping")

        @service.on(Placed)
        async def place(event: Placed, parcel: Parcel) -> None: ...

        @service.on(Placed)
        async def both(event: Placed, parcel: Parcel, till: Till) -> None: ...

        @service.on(Ready)
        async def pay(event: Ready, till: Till, tx: Transaction) -> None: ...

        why = "place shares Parcel, Till with pay, which can't be replayed: pay writes to tables"
        with pytest.raises(ReplayRefused, match=why):
            choose(service, ["place"])
        with pytest.raises(ReplayRefused):
            choose(service)

    def test_a_service_without_handlers(self) -> None:
        with pytest.raises(ReplayRefused, match="shipping has no handlers"):
            choose(Service("shipping"))

    def test_their_state_is_kept_under_a_kind_of_its_own(self) -> None:
        service = shipping()
        place, _, note = choose(service).under("again")
        assert [state.kind.name for state in place.states] == ["Parcel@again"]
        assert note is choose(service).safe[0]
        Handlers("shop", "shipping", [place]).bind({})
        assert [state.kind.name for state in service.handlers[0].states] == ["Parcel"]

    def test_another_word_than_safe(self) -> None:
        with pytest.raises(DeclarationError, match='replay: expected "safe" or None'):

            @Service("shipping").on(Placed, replay="yes")
            async def place(event: Placed) -> None: ...


def record(position: int, time: float = 0.0, **changed: str) -> Record:
    return Record(
        stream="shop.till",
        key="a",
        headers={**headers(f"e{position}", "a"), **changed},
        data=msgspec.json.encode({"order": "a"}),
        partition=0,
        position=position,
        time=time,
    )


class TestStretch:
    """`Stretch`, `ends` and `deleted`."""

    @pytest.mark.parametrize(
        ("stretch", "covered"),
        [
            (Stretch(), [1, 2, 3, 4]),
            (Stretch(first=2, last=3), [2, 3]),
            (Stretch(since=20.0, until=30.0), [2, 3]),
            (Stretch(since=40.0, last=3), []),
        ],
    )
    def test_both_ends_are_included(self, stretch: Stretch, covered: list[int]) -> None:
        records = [record(n, time=10.0 * n) for n in range(1, 5)]
        assert [each.position for each in records if stretch.covers(each)] == covered

    async def test_the_ends_are_those_of_streams_that_are_read(self) -> None:
        broker = await filled(3)
        await broker.create("else.where", 1)
        found = await ends(broker, "shop", choose(shipping()), Stretch())
        assert {place for place, _ in found.items()} == {("shop.till", 0)}
        assert found["shop.till", 0] == 3
        shorter = await ends(broker, "shop", choose(shipping()), Stretch(last=2))
        assert shorter["shop.till", 0] == 2

    async def test_history_that_retention_has_deleted(self) -> None:
        broker = await filled(6, Shortened(VirtualAmbient()))
        places = {("shop.till", 0): 6}
        assert await deleted(broker, places, Stretch()) == {("shop.till", 0): 2}
        assert await deleted(broker, places, Stretch(first=2)) == {("shop.till", 0): 2}
        assert await deleted(broker, places, Stretch(first=3)) == {}
        assert await deleted(broker, places, Stretch(since=1e12)) == {}
        assert await deleted(broker, places, Stretch(since=0.0)) == {("shop.till", 0): 2}


class TestMark:
    """What handlers see of a record."""

    @pytest.mark.parametrize("structured", [False, True])
    def test_the_event_names_the_replay(self, structured: bool) -> None:
        given = record(1)
        if structured:
            body = open_record(given.headers, given.data).structured()
            given = msgspec.structs.replace(
                given, headers={"datacontenttype": STRUCTURED}, data=body
            )
        envelope = open_record((marked := once_more(given, "replay:x")).headers, marked.data)
        assert (envelope.id, envelope.replayed) == ("e1", "replay:x")

    @pytest.mark.parametrize(("time", "expires"), [(5.0, None), (15.0, "1970-01-01T00:00:10Z")])
    def test_a_command_that_came_in_time_has_not_expired(
        self, time: float, expires: str | None
    ) -> None:
        given = record(1, time=time, expires="1970-01-01T00:00:10Z")
        marked = once_more(given, "replay:x")
        assert open_record(marked.headers, marked.data).expires == expires

    def test_a_record_that_is_no_event_is_left_as_it_is(self) -> None:
        given = msgspec.structs.replace(record(1), data=None)
        assert once_more(given, "replay:x") is given


class Shortened(FakeBroker):
    """A broker that has deleted two records."""

    async def starts(self, stream: str) -> Sequence[Position]:
        return [2]


async def test_a_withheld_event_replaces_no_later_one_of_its_name() -> None:
    """Its time has come meanwhile, so that it would delete the one that waits."""
    ambient, store = VirtualAmbient(), FakeStore()
    withheld = Withheld(store, Announcer("shop", "shipping", ambient), ambient)
    unit = withheld.unit(None)
    tx = unit.transaction(Origin())
    tx.publish(Ready(order="a"), at=datetime(1971, 1, 1, tzinfo=UTC), name="a")
    tx.publish(Ready(order="b"))
    await unit.commit()
    assert (store.announced, store.written) == ([], [])
    assert withheld.events == {"shop.ready": 2}


async def filled(count: int, broker: FakeBroker | None = None) -> FakeBroker:
    """A broker with some events in one partition."""
    broker = broker or FakeBroker(VirtualAmbient())
    await broker.create("shop.till", 1)
    await broker.publish([record(n) for n in range(count)])
    return broker
