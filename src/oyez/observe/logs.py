"""Signals as log lines: structlog, coloured on a terminal, JSON for machines."""

from __future__ import annotations

import logging
import sys

import msgspec
import structlog

from oyez import signals

_LEVELS: dict[type[signals.Signal], str] = {
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
}
_WORDS = {
    signals.EventRetried: "handler failed, will retry",
    signals.EventDead: "dead letter",
    signals.EventsMissed: "retention deleted events before they were handled",
    signals.Trouble: "trouble, will try again",
    signals.ClaimLost: "fenced: another replica owns the partition",
}


def configure(style: str, level: str = "info") -> None:
    """Send log lines to standard error as ``console`` (for people) or ``json``."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=_to_stderr,
    )


def _to_stderr(*_: object) -> structlog.WriteLogger:
    # Looked up for each logger, not once, so that a replaced stream is used.
    return structlog.WriteLogger(sys.stderr)


def log_signal(signal: signals.Signal) -> None:
    """Log the signal, if it is one for people."""
    kind = type(signal)
    level = _LEVELS.get(kind)
    if level is None:
        return
    logger = structlog.get_logger()
    getattr(logger, level)(
        _WORDS.get(kind, kind.__name__.lower()), **msgspec.structs.asdict(signal)
    )
