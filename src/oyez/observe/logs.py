"""Signals as log lines."""

from __future__ import annotations

import msgspec

from oyez import signals
from oyez.logger import Level, Logger

_LEVELS: dict[type[signals.Signal], Level] = {
    signals.Started: "info",
    signals.Stopped: "info",
    signals.Claimed: "debug",
    signals.Released: "debug",
    signals.ClaimLost: "warning",
    signals.EventRetried: "warning",
    signals.EventDead: "error",
    signals.EventsMissed: "error",
    signals.Stalled: "error",
    signals.Resumed: "info",
    signals.Trouble: "warning",
    signals.Unfinished: "warning",
}
_WORDS = {
    signals.EventRetried: "handler failed, will retry",
    signals.EventDead: "dead letter",
    signals.EventsMissed: "retention deleted events before they were handled",
    signals.Trouble: "trouble, will try again",
    signals.Unfinished: "not all was done before the end",
    signals.ClaimLost: "fenced: another replica owns the partition",
}


def log_signal(signal: signals.Signal) -> None:
    """Log the signal, if it is one for people."""
    kind = type(signal)
    level = _LEVELS.get(kind)
    if level is None:
        return
    event = _WORDS.get(kind, kind.__name__.lower())
    Logger().write(level, event, msgspec.structs.asdict(signal))
