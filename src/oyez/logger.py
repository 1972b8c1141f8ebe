"""Log lines on standard error: what happened, and fields beside it.

A line that is written within a call of a handler, or a request, has its ``trace_id`` and
``span_id``.

A module of its own: of the libraries for lines with fields, structlog loads more code than all of
Oyez, among it the terminal library rich, and no process starts in time and memory with that.
"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import UTC, datetime
from typing import Final, Literal

from oyez.spans import here

Style = Literal["console", "json"]
"""``console`` for people, ``json`` for machines."""
Level = Literal["debug", "info", "warning", "error"]

_LEVELS: Final = ("debug", "info", "warning", "error")
_COLOURS: Final = {"debug": 36, "info": 32, "warning": 33, "error": 31}
_style: Style = "console"
_least = _LEVELS.index("info")


def configure(style: Style, level: Level = "info") -> None:
    """Choose the style of all lines of this process, and the lowest level that is written."""
    global _style, _least
    _style, _least = style, _LEVELS.index(level)


class Logger:
    """Writes lines that have its fields, and those of each call.

    A value of a field may be anything: in JSON, what JSON does not know is its ``repr``.
    """

    __slots__ = ("_fields",)

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def bind(self, **fields: object) -> Logger:
        """Return a logger with further fields."""
        return Logger(**{**self._fields, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """Write a line that is of use only to who looks for a fault."""
        self.write("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Write a line about what happens as it should."""
        self.write("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Write a line about what people should look at when it goes on."""
        self.write("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Write a line about what people should look at."""
        self.write("error", event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Write an error with the traceback of the exception that is being handled."""
        self.write("error", event, {**fields, "exception": traceback.format_exc().rstrip()})

    def write(self, level: Level, event: str, fields: dict[str, object]) -> None:
        """Write a line of a level, unless it is below the lowest."""
        if _LEVELS.index(level) < _least:
            return
        time = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        render = _as_json if _style == "json" else _as_text
        if (traced := here.get()) is not None:
            own = traced.traceparent
            fields = {"trace_id": own[3:35], "span_id": own[36:52], **fields}
        # Looked up for each line, so that a replaced stream is used; one write, so that the lines
        # of several threads stay whole.
        sys.stderr.write(render(time, level, event, {**self._fields, **fields}) + "\n")
        sys.stderr.flush()


def _as_json(time: str, level: Level, event: str, fields: dict[str, object]) -> str:
    line = {**fields, "event": event, "level": level, "timestamp": time}
    return json.dumps(line, default=repr)


def _as_text(time: str, level: Level, event: str, fields: dict[str, object]) -> str:
    colours = sys.stderr.isatty()

    def paint(text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if colours else text

    exception = fields.pop("exception", None)
    shown = " ".join(
        f"{paint(name, 36)}={paint(_printable(fields[name]), 35)}" for name in sorted(fields)
    )
    head = f"{paint(time, 2)} [{paint(f'{level:<9}', _COLOURS[level])}] {paint(f'{event:<30}', 1)}"
    line = f"{head} {shown}".rstrip()
    return line if exception is None else f"{line}\n{exception}"


def _printable(value: object) -> str:
    """Return the value so that it can't control a terminal."""
    text = str(value)
    return text if text.isprintable() else json.dumps(text)
