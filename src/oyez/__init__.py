"""Oyez: event-driven microservices for Python.

The public names. `oyez.testing` has the test harness, `oyez.errors` every error.
"""

from oyez.contract import parse
from oyez.errors import InvalidEvent, OyezError, RetryLater
from oyez.event import Command, Event, event, upcast
from oyez.handler import Retry
from oyez.parameters import Context
from oyez.personal import Personal
from oyez.principal import Principal, caller
from oyez.saga import Saga
from oyez.schedule import Tick
from oyez.service import Service
from oyez.state import State, migrates
from oyez.transaction import After, Transaction
from oyez.view import GONE, Gone, View, applies
from oyez.window import Window

__all__ = [
    "GONE",
    "After",
    "Command",
    "Context",
    "Event",
    "Gone",
    "InvalidEvent",
    "OyezError",
    "Personal",
    "Principal",
    "Retry",
    "RetryLater",
    "Saga",
    "Service",
    "State",
    "Tick",
    "Transaction",
    "View",
    "Window",
    "applies",
    "caller",
    "event",
    "migrates",
    "parse",
    "upcast",
]
