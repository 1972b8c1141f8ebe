"""The form of times, payloads and untrusted text, in JSON and for people."""

from __future__ import annotations

import base64
from typing import Any

from oyez import strict_json
from oyez.envelope import format_time
from oyez.errors import InvalidEvent


def escape(value: object, *, lines: bool = False) -> str:
    """Return the text with control characters escaped, so that no payload can control a terminal.

    ``lines`` keeps line feeds and tabs.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or (lines and char in "\n\t")
        else char.encode("unicode_escape").decode()
        for char in text
    )


def utc_time(seconds: float | None) -> str | None:
    """Return a time (seconds since 1970) as RFC 3339."""
    return None if seconds is None else format_time(seconds)


def span(seconds: float) -> str:
    """Return a duration in a suitable unit: 12 ms, 3.4 s, 5 min, 2.0 d."""
    for limit, divisor, unit in ((1, 0.001, "ms"), (120, 1, "s"), (7200, 60, "min"),
                                 (172_800, 3600, "h")):  # fmt: skip
        if abs(seconds) < limit:
            value = seconds / divisor
            return (
                f"{value:.1f} {unit}" if unit == "s" and abs(value) < 10 else f"{value:.0f} {unit}"
            )
    return f"{seconds / 86_400:.1f} d"


def payload_json(data: bytes | None) -> dict[str, Any]:
    """Return the JSON member for an event's data, named as in CloudEvents.

    ``data`` is the JSON value, or null without data; ``data_base64`` is any other data.
    """
    if data is None:
        return {"data": None}
    try:
        return {"data": strict_json.read(data)}
    except InvalidEvent:
        return {"data_base64": base64.b64encode(data).decode()}
