"""What must hold, as users and the simulation itself state it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

Check = Callable[[], "bool | Awaitable[bool | None] | None"]
"""What must hold: it fails when it returns False or raises, and returns None or True otherwise."""


async def fault_of(check: Check) -> str:
    """Return why a check does not hold; empty if it does."""
    try:
        found = check()
        if inspect.isawaitable(found):
            found = await found
    except Exception as error:  # noqa: BLE001 - a check may raise anything
        return f"{name_of(check)}: {said(error)}"
    return f"{name_of(check)} does not hold" if found is False else ""


def fault_now(check: Check) -> str:
    """Return why a check does not hold that only looks and never waits; empty if it does."""
    coroutine = fault_of(check)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return str(stop.value)
    coroutine.close()
    return f"{name_of(check)}: an `always` may only look, never wait"


def name_of(check: Check) -> str:
    """Return the name of a check, for messages."""
    return getattr(check, "__name__", repr(check))


def said(error: Exception) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
