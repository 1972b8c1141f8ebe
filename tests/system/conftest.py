"""A store of the test's own, on each kind, and the event loop of customers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from uuid import uuid4

import asyncpg
import pytest

from servers import server


def pytest_asyncio_loop_factories(
    item: pytest.Function,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """Run customers of processes that are killed on the loop that the demo runs on.

    They know a connection that dies with its server by httpx's own errors. On uvloop it raises
    others as well; see `oyez.reset`.
    """
    names = vars(item.module).values()
    if any(getattr(each, "__module__", "") == "shop" for each in names):
        return {"asyncio": asyncio.new_event_loop}
    return None


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a store that is empty, and is gone after the test."""
    if request.param == "sqlite":
        yield "sqlite:store.db"  # in the test's own folder
        return
    place, schema = server("postgresql"), f"test_{uuid4().hex[:12]}"
    yield f"{place.url}{'&' if '?' in place.url else '?'}schema={schema}"
    admin = await asyncpg.connect(place.url)
    await admin.execute(f'drop schema if exists "{schema}" cascade')
    await admin.close()
