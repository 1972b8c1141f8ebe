"""Wraps encoded data as a CloudEvent, specification 1.0.2, in binary and in structured form.

*Binary*: each attribute is a header of its own beside the data, under its plain name; a broker's
adapter adds and strips the prefix of its protocol (``ce_`` on Kafka, ``ce-`` on HTTP and NATS).
*Structured*: one JSON object holds attributes and data, with content type
``application/cloudevents+json``. Both are read; binary is written. An event without data has empty
data.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import force_setattr

from oyez.errors import InvalidEvent
from oyez.principal import MAX_NAME

SPECVERSION: Literal["1.0"] = "1.0"
JSON = "application/json"
STRUCTURED = "application/cloudevents+json"
MAX_ATTRIBUTE = 8_192
"""A longer attribute value (characters) is refused, from the publisher and from the wire."""

_NAME = re.compile(r"[a-z0-9]{1,20}")
_TIME = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[Tt]"
    r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d{1,9})?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
)
_KNOWN = frozenset(
    (
        "specversion id source type subject time datacontenttype dataschema partitionkey "
        "correlationid causationid traceparent tracestate dataref replayed "
        "recipient expires authid authtype"
    ).split()
)


_FIELDS = _KNOWN - {"specversion"}
_WHO = ("authid", "authtype")


_SAMPLED = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f][13579bdf]")
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


def sampled(traceparent: str | None) -> str:
    """Return the trace id of a traceparent whose trace is recorded; else an empty text."""
    found = _SAMPLED.fullmatch(traceparent or "")
    return found[1] if found else ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event on the wire: CloudEvents attributes around encoded data.

    ``subject`` is the key. ``correlationid`` is shared by all events that result from one request,
    ``causationid`` is the id of the event that caused this one. ``recipient`` is the only service
    that the event is for, and ``expires`` the time after which that service does not handle it.
    ``replayed`` names the replay in which it is handled once more, or was announced. ``authid`` is
    who sent the request that it results from, such as ``key:ci``, and ``authtype`` how that is
    known, as CloudEvents' extension for the auth context has it.
    """

    id: _Text
    source: _Text
    type: _Text
    data: bytes = b""
    specversion: Literal["1.0"] = SPECVERSION
    subject: str | None = None
    time: str | None = None
    datacontenttype: str = JSON
    dataschema: str | None = None
    partitionkey: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    dataref: str | None = None
    replayed: str | None = None
    recipient: str | None = None
    expires: str | None = None
    authid: _Name | None = None
    authtype: _Name | None = None
    extensions: dict[str, str] = {}

    @property
    def key(self) -> str | None:
        """The key that orders this event: the partition key, else the subject."""
        return self.partitionkey if self.partitionkey is not None else self.subject

    def headers(self) -> dict[str, str]:
        """Return the attributes of the binary form, by plain name; absent ones are left out."""
        named = {
            "specversion": self.specversion,
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": self.time,
            "datacontenttype": self.datacontenttype,
            "dataschema": self.dataschema,
            "partitionkey": self.partitionkey,
            "correlationid": self.correlationid,
            "causationid": self.causationid,
            "traceparent": self.traceparent,
            "tracestate": self.tracestate,
            "dataref": self.dataref,
            "replayed": self.replayed,
            "recipient": self.recipient,
            "expires": self.expires,
            "authid": self.authid,
            "authtype": self.authtype,
        }
        found = {name: value for name, value in named.items() if value is not None}
        found.update(self.extensions)
        return found

    def structured(self) -> bytes:
        """Return the structured form: JSON data is embedded as JSON, other data as base64."""
        body: dict[str, object] = dict(self.headers())
        if is_json(self.datacontenttype):
            if self.data:
                body["data"] = msgspec.Raw(self.data)
        else:
            body["data_base64"] = base64.b64encode(self.data).decode()
        return msgspec.json.encode(body)


def open_record(headers: Mapping[str, str], data: bytes | None) -> Envelope:
    """Return the envelope of a record from the wire, in either form.

    Raises InvalidEvent naming the attribute that is missing or wrong.
    """
    if not data and "dataref" in headers:
        raise _is_gone(headers["dataref"])
    if data is None:
        raise InvalidEvent("data", "is absent (a tombstone); an event needs data")
    kind = headers.get("datacontenttype") or headers.get("content-type")
    if kind is not None and kind != JSON and kind.lower().startswith(STRUCTURED):
        return _open_structured(headers, data)
    return _open_binary(headers, data)


