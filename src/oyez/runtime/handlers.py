"""The compiled handlers of one service, bound to what the service provides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from oyez.event import describe
from oyez.handler import Call, Handler
from oyez.timers import MADE_HERE, Timer


class Handlers:
    """The handlers of a service, by name and by stream."""

    def __init__(self, system: str, service: str, handlers: Iterable[Handler]) -> None:
        self.service = service
        """The name of the service."""
        self._system = system
        self._handlers = {handler.name: handler for handler in handlers}
        self._calls: dict[str, Call] = {}
        self._read: dict[str, bool] = {}
        self.keep_state = any(handler.states for handler in self)
        """Whether any of them has keyed state."""
        self.timed = {
            state.kind.name: handler
            for handler in self
            if describe(Timer) in handler.events
            for state in handler.states
        }
        """The handler of the timers of each kind."""
        self.schedules = {
            handler.name: handler.schedule for handler in self if handler.schedule is not None
        }
        """The schedules, by their name, which is that of their handler."""

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def __contains__(self, name: str) -> bool:
        return name in self._handlers

    def __getitem__(self, name: str) -> Handler:
        return self._handlers[name]

    def bind(self, provided: Mapping[type, object]) -> None:
        """Bind the values that the service provides. Raises DeclarationError."""
        self._calls = {name: handler.bind(provided) for name, handler in self._handlers.items()}

    def call(self, handler: Handler) -> Call:
        """Return the call of a handler, with its provided parameters bound."""
        return self._calls[handler.name]

    def of(self, stream: str) -> dict[str, list[Handler]]:
        """Return the handlers that read the stream, by event type.

        Timers are not among them: they are events of the service itself.
        """
        table: dict[str, list[Handler]] = {}
        for handler in self:
            if handler.subscribes(stream, self._system):
                for kind in handler.events:
                    if kind.name in MADE_HERE:
                        continue
                    table.setdefault(kind.name, []).append(handler)
        return table

    def read(self, stream: str) -> bool:
        """Return whether any handler reads the stream."""
        found = self._read.get(stream)
        if found is None:  # asked of every stream of the broker, twice a second
            found = any(handler.subscribes(stream, self._system) for handler in self)
            self._read[stream] = found
        return found
