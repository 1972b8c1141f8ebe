"""A record as a NATS message and back, by the binary mode of CloudEvents' NATS binding.

Each attribute is a header, ``ce-`` and its name, the value percent-encoded; a structured event has
its content type in ``content-type``. Two headers of our own say what these can't: ``Oyez-Key``
holds a key that is not the partition key (or else the subject) among the attributes,
``Oyez-Absent`` names what is None rather than empty, ``key`` or ``data``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

from oyez.errors import BrokerRefused
from oyez.ports import Position, Record

STRUCTURED = "application/cloudevents"
STRUCTURED_JSON = f"{STRUCTURED}+json"

_PLAIN = re.compile(r"[!#$&-~]*").fullmatch
"""Printable ASCII without space, double quote and percent, which headers carry unchanged."""
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_NAME = re.compile(r"[!-9;-~]+").fullmatch
_KEY = "oyez-key"
_ABSENT = "oyez-absent"
_TYPE = "content-type"
_BEGIN = "NATS/1.0\r\n"
_END = "\r\n\r\n"
_SERVERS = ":"
"""Stands for every header that is the server's own."""
_KINDS: dict[str, str] = {}
"""The `_kind` of headers that were met, attributes and the server's; a name holds no colon."""
_REMEMBERED = 1_024


def encode(record: Record) -> bytes:
    """The message's header without its last, empty line.

    Raises BrokerRefused for a header whose name NATS can't carry.
    """
    headers = record.headers
    parts = [_BEGIN]
    kind = headers.get("datacontenttype")
    if kind is not None and kind.startswith(STRUCTURED_JSON) and _PLAIN(kind.replace(" ", "")):
        parts.append(f"content-type: {kind}\r\n")
        headers = {name: value for name, value in headers.items() if name != "datacontenttype"}
    if _PLAIN("".join(headers.values())):
        parts += [f"{_line(name)}{value}\r\n" for name, value in headers.items()]
    else:
        parts += [f"{_line(name)}{_escape(value)}\r\n" for name, value in headers.items()]
    key = record.key
    if key is None:
        parts.append("Oyez-Absent: key\r\n")
    elif key != _usual_key(record.headers):
        parts.append(f"Oyez-Key: {_escape(key)}\r\n")
    if record.data is None:
        parts.append("Oyez-Absent: data\r\n")
    return "".join(parts).encode("ascii")


def decode(
    header: bytes, payload: bytes, stream: str, partition: int, position: Position, time: float
) -> Record:
    """Return the record of a message from any producer; never raises, for the lane to judge.

    Headers that are no attributes are left out beside attributes, and kept where there are none. An
    object without any header is structured, which the binding 1.0.2 knows alone.
    """
    try:
        text = header.decode("ascii")
    except UnicodeDecodeError:
        text = header.decode("utf-8", "backslashreplace")
    others: list[tuple[str, str]] = []
    try:
        lines = text.removeprefix(_BEGIN).removesuffix(_END).split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = {_KINDS[name]: value for name, value in pairs}
        headers.pop(_SERVERS, None)
    except (KeyError, ValueError):
        headers = _sort(text, others)
    if "%" in text or '"' in text or "  " in text or " \r" in text or "\t" in text:
        headers = {name: _unescape(value) for name, value in headers.items()}
    key = _usual_key(headers)
    data: bytes | None = payload
    if others:
        key, data = _take_in(others, headers, key, payload)
    elif not headers and payload[:1] == b"{":
        headers["datacontenttype"] = STRUCTURED_JSON
    return Record(
        stream=stream,
        key=key,
        headers=headers,
        data=data,
        partition=partition,
        position=position,
        time=time,
    )


def _sort(text: str, others: list[tuple[str, str]]) -> dict[str, str]:
    """Return the attributes among the lines, and add what else is not the server's to others."""
    headers: dict[str, str] = {}
    for line in text.split("\r\n"):
        name, colon, value = line.partition(": ")
        if not colon or ":" in name:
            name, colon, value = line.partition(":")
            if not colon:
                continue
        kind = _kind(name)
        if kind[0] != ":":
            headers[kind] = value
        elif kind != _SERVERS:
            others.append((kind, value))
            continue
        if len(_KINDS) < _REMEMBERED:
            _KINDS[name] = kind
    return headers


def last_value(header: bytes, name: str) -> str | None:
    """The last value of a header that the server adds."""
    _, found, rest = header.rpartition(f"\r\n{name}: ".encode())
    return rest.partition(b"\r\n")[0].decode(errors="replace") if found else None


def _usual_key(headers: dict[str, str]) -> str | None:
    key = headers.get("partitionkey")
    return headers.get("subject") if key is None else key


@lru_cache(maxsize=_REMEMBERED)
def _line(name: str) -> str:
    if not _NAME(name):
        raise BrokerRefused(f"NATS can't carry the header {name[:40]!r}: use letters and digits")
    return f"ce-{name}: "


@lru_cache(maxsize=_REMEMBERED)
def _kind(name: str) -> str:
    """An attribute's plain name; of another header its name behind a colon."""
    lower = name.lower()
    if lower.startswith("ce-") and len(lower) > 3:
        return lower[3:]
    if lower.startswith("nats-"):
        return _SERVERS
    return f":{lower}" if lower in (_KEY, _ABSENT, _TYPE) else f":{name}"


def _escape(value: str) -> str:
    return quote_from_bytes(value.encode("utf-8", "backslashreplace"), _SAFE)


def _unescape(value: str) -> str:
    value = value.strip(" \t")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if "%" in value:
        value = unquote_to_bytes(value).decode("utf-8", "backslashreplace")
    return value


def _take_in(
    others: list[tuple[str, str]], headers: dict[str, str], key: str | None, payload: bytes
) -> tuple[str | None, bytes | None]:
    """Key and data as other headers have them; these say the mode, and stay where they are all."""
    alone = not headers
    data: bytes | None = payload
    for kind, value in others:
        name = kind[1:]
        if name == _KEY:
            key = _unescape(value)
        elif name == _ABSENT:
            key = None if value == "key" else key
            data = None if value == "data" else data
        elif name == _TYPE:
            media = value.strip().lower()
            if value.startswith(STRUCTURED_JSON):
                headers["datacontenttype"] = value
            elif media.startswith(STRUCTURED) and not media.startswith(f"{STRUCTURED}-batch"):
                headers["datacontenttype"] = STRUCTURED_JSON
            else:
                headers.setdefault("datacontenttype", value)
        elif alone:
            headers[name] = value
    return key, data