def format_time(seconds: float) -> str:
    """Return seconds since 1970 as RFC 3339 in UTC with microseconds."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str, name: str = "time") -> datetime:
    """Return the time of an RFC 3339 text. Raises InvalidEvent, naming it, when it is none."""
    if not _TIME.fullmatch(text):
        raise InvalidEvent(name, f"expected RFC 3339, found {text[:40]!r}")
    if text[17:19] == "60":  # a leap second, which Python can't represent
        text = f"{text[:17]}59{text[19:]}"
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError as error:
        raise InvalidEvent(name, f"expected RFC 3339, found {text[:40]!r}") from error


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise InvalidEvent unless every name and value is one that CloudEvents allows."""
    for name, value in headers.items():
        if name not in _KNOWN and (name == "data" or not _NAME.fullmatch(name)):
            raise InvalidEvent(
                name[:40], "is not an attribute name: 1 to 20 of a-z and 0-9 are allowed"
            )
        if len(value) > MAX_ATTRIBUTE:
            raise InvalidEvent(
                name, f"is {len(value)} characters; at most {MAX_ATTRIBUTE} are allowed"
            )
        if name in _WHO and not (0 < len(value) <= MAX_NAME and value.isprintable()):
            raise InvalidEvent(name, f"expected 1 to {MAX_NAME} printable characters")
        if any(char < " " or "\x7f" <= char <= "\x9f" or "\ud800" <= char <= "\udfff"
               for char in value):  # fmt: skip
            raise InvalidEvent(name, "holds a control character")


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode


def _open_binary(headers: Mapping[str, str], data: bytes) -> Envelope:
    # The decoder checks names and values at once, on a form in which a backslash stands before
    # whatever is not printable. What it does not accept, is looked at one by one.
    try:
        text = _encode(headers)
        envelope = _decode(text)
    except (TypeError, ValueError):
        return _open_with_care(headers, data)
    time = envelope.time
    if (
        len(text) < MAX_ATTRIBUTE
        and text.isascii()
        and 0x5C not in text
        and 0x7F not in text
        and "specversion" in headers
        and "data" not in headers
        and (time is None or _is_our_time(time))
        and envelope.expires is None
    ):
        force_setattr(envelope, "data", data)
        return envelope
    return _open_with_care(headers, data)


def _open_with_care(headers: Mapping[str, str], data: bytes) -> Envelope:
    known = headers.keys() <= _KNOWN
    check_headers(headers)
    for name in ("id", "source", "type"):
        if not headers.get(name):
            raise InvalidEvent(name, "is missing" if headers.get(name) is None else "is empty")
    specversion = headers.get("specversion")
    if specversion != SPECVERSION:
        raise InvalidEvent("specversion", f"expected {SPECVERSION!r}, found {specversion!r}")
    time = headers.get("time")
    if time is not None and not _is_our_time(time):
        parse_time(time)
    expires = headers.get("expires")
    if expires is not None and not _is_our_time(expires):
        parse_time(expires, "expires")
    if known:
        attributes: dict[str, Any] = dict(headers)
        del attributes["specversion"]
        return Envelope(data=data, **attributes)
    attributes = {name: headers[name] for name in headers.keys() & _FIELDS}
    extensions = {name: value for name, value in headers.items() if name not in _KNOWN}
    return Envelope(data=data, extensions=extensions, **attributes)


def _open_structured(headers: Mapping[str, str], data: bytes) -> Envelope:
    try:
        body = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent("$", f"is not a structured CloudEvent: {error}") from error
    raw, encoded = body.pop("data", None), body.pop("data_base64", None)
    if raw is not None and encoded is not None:
        raise InvalidEvent("data_base64", "is given beside data; only one of them is allowed")
    attributes: dict[str, str] = {}
    for name, value in body.items():
        try:
            item = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidEvent(name[:40], f"is not valid: {error}") from error
        if isinstance(item, bool):
            item = "true" if item else "false"
        if item is None:
            continue
        if not isinstance(item, str | int):
            raise InvalidEvent(name[:40], "expected a string, a boolean or an integer")
        attributes[name] = str(item)
    for name in ("id", "source", "type", "specversion", "subject", "partitionkey"):
        outer = headers.get(name)
        if outer is not None and attributes.get(name) != outer:
            raise InvalidEvent(name, "differs between the headers and the structured body")
    if encoded is not None:
        try:
            payload = base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True)
        except (binascii.Error, msgspec.MsgspecError, ValueError) as error:
            raise InvalidEvent("data_base64", f"is not base64: {error}") from error
    elif raw is None:
        if "dataref" in attributes:
            raise _is_gone(attributes["dataref"])
        payload = b""
    else:
        payload = bytes(raw)
        if payload.startswith(b'"') and not is_json(attributes.get("datacontenttype", JSON)):
            payload = _text(payload)
    return _open_binary(attributes, payload)


def _text(string: bytes) -> bytes:
    """Return the contents of a JSON string, which may carry data that is text but not JSON."""
    try:
        return msgspec.json.decode(string, type=str).encode()
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidEvent("data", f"is not valid: {error}") from error


def _is_gone(dataref: str) -> InvalidEvent:
    return InvalidEvent(
        "data",
        f"the data at {dataref[:300]!r} is gone, or that is no place below system.claim_check",
    )


@lru_cache(maxsize=1_024)  # the events of a commit have one time
def _is_our_time(text: str) -> bool:
    """Return whether it is a time as `format_time` writes it, which is cheaper than parsing it."""
    if len(text) != 27 or text[10] != "T" or text[26] != "Z":
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def is_json(kind: str) -> bool:
    """Return whether data of this content type is JSON."""
    media = kind.split(";", 1)[0].strip().lower()
    return media.endswith(("/json", "+json"))
