"""The world outside of a system: what handlers call, which may act before it fails.

``outside(FakeProvider)`` stands for one fake of a payment provider, say, which all nodes of a run
share. A call of it may fail before it has taken effect or after, take long, and be where its caller
dies; after a crash or a lost answer the handler calls again.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from oyez.simulation.world import Node
from oyez.spans import here
from oyez.transaction import Transaction

T = TypeVar("T")

MOST = 2
"""The limit of failures in a row of one function: a handler with few attempts is heard too."""


class Outside(Generic[T]):
    """What makes a fake for each run, and how its failures look."""

    def __init__(self, make: Callable[[], T], raises: Callable[[str], Exception]) -> None:
        self.make = make
        self.raises = raises


def outside(make: Callable[[], T], *, raises: Callable[[str], Exception] = ConnectionError) -> Any:
    """Return the outside that ``make``, a class or function, is a fake of; for ``provide``.

    ``raises`` makes the exception, from a text, that its callers see of a failure.
    """
    return Outside(make, raises)


class Calls:
    """The outward calls of one run, by the event that was handled."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        """Calls that were repeated for the same event with other arguments."""
        self._made: dict[tuple[str, ...], tuple[object, str]] = {}
        self._failures: dict[tuple[str, str], int] = {}

    def may_fail(self, service: str, name: str) -> bool:
        """Return whether a function may fail again."""
        return self._failures.get((service, name), 0) < MOST

    def note_failure(self, service: str, name: str, failed: bool) -> None:
        """Count the failures in a row of a function."""
        self._failures[service, name] = self._failures.get((service, name), 0) + 1 if failed else 0

    def note(self, node: Node, name: str, place: str, arguments: str) -> None:
        """Note a call that takes effect."""
        doing = here.get()
        if not isinstance(doing, Transaction) or doing.cause is None:
            return
        key = (node.service, doing.cause, name, place)
        attempt, before = self._made.setdefault(key, (doing, arguments))
        if attempt is not doing and before != arguments:
            self.repeated.append(
                f"{node.service} called {name}({before}), and after a crash or a failure "
                f"{name}({arguments}) for the same event: derive the key from the event "
                "(`Context.idempotency_key`)"
            )


class Proxy:
    """The outside as one node sees it."""

    def __init__(
        self, node: Node, fake: Callable[[], object], spec: Outside[Any], calls: Calls
    ) -> None:
        """``fake`` returns that of the run."""
        self._node = node
        self._fake = fake
        self._spec = spec
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fake(), name)
        if not inspect.iscoroutinefunction(found):
            return found
        return partial(self._call, name, found)

    def _call(self, name: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        code = sys._getframe(1)
        place = f"{code.f_code.co_qualname if hasattr(code.f_code, 'co_qualname') else ''}"
        return self._made(name, function, f"{place}:{code.f_lineno}", args, named)

    async def _made(
        self,
        name: str,
        function: Callable[..., Any],
        place: str,
        args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        node, calls = self._node, self._calls
        whole = f"{type(self._fake()).__name__}.{name}"
        shown = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in named.items())])

        async def work() -> Any:
            calls.note(node, whole, place, shown)
            answer = await function(*args, **named)
            node.world.tell(node.name, f"{whole}({shown[:80]}) took effect")
            node.world.stir(node.service)
            return answer

        def raised(text: str) -> Exception:
            calls.note_failure(node.service, whole, True)
            return self._spec.raises(text)

        if not calls.may_fail(node.service, whole):
            calls.note_failure(node.service, whole, False)
            await asyncio.sleep(0)
            return await work()
        answer = await node.call("outside", f"{whole}({shown[:80]})", work, raised)
        calls.note_failure(node.service, whole, False)
        return answer
