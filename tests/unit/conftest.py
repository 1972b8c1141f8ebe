"""Which event loop a unit test runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
from parts import Parts

from oyez.testing import VirtualAmbient, running

VIRTUAL = {id(each) for each in (VirtualAmbient, running, Parts)}


def pytest_asyncio_loop_factories(
    item: pytest.Function,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """Run modules with a virtual clock on asyncio's own loop, the others as all tests.

    It alone tells the clock when nothing is left to do; on uvloop the clock can only yield hundreds
    of times before it moves, and hope.
    """
    if VIRTUAL.isdisjoint(map(id, vars(item.module).values())):
        return None
    return {"asyncio": asyncio.new_event_loop}
