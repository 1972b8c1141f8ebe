"""The forms in which CloudEvents go over HTTP: binary, structured, batched, and by the line.

*Binary*: one event, its attributes as headers ``ce-…``, its data as the body. *Structured*: one
event as a JSON object, ``application/cloudevents+json``. *Batched*: an array of those,
``application/cloudevents-batch+json``. *Lines*: one of those on each line,
``application/x-ndjson``, which is no form of the specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec

from oyez import strict_json
from oyez.envelope import STRUCTURED, Envelope, is_json, open_record
from oyez.errors import InvalidEvent, NotEvents

Fields = Mapping[bytes, Sequence[bytes]]
"""The headers of a request or an answer: the values of each, by its name in lower case."""

BATCHED = "application/cloudevents-batch+json"
LINES = "application/x-ndjson"
FORMS = f"{STRUCTURED}, {BATCHED}, {LINES}"

_PREFIX = b"ce-"
_CHARSET = re.compile(r'charset="?utf-?8"?', re.IGNORECASE)
_ESCAPED = re.compile(r"\\(.)")
_PLAIN = re.compile(r"[\x21\x23\x24\x26-\x7e]*")
_SAFE = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
_NAME = re.compile(rb"ce-[a-z0-9]{1,20}")
_ITSELF = "application/cloudevents"
_INSIDE = {"content-type": STRUCTURED}
_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Arrived(NamedTuple):
    """One event as it came: attributes that are headers, and its data, or the event as a whole."""

    headers: Mapping[str, str]
    body: bytes
    structured: bool


def are_events(fields: Fields) -> bool:
    """Return whether the headers say that the body is an event, or several."""
    given = fields.get(b"content-type", (b"",))[0].lower()
    media = given.partition(b";")[0].strip().decode("latin-1")
    return media.startswith(_ITSELF) or any(name.startswith(_PREFIX) for name in fields)


def binary(envelope: Envelope) -> dict[str, str]:
    """Return the headers of an event in binary form; its data is the body."""
    attributes = envelope.headers()
    kind = attributes.pop("datacontenttype")
    found = {f"ce-{name}": _escape(value) for name, value in attributes.items()}
    found["content-type"] = kind
    return found


def read_forms(fields: Fields, body: bytes) -> Sequence[Arrived]:
    """Return the events of a request or an answer, in order, not looked into yet.

    Raises NotEvents (400, 415, 422) for what is no form of CloudEvents, and InvalidEvent for
    headers that are no attributes of one.
    """
    media = _media(fields)
    if media in (BATCHED, LINES):
        if any(name.startswith(_PREFIX) for name in fields):
            raise NotEvents(400, "two_forms", "headers ce-… are for one event, in binary form")
        parts = _elements(body) if media == BATCHED else filter(bytes.strip, body.split(b"\n"))
        return [Arrived(_INSIDE, bytes(each), True) for each in parts]
    headers = _attributes(fields)
    if media == STRUCTURED:
        return [Arrived({**headers, **_INSIDE}, body, True)]
    given = _first(fields, b"content-type")
    if given is not None and headers.setdefault("datacontenttype", given) != given:
        raise InvalidEvent("datacontenttype", "differs between its header and Content-Type")
    return [Arrived(headers, body, False)]


def open_arrived(arrived: Arrived) -> Envelope:
    """Return the envelope of an event as it came, read strictly. Raises InvalidEvent.

    The field of an error is the attribute, or begins with ``data``.
    """
    encoded = not arrived.structured
    if arrived.structured:
        try:
            whole = strict_json.read(arrived.body)
        except InvalidEvent as error:
            raise type(error)(error.field.removeprefix("$."), error.problem) from error
        encoded = isinstance(whole, dict) and "data_base64" in whole
    else:
        _refuse_events_inside(arrived.headers.get("datacontenttype", ""))
    envelope = open_record(arrived.headers, arrived.body)
    _refuse_events_inside(envelope.datacontenttype)
    if encoded and envelope.data and is_json(envelope.datacontenttype):
        read_data(envelope.data)
    return envelope


def read_data(data: bytes) -> object:
    """Return the JSON value in the data of an event, read strictly. Raises InvalidEvent."""
    try:
        return strict_json.read(data)
    except InvalidEvent as error:
        raise type(error)(data_field(error.field), error.problem) from error


def data_field(path: str) -> str:
    """Return the path of a field of the event from that in its data, such as ``$.cents``."""
    return f"data{path.removeprefix('$')}"


def _media(fields: Fields) -> str:
    """Return the media type of the body, which is a form of CloudEvents, or has headers of one.

    It may be empty, with such headers.
    """
    given = fields.get(b"content-type", ())
    if len(given) > 1:
        raise NotEvents(400, "bad_content_type", "there is more than one Content-Type")
    media, *parameters = (_first(fields, b"content-type") or "").split(";")
    media = media.strip().lower()
    if media in (STRUCTURED, BATCHED, LINES):
        for each in parameters:
            if "charset" in each.lower() and not _CHARSET.fullmatch(each.strip()):
                raise NotEvents(415, "bad_charset", "events are accepted in UTF-8 only")
    elif media.startswith(_ITSELF) or not any(n.startswith(_PREFIX) for n in fields):
        detail = f"send an event with headers ce-…, or one of {FORMS}"
        raise NotEvents(415, "not_an_event", detail)
    return media


def _refuse_events_inside(kind: str) -> None:
    # Readers would take the event inside for this one, with attributes that nobody has checked.
    if kind.strip().lower().startswith(_ITSELF):
        raise InvalidEvent("datacontenttype", "is that of an event; the data of one is not another")


def _attributes(fields: Fields) -> dict[str, str]:
    """Return the attributes that are headers. Raises InvalidEvent."""
    found = {}
    for field, values in fields.items():
        if field.startswith(_PREFIX):
            name = field[len(_PREFIX) :].decode("latin-1")
            if not _NAME.fullmatch(field):
                problem = "is no attribute name: 1 to 20 of a-z and 0-9 are allowed"
                raise InvalidEvent(name[:40], problem)
            if len(values) > 1:
                raise InvalidEvent(name, "is given more than once")
            found[name] = _unescape(name, values[0])
    return found


def _first(fields: Fields, name: bytes) -> str | None:
    given = fields.get(name)
    return given[0].decode("latin-1") if given else None


def _escape(value: str) -> str:
    """Return an attribute's value as its header; see `_unescape`."""
    return value if _PLAIN.fullmatch(value) else quote(value, safe=_SAFE)


def _unescape(name: str, value: bytes) -> str:
    """Return an attribute's value from its header, by the HTTP binding's section 3.1.3.2."""
    try:
        text = value.decode("ascii").strip(" \t")
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = _ESCAPED.sub(r"\1", text[1:-1])
        return unquote_to_bytes(text).decode("utf-8") if "%" in text else text
    except UnicodeDecodeError:
        problem = "holds what is not ASCII: write it as UTF-8, percent-encoded"
        raise InvalidEvent(name, problem) from None


def _elements(body: bytes) -> Sequence[msgspec.Raw]:
    try:
        return _split(body)
    except msgspec.ValidationError:
        raise NotEvents(422, "invalid_batch", "a batch is an array of events") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotEvents(400, "bad_json", f"the batch is not JSON: {error}") from None
