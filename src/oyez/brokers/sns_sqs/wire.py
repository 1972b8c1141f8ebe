"""What a record looks like on its way: the body of an SNS or SQS message.

One record is a structured CloudEvent, several of one key are a CloudEvents batch (JSON format,
1.0.2). JSON data stands in it byte for byte; what would not survive that is in base64. A key that
is not the one that ``partitionkey`` or ``subject`` gives has an attribute of its own, `KEY`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from oyez.errors import BrokerRefused
from oyez.ports import Record

LIMIT = 262_144
"""Bytes of one message, attributes included, and of one batch of messages."""
EVENT = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
KEY = "oyezkey"
"""The extension attribute that holds a key which differs from the one the event itself gives."""
CONTENT_TYPE = "content-type"
"""The one message attribute that is written; of ten that a message may have."""
OVERHEAD = len(CONTENT_TYPE) + len("String") + len(BATCH) + len("[]")
"""Bytes of a message besides its events."""
MAX_BYTES = (LIMIT - OVERHEAD) // 4 * 3 - 2_048
"""Headers and data of this many bytes always fit, in base64 and with their names around them."""

_RESERVED = frozenset(("data", "data_base64", KEY))
_GROUP = re.compile(r"[!-~]{1,128}")
_PREFIX = re.compile(r"(?:ce|cloudEvents)[-_:]")
_PLAIN = ("traceparent", "tracestate")
_NONCHARACTERS = ((b"\xef\xbf\xbe", b"\\ufffe"), (b"\xef\xbf\xbf", b"\\uffff"))
"""What SQS refuses in a body though JSON allows it."""


class Content(NamedTuple):
    """What one event in a message says; a `Record` without its place."""

    key: str | None
    headers: dict[str, str]
    data: bytes | None


def encode(record: Record) -> bytes:
    """The record as a structured CloudEvent. Raises BrokerRefused for what can't be one."""
    headers = record.headers
    if not _RESERVED.isdisjoint(headers):
        name = next(name for name in headers if name in _RESERVED)
        raise BrokerRefused(f"header {name!r} is what SNS and SQS messages call something else")
    body: dict[str, object] = dict(headers)
    if record.key != _key(headers):
        body[KEY] = record.key
    data = record.data
    if data is not None:
        if _stays(data, headers.get("datacontenttype", "application/json")):
            body["data"] = msgspec.Raw(data)
        else:
            body["data_base64"] = base64.b64encode(data).decode()
    try:
        text = msgspec.json.encode(body)
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise BrokerRefused(f"a header or key is not Unicode text: {error}") from error
    for found, escaped in _NONCHARACTERS:
        text = text.replace(found, escaped)
    if len(text) + OVERHEAD > LIMIT:
        size = len(data or b"") + sum(len(n) + len(v.encode()) for n, v in headers.items())
        raise BrokerRefused(
            f"a record of {record.stream} has {size} bytes, and {len(text) + OVERHEAD} as an SNS "
            f"message; {LIMIT} are allowed: set system.claim_check"
        )
    return text


def join(events: Sequence[bytes]) -> tuple[str, str]:
    """The content type and the body of a message that holds these events."""
    if len(events) == 1:
        return EVENT, events[0].decode()
    return BATCH, f"[{b','.join(events).decode()}]"


def group_of(key: str) -> str:
    """The message group of a key: itself where SQS allows that, else its hash."""
    if _GROUP.fullmatch(key):
        return key
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def decode(message: Mapping[str, Any]) -> list[Content]:
    """Return the events of a received message from any producer; anything else unchanged."""
    body: str = message["Body"]
    attributes = {
        name: _text(each.get("StringValue"), each.get("BinaryValue"))
        for name, each in message.get("MessageAttributes", {}).items()
    }
    if not attributes and '"Notification"' in body:
        body, attributes = _unwrap(body)
    group = message.get("Attributes", {}).get("MessageGroupId")
    kind = attributes.get(CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if kind == BATCH:
        events = _elements(body)
        if events is not None:
            return [_structured(event, group) for event in events]
    elif kind == EVENT or (not kind and body[:1] == "{" and '"specversion"' in body):
        return [_structured(body.encode(), group)]
    return [_binary(attributes, body.encode(), group)]


def _structured(text: bytes, group: str | None) -> Content:
    opened = _open(text)
    if opened is not None:
        return opened
    return Content(group, {CONTENT_TYPE: EVENT}, text)


def _open(text: bytes) -> Content | None:
    """A structured event in parts; None where only its reader can judge what is wrong with it."""
    try:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        raw, encoded = members.pop("data", None), members.pop("data_base64", None)
        key = members.pop(KEY, None)
        values = {name: msgspec.json.decode(value) for name, value in members.items()}
        if raw is not None and encoded is not None:
            return None
        data = bytes(raw) if raw is not None else None
        if encoded is not None:
            data = base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True)
        own_key = msgspec.json.decode(key, type=str | None) if key is not None else None
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        return None
    headers = {name: value for name, value in values.items() if value is not None}
    if not all(isinstance(value, str) for value in headers.values()):
        return None
    return Content(own_key if key is not None else _key(headers), headers, data)


def _binary(attributes: dict[str, str], data: bytes, group: str | None) -> Content:
    headers = {
        name[match.end() :]: value
        for name, value in attributes.items()
        if (match := _PREFIX.match(name))
    }
    if not headers:
        return Content(group, attributes, data)
    if CONTENT_TYPE in attributes:
        headers["datacontenttype"] = attributes[CONTENT_TYPE]
    for name in _PLAIN:
        if name in attributes:
            headers.setdefault(name, attributes[name])
    return Content(_key(headers) or group, headers, data)


def _unwrap(body: str) -> tuple[str, dict[str, str]]:
    """What SNS put into an envelope of its own, for want of raw delivery."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.MsgspecError, RecursionError):
        return body, {}
    attributes = {name: each.Value for name, each in envelope.MessageAttributes.items()}
    return envelope.Message, attributes


class _Attribute(msgspec.Struct):
    Value: str


class _Envelope(msgspec.Struct, tag_field="Type", tag="Notification"):
    TopicArn: str
    Message: str
    MessageAttributes: dict[str, _Attribute] = {}


def _elements(body: str) -> Iterable[bytes] | None:
    try:
        events = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return None
    return [bytes(event) for event in events] or None


def _key(headers: Mapping[str, str]) -> str | None:
    key = headers.get("partitionkey")
    return key if key is not None else headers.get("subject")


def _stays(data: bytes, kind: str) -> bool:
    """Whether the data stands as it is within other JSON."""
    media = kind.partition(";")[0].strip().lower()
    if not media.endswith(("/json", "+json")) or data[:1] <= b" " or data[-1:] <= b" ":
        return False
    if any(found in data for found, _ in _NONCHARACTERS):
        return False
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def _text(string: str | None, binary: bytes | None) -> str:
    if string is not None:
        return string
    return (binary or b"").decode(errors="replace")
