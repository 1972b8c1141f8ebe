"""The compiled handlers of one service, bound to what the service provides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from oyez.handler import Call, Handler


class Handlers:
    """Finds a service's handlers by name and by what they react to."""

    def __init__(self, system: str, handlers: Iterable[Handler]) -> None:
        self._system = system
        self._handlers = {handler.name: handler for handler in handlers}
        self._calls: dict[str, Call] = {}

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def __contains__(self, name: str) -> bool:
        return name in self._handlers

    def __getitem__(self, name: str) -> Handler:
        return self._handlers[name]

    def bind(self, provided: Mapping[type, object]) -> None:
        """Put what the service provides into the calls. Raises DeclarationError."""
        self._calls = {name: handler.bind(provided) for name, handler in self._handlers.items()}

    def call(self, handler: Handler) -> Call:
        """The handler with its provided parameters in place."""
        return self._calls[handler.name]

    def of(self, stream: str) -> dict[str, list[Handler]]:
        """The handlers that read the stream, by the type of event that they want."""
        table: dict[str, list[Handler]] = {}
        for handler in self:
            if handler.reads(stream, self._system):
                for kind in handler.events:
                    table.setdefault(kind.name, []).append(handler)
        return table

    def read(self, stream: str) -> bool:
        """Whether any handler reads the stream."""
        return any(handler.reads(stream, self._system) for handler in self)
