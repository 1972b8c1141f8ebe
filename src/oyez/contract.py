"""The data of an event: encoded, decoded, and checked strictly where it comes from outside.

Python's own parsers let through what later turns into poison: NaN, numbers that overflow to
infinity, integers that other languages can't hold, lone surrogates, NUL, duplicate keys, and
nesting that exhausts the stack. :func:`parse` refuses them at the edge, with the field's path.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any, TypeVar

import msgspec

from oyez.errors import InvalidEvent, UnknownVersion
from oyez.event import MAX_DATA, EventType

MAX_DEPTH = 64
"""Arrays and objects nested deeper than this are refused."""
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_EVERY_THIRD = re.compile(rb"[0-9]{6}")
_BAD_TEXT = re.compile("[\x00\ud800-\udfff]")
_SCHEMA = re.compile(r"urn:oyez:(?P<name>.+):(?P<version>\d{1,6})")
_PATH = re.compile(r"(?P<problem>.*?)(?: - at `(?P<path>.+)`)?", re.DOTALL)

T = TypeVar("T")


class BadJson(InvalidEvent):
    """The bytes are not JSON at all (HTTP faces answer 400, not 422)."""


def encode(kind: EventType, event: object) -> bytes:
    """The event's data as JSON, such that `parse` accepts it.

    Raises InvalidEvent, naming the field, for what other services can't read (NaN, infinity,
    integers beyond 64 bits, NUL, lone surrogates), and when the data is too large.
    """
    try:
        data = kind.encode(event)
    except (TypeError, ValueError, OverflowError) as error:
        _check_values(event)
        raise InvalidEvent("$", f"{kind.name} can't be encoded: {error}") from error
    if len(data) > MAX_DATA:
        raise InvalidEvent("$", f"{kind.name} is {len(data)} bytes; at most {MAX_DATA} are allowed")
    if b"null" in data:  # which is what NaN and infinity are encoded as
        _check_values(event)
        decode(kind, data)
    if b"\\u" in data or _holds_long_number(data):
        _check_values(event)
        parse(data, object)
    return data


def _holds_long_number(data: bytes) -> bool:
    # Of 19 digits in a row, at least six stand at every third place: a third of the search.
    return bool(_EVERY_THIRD.search(data[::3]) and _LONG_NUMBER.search(data))


def _check_values(event: object) -> None:
    """Raise InvalidEvent for the first value that JSON, or another language, can't hold."""
    dump = getattr(event, "model_dump", None)  # pydantic's
    try:
        values = msgspec.to_builtins(event) if dump is None else dump(mode="python")
    except (TypeError, ValueError, OverflowError):
        return  # its encoder says what is wrong
    _check(values, "$")


def decode(kind: EventType, data: bytes, dataschema: str | None = None) -> Any:
    """The typed event in ``data``.

    Raises UnknownVersion when ``dataschema`` names a newer version than ``kind``, and InvalidEvent,
    naming the field, when the data does not fit.
    """
    if dataschema is not None and dataschema != kind.dataschema:
        match = _SCHEMA.fullmatch(dataschema)
        if match and match["name"] == kind.name and int(match["version"]) > kind.version:
            raise UnknownVersion(
                f"{kind.name} has version {match['version']}; this service knows up to "
                f"{kind.version}: deploy it with the newer contract, then redrive"
            )
    try:
        return kind.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(error) from error


def parse(data: bytes, into: type[T]) -> T:
    """Untrusted JSON bytes as ``into`` (anything msgspec can build).

    Raises BadJson when the bytes are not one JSON value in UTF-8, and InvalidEvent, naming the
    field, when the value holds what must not enter the system or does not fit ``into``. The caller
    bounds the size of ``data``.
    """
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
    _check(value, "$")
    try:
        return msgspec.convert(value, into)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: Exception) -> InvalidEvent:
    match = _PATH.fullmatch(str(error))
    if match is None:  # pragma: no cover - the pattern matches any text
        return InvalidEvent("$", str(error))
    return InvalidEvent(match["path"] or "$", match["problem"])


def _check_depth(text: str) -> None:
    # Counting brackets first keeps the walk below off ordinary documents.
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
    """Stands in a parsed value for what is refused there, until its path is known."""

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
    # Python refuses to write out a number of thousands of digits.
    return str(number) if number.bit_length() <= 128 else f"a number of {number.bit_length()} bits"


def _check(value: object, path: str) -> None:
    if isinstance(value, str):
        if _BAD_TEXT.search(value):
            raise InvalidEvent(path, "holds NUL or half of a surrogate pair")
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(name, str) and _BAD_TEXT.search(name):
                raise InvalidEvent(path, "has a name that holds NUL or half of a surrogate pair")
            _check(item, f"{path}.{str(name)[:80]}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not isfinite(value):
            raise InvalidEvent(path, f"{value} is not a number that can be stored")
    elif isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise InvalidEvent(path, f"{_shown(value)} does not fit in 64 bits")
    elif isinstance(value, _Refused):
        raise InvalidEvent(path, value.problem)
