"""A handler's signature is read once: what fits, what is refused, and how it is then called."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from oyez import After, Context, Event, Retry, Transaction
from oyez.envelope import Envelope
from oyez.errors import DeclarationError
from oyez.event import describe
from oyez.handler import Handler, compile_handler


class Placed(Event, type="test.handler.placed"):
    n: int = 0


class Cancelled(Event, type="test.handler.cancelled"):
    n: int = 0


class Paid(Event, type="test.handler.paid"):
    n: int = 0


class Gateway:
    pass


class Clock:
    pass


class OwnSession(AsyncSession):
    pass


def compiled(function: Callable[..., Any], *events: type, **options: Any) -> Handler:
    return compile_handler(function, events or (Placed,), service="orders", **options)


EVENT, TX = Placed(n=1), object()
CONTEXT = object()
GATEWAY, CLOCK = Gateway(), Clock()


def called(function: Callable[..., Any], *events: type, **options: Any) -> Any:
    call = compiled(function, *events, **options).bind({Gateway: GATEWAY, Clock: CLOCK})
    return call(EVENT, TX, CONTEXT)  # type: ignore[arg-type]


class TestLayouts:
    def test_parameters_are_filled_by_type_in_any_order(self) -> None:
        def only(event: Placed):
            return (event,)

        def with_tx(event: Placed, tx: Transaction):
            return (event, tx)

        def with_context(event: Placed, context: Context):
            return (event, context)

        def with_both(event: Placed, tx: Transaction, context: Context):
            return (event, tx, context)

        def swapped(context: Context, e: Placed, t: Transaction):
            return (context, e, t)

        def given(e: Placed, gateway: Gateway):
            return (e, gateway)

        def many(clock: Clock, t: Transaction, e: Placed, gateway: Gateway, c: Context):
            return (clock, t, e, gateway, c)

        assert called(only) == (EVENT,)
        assert called(with_tx) == (EVENT, TX)
        assert called(with_context) == (EVENT, CONTEXT)
        assert called(with_both) == (EVENT, TX, CONTEXT)
        assert called(swapped) == (CONTEXT, EVENT, TX)
        assert called(given) == (EVENT, GATEWAY)
        assert called(many) == (CLOCK, TX, EVENT, GATEWAY, CONTEXT)

    def test_events_without_annotation_go_by_name(self) -> None:
        def one(event):
            return (event,)

        def several(events, tx: Transaction):
            return (events, tx)

        assert called(one) == (EVENT,)
        assert called(several, batch=True) == (EVENT, TX)

    def test_unions_and_batches(self) -> None:
        def either(event: Placed | Cancelled | None):
            return event

        def batch(events: list[Placed]):
            return events

        def sequence(events: Sequence[Placed | Cancelled]):
            return events

        def iterable(events: Iterable[Placed]):
            return events

        assert called(either, Placed, Cancelled) is EVENT
        for function in (batch, sequence, iterable):
            assert called(function, batch=True) is EVENT
        assert called(sequence, Placed, Cancelled, batch=True) is EVENT

    def test_what_is_known_of_it(self) -> None:
        async def plain(event: Placed, tx: Transaction) -> Paid | Cancelled | None: ...

        handler = compiled(plain)
        assert (handler.service, handler.name) == ("orders", "plain")
        assert handler.events == (describe(Placed),)
        assert set(handler.publishes) == {describe(Paid), describe(Cancelled)}
        assert handler.transactional
        assert not handler.needs_context
        assert not handler.blocking
        assert not handler.generator
        assert handler.ordered
        assert handler.retry == Retry()
        assert compiled(plain, name="other").name == "other"
        assert not compiled(plain, order="none").ordered

    def test_kinds_of_functions(self) -> None:
        def plain(event: Placed) -> list[Paid]: ...  # type: ignore[empty-body]
        def yields(event: Placed) -> Iterator[Paid]:
            yield Paid()

        async def asynchronous(event: Placed) -> None: ...
        async def streams(event: Placed) -> AsyncIterator[Paid]:
            yield Paid()

        for function, blocking, generator, publishes in (
            (plain, True, False, 1), (yields, True, True, 1),
            (asynchronous, False, False, 0), (streams, False, True, 1),
        ):  # fmt: skip
            handler = compiled(function)
            assert (handler.blocking, handler.generator) == (blocking, generator)
            assert len(handler.publishes) == publishes
            assert not handler.transactional


class TestWants:
    def handler(self, **options: Any) -> Handler:
        def handle(event: Placed | Paid) -> None: ...

        return compiled(handle, Placed, Paid, **options)

    @pytest.mark.parametrize(
        ("options", "stream", "reads"),
        [
            ({}, "shop.orders", True),
            ({}, "shop.orders.late", True),
            ({}, "bank.orders", False),
            ({}, "shop", False),
            ({}, "shopping.orders", False),
            ({"stream": "shop.orders"}, "shop.orders", True),
            ({"stream": "shop.orders"}, "shop.orders.late", False),
            ({"stream": "bank.orders"}, "bank.orders", True),
            ({"stream": "bank.orders"}, "shop.orders", False),
        ],
    )
    def test_the_stream_it_names_or_all_of_its_system(
        self, options: dict[str, Any], stream: str, reads: bool
    ) -> None:
        handler = self.handler(**options)
        assert handler.subscribes(stream, "shop") is reads
        assert handler.wants("test.handler.placed", stream, "shop") is reads
        assert handler.wants("test.handler.paid", stream, "shop") is reads
        assert not handler.wants("test.handler.cancelled", stream, "shop")


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"order": "fifo"}, "order: expected"),
            ({"concurrency": 0}, "concurrency: expected 1 or more"),
            ({"timeout": 0}, "timeout: expected seconds above 0"),
            ({"timeout": -1.0}, "timeout: expected"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        def handle(event: Placed) -> None: ...

        with pytest.raises(DeclarationError, match=message):
            compiled(handle, **options)

    def test_signatures(self) -> None:
        def none() -> None: ...
        def no_event(tx: Transaction) -> None: ...
        def two(event: Placed, other: Placed) -> None: ...
        def unknown(event: Placed, what) -> None: ...
        def star(event: Placed, *rest: int) -> None: ...
        def stars(event: Placed, **rest: int) -> None: ...
        def keyword(event: Placed, *, tx: Transaction) -> None: ...
        def wrong(event: Cancelled) -> None: ...
        def narrow(event: Placed) -> None: ...
        def listed(events: list[Placed]) -> None: ...
        def odd(event: Placed, what: dict[str, int]) -> None: ...
        def single(event: Placed) -> None: ...
        def context(events: list[Placed], context: Context) -> None: ...

        for function, events, options, message in (
            (none, (Placed,), {}, "exactly one parameter for the event"),
            (no_event, (Placed,), {}, "exactly one parameter for the event"),
            (two, (Placed,), {}, "exactly one parameter for the event"),
            (unknown, (Placed,), {}, "parameter what: needs a type annotation"),
            (star, (Placed,), {}, "only plain positional"),
            (stars, (Placed,), {}, "only plain positional"),
            (keyword, (Placed,), {}, "only plain positional"),
            (wrong, (Placed,), {}, "does not take Placed"),
            (narrow, (Placed, Cancelled), {}, "does not take Cancelled"),
            (listed, (Placed,), {}, "set batch=True"),
            (
                odd,
                (Placed,),
                {},
                "Transaction, After, Context, a State or a class",
            ),
            (context, (Placed,), {"batch": True}, "no single Context"),
        ):
            with pytest.raises(DeclarationError, match=message) as caught:
                compiled(function, *events, **options)
            assert function.__qualname__ in str(caught.value)
        with pytest.raises(DeclarationError, match="parameter event: batch=True hands over a list"):
            compiled(single, batch=True)
        with pytest.raises(DeclarationError, match="at least one event class"):
            compile_handler(narrow, (), service="orders")
        with pytest.raises(DeclarationError, match="is not an event"):
            compiled(narrow, Gateway)

    def test_annotations_that_can_not_be_resolved(self) -> None:
        def handle(event: Placed, what: NoSuchName) -> None: ...  # noqa: F821

        with pytest.raises(DeclarationError, match=r"can't be resolved.*NoSuchName"):
            compiled(handle)

    def test_what_nothing_provides(self) -> None:
        def handle(event: Placed, gateway: Gateway) -> None: ...

        with pytest.raises(DeclarationError, match=r"orders\.handle asks for Gateway"):
            compiled(handle).bind({})


class TestAfter:
    def test_it_comes_without_a_transaction(self) -> None:
        async def handle(event: Placed, after: After, gateway: Gateway, c: Context) -> Paid: ...  # type: ignore[empty-body]

        def plain(after: After, e: Placed):
            return (after, e)

        handler = compiled(handle)
        assert handler.layout == ("event", "after", Gateway, "context")
        assert (handler.transactional, handler.needs_context) == (False, True)
        after, event = called(plain)
        assert type(after) is After
        assert event is EVENT
        assert called(plain)[0] is not after

    def test_a_handler_with_a_transaction_has_no_use_for_it(self) -> None:
        async def beside(event: Placed, tx: Transaction, after: After) -> None: ...
        async def session(after: After, event: Placed, db: AsyncSession) -> None: ...
        async def batch(events: list[Placed], after: After) -> None: ...

        for function in (beside, session):
            with pytest.raises(DeclarationError, match="parameter after: After is for a handler"):
                compiled(function)
        with pytest.raises(DeclarationError, match="parameter after: a batch is not handled"):
            compiled(batch, batch=True)


class TestSessions:
    def test_they_are_known_by_their_type(self) -> None:
        async def both(db: AsyncSession, event: Placed, tx: Transaction) -> None: ...
        def plain(event: Placed, db: Session) -> None: ...

        assert compiled(both).layout == ("session", "event", "tx")
        for function in (both, plain):
            assert compiled(function).transactional
            assert compiled(function).bind({})

    def test_one_that_blocks_goes_with_a_plain_def(self) -> None:
        async def asynchronous(event: Placed, db: Session) -> None: ...
        def plain(event: Placed, db: AsyncSession) -> None: ...

        for function in (asynchronous, plain):
            with pytest.raises(DeclarationError, match="parameter db: an async def takes"):
                compiled(function)

    def test_a_package_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def handle(event: Placed, db: AsyncSession) -> None: ...

        monkeypatch.setitem(sys.modules, "oyez.sqlalchemy", None)
        with pytest.raises(DeclarationError, match=r"pip install 'oyez\[sqlalchemy\]'"):
            compiled(handle)

    def test_a_class_of_ones_own_is_a_provided_one(self) -> None:
        async def handle(event: Placed, db: OwnSession) -> None: ...

        with pytest.raises(DeclarationError, match="asks for OwnSession, which nothing provides"):
            compiled(handle).bind({})


class TestContext:
    def _context(self, event_id: str = "1", handler: str = "pay", attempt: int = 1) -> Context:
        envelope = Envelope(id=event_id, source="/shop/orders", type="t", data=b"")
        return Context(envelope, "payments", handler, attempt, 3)

    def test_the_idempotency_key_is_of_the_event_in_the_handler(self) -> None:
        key = self._context().idempotency_key
        assert key == self._context(attempt=2).idempotency_key
        assert key != self._context(event_id="2").idempotency_key
        assert key != self._context(handler="refund").idempotency_key

    def test_the_last_attempt(self) -> None:
        assert [self._context(attempt=n).last_attempt for n in (1, 2, 3)] == [False, False, True]

    def test_replayed(self) -> None:
        assert not self._context().replayed
        envelope = Envelope(id="1", source="s", type="t", data=b"", replayed="true")
        assert Context(envelope, "payments", "pay", 1, 1).replayed
