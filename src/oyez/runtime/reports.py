"""The signals and the spans of one running service."""

from __future__ import annotations

from oyez.errors import OyezError
from oyez.runtime.retry import describe_traceback
from oyez.signals import HandlerCalled, Listener, Signal, Signals, Trouble, Unfinished
from oyez.spans import Tracer


class Reports:
    """The sender of one service's signals; ``tracer`` records its spans, if they are recorded."""

    def __init__(self, service: str, signals: Signals, tracer: Tracer | None = None) -> None:
        self.service = service
        self.tracer = tracer
        self._signals = signals

    @property
    def calls(self) -> bool:
        """Whether there are listeners to calls of handlers."""
        return self._signals.calls

    @property
    def heard(self) -> bool:
        """Whether there are listeners at all."""
        return self._signals.heard

    def listen(self, listener: Listener, *, calls: bool = False) -> None:
        """Add a listener for the signals from now on; see `Signals.listen`."""
        self._signals.listen(listener, calls=calls)

    def leave(self, listener: Listener) -> None:
        """Remove a listener."""
        self._signals.leave(listener)

    def emit_call(self, signal: HandlerCalled) -> None:
        """Send a call to the listeners to calls."""
        self._signals.emit_call(signal)

    def emit(self, signal: Signal) -> None:
        """Send a signal to all listeners."""
        self._signals.emit(signal)

    def trouble(self, part: str, error: Exception) -> None:
        """Report an error after which ``part`` will retry."""
        if self.heard:
            self.emit(Trouble(service=self.service, part=part, error=_text(error)))

    def unfinished(self, part: str, error: Exception) -> None:
        """Report what kept ``part`` of a drain from being done."""
        if self.heard:
            self.emit(Unfinished(service=self.service, part=part, error=_text(error)))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, OyezError) else describe_traceback(error)
