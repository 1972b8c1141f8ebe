"""A store of the test's own, on each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from servers import server


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
