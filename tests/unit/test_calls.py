"""What is a handler's timeout, and what is a ``TimeoutError`` of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import FakeStore
from parts import Placed

from oyez import Service
from oyez.ambient import SystemAmbient
from oyez.errors import HandlerTimeout
from oyez.runtime.calls import Calls
from oyez.runtime.handlers import Handlers
from oyez.transaction import Announcer, Origin, Transaction, UnitOfWork


class Still(SystemAmbient):
    """A clock by which each timer fires early; those of uvloop do, by up to a millisecond."""

    def monotonic(self) -> float:
        return 0.0


async def perform(service: Service) -> None:
    ambient = Still()
    handlers = Handlers("shop", service.name, service.handlers)
    handlers.bind({})
    unit = UnitOfWork(FakeStore(), Announcer("shop", service.name, ambient))
    with ThreadPoolExecutor(1) as threads:
        await Calls(handlers, ambient, threads).perform(
            handlers["take"], Placed(order="1"), Transaction(unit, Origin(), None), None
        )


@pytest.mark.parametrize("timeout", [5.0, None])
async def test_a_timeout_error_of_a_handler_is_its_own(timeout: float | None) -> None:
    service, blocking = Service("desk"), Service("desk")

    @service.on(Placed, timeout=timeout)
    async def take(event: Placed) -> None:
        await asyncio.sleep(0)
        raise TimeoutError("the bank's")

    @blocking.on(Placed, name="take", timeout=timeout)
    def take_blocking(event: Placed) -> None:
        raise TimeoutError("the bank's")

    for each in (service, blocking):
        with pytest.raises(TimeoutError, match="the bank's"):
            await perform(each)


async def test_a_timer_that_fires_early_is_a_timeout_all_the_same() -> None:
    service = Service("desk")

    @service.on(Placed, timeout=0.01)
    async def take(event: Placed) -> None:
        await asyncio.Event().wait()

    with pytest.raises(HandlerTimeout, match="did not end"):
        await perform(service)
