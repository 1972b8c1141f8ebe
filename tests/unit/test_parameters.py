"""A kind of parameter that another package adds: recognized, checked, filled and closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import pytest

from oyez import Context, Event, Service, Transaction, parameters
from oyez.errors import DeclarationError
from oyez.handler import compile_handler
from oyez.parameters import Declared, Made, Opened, Parameter, Source, register
from oyez.testing import running

T = TypeVar("T")


class Placed(Event, type="test.parameters.placed", key="order"):
    order: str


class Tenant:
    def __init__(self, name: str) -> None:
        self.name = name


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []


class Boxed(Generic[T]):
    pass


class TenantParameter(Parameter):
    """The tenant, by the event's key."""

    word = "tenant"
    contextual = True

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        return declared.annotation is Tenant

    def check(self, siblings: Sequence[Parameter]) -> None:
        if self.declared.name != "tenant":
            raise self.declared.error("a Tenant is called tenant")

    def source(self, provided: Mapping[type, object]) -> Source:
        def make(event: Placed, tx: Transaction, context: Context | None) -> Tenant:
            assert context is not None
            return Tenant(f"{event.order} in {context.service}")

        return Made(make)


LOG = Log()


class LogParameter(Parameter):
    """A log that is opened around the call, in its transaction."""

    word = "log"
    transactional = True

    @classmethod
    def takes(cls, declared: Declared) -> bool:
        return declared.annotation is Log

    def source(self, provided: Mapping[type, object]) -> Source:
        return Opened(self._open if self.declared.blocking else self._open_async)

    @contextmanager
    def _open(self, tx: Transaction) -> Iterator[Log]:
        tx.execute("insert into noted values (:name)", name=self.declared.name)
        try:
            yield LOG
        finally:
            LOG.lines.append("closed")

    @asynccontextmanager
    async def _open_async(self, tx: Transaction) -> AsyncIterator[Log]:
        with self._open(tx) as log:
            yield log


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "_kinds", [*parameters._kinds])
    LOG.lines.clear()
    register(TenantParameter)
    register(LogParameter)


def test_it_says_what_the_handler_needs() -> None:
    def tenant(event: Placed, tenant: Tenant) -> None: ...
    def log(event: Placed, log: Log) -> None: ...
    def wrong(event: Placed, who: Tenant) -> None: ...

    handler = compile_handler(tenant, [Placed], service="orders")
    assert handler.layout == ("event", "tenant")
    assert (handler.transactional, handler.needs_context) == (False, True)
    handler = compile_handler(log, [Placed], service="orders")
    assert (handler.transactional, handler.needs_context) == (True, False)
    with pytest.raises(DeclarationError, match=r"wrong: parameter who: a Tenant is called tenant"):
        compile_handler(wrong, [Placed], service="orders")


def test_an_annotation_of_no_kind_is_refused() -> None:
    def handle(event: Placed, what: Boxed[int]) -> None: ...

    with pytest.raises(
        DeclarationError, match=r"what: expected the event, .* found .*Boxed\[int\]"
    ):
        compile_handler(handle, [Placed], service="orders")


async def test_it_is_filled_and_closed_around_every_kind_of_function() -> None:
    service = Service("orders")
    seen: list[Any] = []

    @service.on(Placed)
    async def awaits(event: Placed, tenant: Tenant, log: Log) -> None:
        seen.append(("awaits", tenant.name, log, len(log.lines)))

    @service.on(Placed)
    def blocks(tenant: Tenant, log: Log, event: Placed) -> None:
        seen.append(("blocks", tenant.name, log, len(log.lines)))

    @service.on(Placed)
    async def streams(log: Log, event: Placed) -> AsyncIterator[None]:
        yield None
        seen.append(("streams", event.order, log, len(log.lines)))

    @service.on(Placed)
    def yields(log: Log, event: Placed) -> Iterator[None]:
        yield None
        seen.append(("yields", event.order, log, len(log.lines)))

    async with running(service) as system:
        async with service.transaction() as tx:
            tx.execute("create table noted (name text)")
        await system.publish(Placed(order="1"))
        await system.settled()
        assert seen == [
            ("awaits", "1 in orders", LOG, 0),
            ("blocks", "1 in orders", LOG, 1),
            ("streams", "1", LOG, 2),
            ("yields", "1", LOG, 3),
        ]
        assert LOG.lines == ["closed"] * 4
        assert await system.fetch("orders", "select name from noted") == [{"name": "log"}] * 4
