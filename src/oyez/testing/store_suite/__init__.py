"""Holds a store to `oyez.ports.Store` and to guarantees G1, G2 and G3.

::

    class TestMyStore(StoreSuite):
        def make(self, tmp_path):
            return lambda: MyStore("localhost:1234", SystemAmbient())

A test is skipped only for a capability that the store itself declares not to have. Needs pytest and
pytest-asyncio. Its own statements are plain SQL; `binary` and `big` name two column types.
"""

from __future__ import annotations

from oyez.testing.store_suite.database import Factory
from oyez.testing.store_suite.letters import Letters
from oyez.testing.store_suite.lifetime import Lifetime
from oyez.testing.store_suite.outbox import Outbox
from oyez.testing.store_suite.ownership import Ownership
from oyez.testing.store_suite.parked import ParkedEvents
from oyez.testing.store_suite.state import KeyedState
from oyez.testing.store_suite.transactions import Transactions

__all__ = ["Factory", "StoreSuite"]


class StoreSuite(Transactions, Outbox, Letters, KeyedState, ParkedEvents, Ownership, Lifetime):
    """Subclass it under a name that begins with ``Test`` and override `make`."""
