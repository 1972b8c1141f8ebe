"""Untrusted JSON, read strictly.

Python's own parsers accept values that fail later: NaN, numbers that overflow to infinity, integers
that other languages can't represent, lone surrogates, NUL, duplicate keys, and nesting that
exhausts the stack. `read` refuses them with the field's path.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

from oyez.errors import BadJson, InvalidEvent

MAX_DEPTH = 64
"""Arrays and objects nested deeper than this are refused."""
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_BAD_TEXT = re.compile("[\x00\ud800-\udfff]")


def read(data: bytes, *, most: int | None = None) -> object:
    """Return the JSON value in ``data``.

    Raises BadJson when the bytes are not one JSON value in UTF-8, and InvalidEvent, naming the
    field, when the value contains one of the above, is nested deeper than ``MAX_DEPTH`` or longer
    than ``most`` bytes. Length and depth are checked before anything is parsed.
    """
    if most is not None and len(data) > most:
        raise InvalidEvent("$", f"is {len(data)} bytes; at most {most} are allowed")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadJson("$", f"is not UTF-8: byte {error.start} is invalid") from error
    _check_depth(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise BadJson(
            "$", f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    check(value)
    return value


def check(value: object, path: str = "$") -> None:
    """Raise InvalidEvent for the first part of a value that JSON, or another language, can't hold.

    ``path`` is the path of the value.
    """
    if isinstance(value, str):
        if _BAD_TEXT.search(value):
            raise InvalidEvent(path, "holds NUL or half of a surrogate pair")
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(name, str) and _BAD_TEXT.search(name):
                raise InvalidEvent(path, "has a name that holds NUL or half of a surrogate pair")
            check(item, f"{path}.{str(name)[:80]}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not isfinite(value):
            raise InvalidEvent(path, f"{value} is not a number that can be stored")
    elif isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise InvalidEvent(path, f"{_shown(value)} does not fit in 64 bits")
    elif isinstance(value, _Refused):
        raise InvalidEvent(path, value.problem)


def _check_depth(text: str) -> None:
    # Counting brackets is enough for ordinary documents, and faster than the walk below.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    inside = escaped = False
    for char in text:
        if inside:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside = False
        elif char == '"':
            inside = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidEvent("$", f"is nested deeper than {MAX_DEPTH} levels")
        elif char in "]}":
            depth -= 1


class _Refused:
    """A placeholder in a parsed value for a refused part, until its path is known."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


def _unique(pairs: list[tuple[str, Any]]) -> object:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return _Refused(f"has the name {name[:80]!a} twice")
        seen.add(name)
    return found


def _no_constant(name: str) -> object:
    return _Refused(f"{name} is not a number that can be stored")


def _finite(text: str) -> object:
    value = float(text)
    return value if isfinite(value) else _Refused(f"{text[:40]} is too large a number")


def _integer(text: str) -> object:
    if len(text) > 20 or not _INT_MIN <= (value := int(text)) <= _INT_MAX:
        return _Refused(f"{text[:40]} does not fit in 64 bits")
    return value


def _shown(number: int) -> str:
    # Python refuses to format a number of thousands of digits.
    return str(number) if number.bit_length() <= 128 else f"a number of {number.bit_length()} bits"
