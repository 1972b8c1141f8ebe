"""The forms in which CloudEvents come over HTTP: binary, structured, batched, and by the line.

*Binary*: one event, its attributes as headers ``ce-…``, its data as the body. *Structured*: one
event as a JSON object, ``application/cloudevents+json``. *Batched*: an array of those,
``application/cloudevents-batch+json``. *Lines*: one of those on each line,
``application/x-ndjson``, which is no form of the specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from oyez import strict_json
from oyez.envelope import STRUCTURED, Envelope, is_json, open_record
from oyez.errors import InvalidEvent
from oyez.gateway.exchange import Exchange, Refusal

BATCHED = "application/cloudevents-batch+json"
LINES = "application/x-ndjson"
FORMS = f"{STRUCTURED}, {BATCHED}, {LINES}"

_PREFIX = b"ce-"
_CHARSET = re.compile(r'charset="?utf-?8"?', re.IGNORECASE)
_ESCAPED = re.compile(r"\\(.)")
_NAME = re.compile(rb"ce-[a-z0-9]{1,20}")
_ITSELF = "application/cloudevents"
_INSIDE = {"content-type": STRUCTURED}
_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Arrived(NamedTuple):
    """One event as it came: attributes that are headers, and its data, or the event as a whole."""

    headers: Mapping[str, str]
    body: bytes
    structured: bool


def read_forms(exchange: Exchange, body: bytes) -> Sequence[Arrived]:
    """Return the events of a request, in order, not looked into yet.

    Raises :class:`Refusal` (400, 415, 422) for what is no form of CloudEvents, and InvalidEvent for
    headers that are no attributes of one.
    """
    media = _media(exchange)
    if media in (BATCHED, LINES):
        if any(name.startswith(_PREFIX) for name in exchange.fields):
            raise Refusal(400, "two_forms", "headers ce-… are for one event, in binary form")
        parts = _elements(body) if media == BATCHED else filter(bytes.strip, body.split(b"\n"))
        return [Arrived(_INSIDE, bytes(each), True) for each in parts]
    headers = _attributes(exchange)
    if media == STRUCTURED:
        return [Arrived({**headers, **_INSIDE}, body, True)]
    given = exchange.value(b"content-type")
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


def _media(exchange: Exchange) -> str:
    """Return the media type of the request, which is a form of CloudEvents, or has headers of one.

    It may be empty, with such headers.
    """
    given = exchange.values(b"content-type")
    if len(given) > 1:
        raise Refusal(400, "bad_content_type", "there is more than one Content-Type")
    media, *parameters = (given[0] if given else "").split(";")
    media = media.strip().lower()
    if media in (STRUCTURED, BATCHED, LINES):
        for each in parameters:
            if "charset" in each.lower() and not _CHARSET.fullmatch(each.strip()):
                raise Refusal(415, "bad_charset", "events are accepted in UTF-8 only")
    elif media.startswith(_ITSELF) or not any(n.startswith(_PREFIX) for n in exchange.fields):
        detail = f"send an event with headers ce-…, or one of {FORMS}"
        raise Refusal(415, "not_an_event", detail, [(b"accept-post", FORMS.encode())])
    return media


def _refuse_events_inside(kind: str) -> None:
    # Readers would take the event inside for this one, with attributes that nobody has checked.
    if kind.strip().lower().startswith(_ITSELF):
        raise InvalidEvent("datacontenttype", "is that of an event; the data of one is not another")


def _attributes(exchange: Exchange) -> dict[str, str]:
    """Return the attributes that are headers. Raises InvalidEvent."""
    found = {}
    for field, values in exchange.fields.items():
        if field.startswith(_PREFIX):
            name = field[len(_PREFIX) :].decode("latin-1")
            if not _NAME.fullmatch(field):
                problem = "is no attribute name: 1 to 20 of a-z and 0-9 are allowed"
                raise InvalidEvent(name[:40], problem)
            if len(values) > 1:
                raise InvalidEvent(name, "is given more than once")
            found[name] = _unescape(name, values[0])
    return found


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
        raise Refusal(422, "invalid_batch", "a batch is an array of events") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, "bad_json", f"the batch is not JSON: {error}") from None
