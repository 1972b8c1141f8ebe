"""The data of an event: encoded, decoded, and parsed strictly where it comes from outside."""

from __future__ import annotations

import re
from typing import Any, TypeVar, cast

import msgspec

from oyez import strict_json
from oyez.errors import InvalidEvent, UnknownVersion
from oyez.event import MAX_DATA, EventType, describe, is_event

_DIGITS = b"0123456789"
_LONG = 19
"""Digits of the smallest integer beyond 64 bits."""
_long_number = re.compile(rb"[0-9]{%d}" % _LONG).search
_six_digits = re.compile(rb"[0-9]{6}").search
_SCHEMA = re.compile(r"urn:oyez:(?P<name>.+):(?P<version>\d{1,6})")
_PATH = re.compile(r"(?P<problem>.*?)(?: - at `(?P<path>.+)`)?", re.DOTALL)

T = TypeVar("T")


def encode(kind: EventType, event: object) -> bytes:
    """Return the event's data as JSON, such that `parse` accepts it.

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
    # Both searches are spared by a byte that is missing, or by too few digits in all; and of 19
    # digits in a row, at least six are at every third place: a third of the search.
    if (0x5C in data and b"\\u" in data) or (
        len(data) - len(data.translate(None, _DIGITS)) >= _LONG
        and _six_digits(data[::3])
        and _long_number(data)
    ):
        _check_values(event)
        strict_json.read(data)
    return data


def _check_values(event: object) -> None:
    """Raise InvalidEvent for the first value that JSON, or another language, can't hold."""
    dump = getattr(event, "model_dump", None)  # pydantic's
    try:
        values = msgspec.to_builtins(event) if dump is None else dump(mode="python")
    except (TypeError, ValueError, OverflowError):
        return  # its encoder names the error
    strict_json.check(values)


def decode(kind: EventType, data: bytes, dataschema: str | None = None) -> Any:
    """Return the typed event in ``data``.

    Data whose ``dataschema`` names an older version than ``kind`` goes through its upcasts first.
    Raises UnknownVersion for a newer one, and InvalidEvent, naming the field, when the data does
    not fit.
    """
    if dataschema is not None and dataschema != kind.dataschema:
        match = _SCHEMA.fullmatch(dataschema)
        if match and match["name"] == kind.name:
            version = int(match["version"])
            if version > kind.version:
                raise UnknownVersion(
                    f"{kind.name} has version {version}; this service knows up to "
                    f"{kind.version}: deploy it with the newer contract, then redrive"
                )
            if kind.upcasts:
                data = _upcast(kind, data, version)
    try:
        return kind.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(error) from error


def _upcast(kind: EventType, data: bytes, version: int) -> bytes:
    """Return data of an older version as the class expects it."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(error) from error
    for since in sorted(each for each in kind.upcasts if each >= version):
        if not isinstance(value, dict):
            raise InvalidEvent("$", f"is to be upcast from version {since}: expected an object")
        try:
            value = kind.upcasts[since](value)
        except Exception as error:  # a function of the user's may raise anything
            problem = f"can't be upcast from version {since}: {type(error).__name__}: {error}"
            raise InvalidEvent("$", problem) from error
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEvent("$", f"can't be encoded after its upcast: {error}") from error


def parse(kind: type[T], data: bytes, *, most: int = MAX_DATA) -> T:
    """Return the ``kind`` that untrusted JSON bytes hold, such as the body of a request.

    ``kind`` is an event class or whatever msgspec can build: a Struct, a dataclass, an attrs class,
    ``dict[str, int]``, ``object``. Raises `oyez.errors.BadJson` when the bytes are not one JSON
    value in UTF-8. Raises InvalidEvent, naming the field, when they are more than ``most``, when
    they hold what must not enter the system (NaN and infinity, integers beyond 64 bits, NUL, lone
    surrogates, duplicate names, nesting deeper than 64), and when they do not fit ``kind``. Length
    and depth are bounded before anything is parsed.
    """
    value = strict_json.read(data, most=most)
    if is_event(kind):
        return cast(T, decode(describe(kind), data))
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: Exception) -> InvalidEvent:
    match = _PATH.fullmatch(str(error))
    if match is None:  # pragma: no cover - the pattern matches any text
        return InvalidEvent("$", str(error))
    return InvalidEvent(match["path"] or "$", match["problem"])
