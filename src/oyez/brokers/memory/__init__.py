"""A broker in the memory of one process, for tests and simulations. Nothing outlives it."""

from __future__ import annotations

from oyez.brokers.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
