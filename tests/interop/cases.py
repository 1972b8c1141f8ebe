"""Events with values that hurt, and what two sides must agree on about each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from dateutil.parser import isoparse

from oyez.envelope import STRUCTURED, Envelope
from oyez.ports import Record

MODES = ("binary", "structured")
COUNT, FLAG = "xcount", "xflag"
"""Extensions that an SDK is given as an integer and as a boolean."""


def _case(name: str, data: bytes = b'{"cents": 900}', **attributes: Any) -> Envelope:
    given = {"time": "2026-11-24T12:00:00.123456Z", **attributes}
    return Envelope(id=name, source="/shop/orders", type="shop.order.placed", data=data, **given)


CASES = {
    case.id: case
    for case in (
        _case(
            "complete",
            subject="order-1",
            partitionkey="customer-7",
            dataschema="urn:oyez:shop.order.placed:1",
            correlationid="c-1",
            causationid="c-0",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            tracestate="vendor=a:1,other=b",
            extensions={"region": "eu", COUNT: "5", FLAG: "true"},
        ),
        _case("no-key"),
        _case("subject-only", subject="order-2"),
        _case("negative", subject="order-2", extensions={COUNT: "-2147483648", FLAG: "false"}),
        _case("non-ascii", subject="Jürgen 東京 🎈", partitionkey="ключ ß"),
        _case("quotes", subject="say \"hi\" 'there' \\ 100% ; a=b,c", partitionkey='"quoted"'),
        _case("percent", subject="%41%zz%", partitionkey="50%25"),
        _case("spaces", subject="  a  b  ", partitionkey=" k "),
        _case("bytes", bytes(range(256)), datacontenttype="application/octet-stream"),
        _case("text", "Grüße,\r\nzweite Zeile".encode(), datacontenttype="text/plain"),
        _case("digits", b"123", datacontenttype="application/octet-stream"),
        _case("empty", b"", subject="order-3"),
        _case("empty-bytes", b"", datacontenttype="application/octet-stream"),
        _case("json-string", b'"say \\"hi\\" \\u00fc"'),
        _case("json-array", b'[1, "two", null]'),
        _case("json-vendor", b'{"a": "b"}', datacontenttype="application/vnd.shop+json"),
        _case("offset", time="2024-06-30T23:59:59.123456789+05:30"),
        _case("no-time", time=None),
    )
}


def record_of(envelope: Envelope, mode: str, stream: str) -> Record:
    """What Oyez publishes for an event in this mode."""
    if mode == "binary":
        headers, data = envelope.headers(), envelope.data
    else:
        headers, data = {"datacontenttype": STRUCTURED}, envelope.structured()
    return Record(stream=stream, key=envelope.key, headers=headers, data=data)


def agree(
    found: Mapping[str, Any], data: Any, envelope: Envelope, *, exact: timedelta = timedelta(0)
) -> None:
    """Assert that an SDK's attributes and data are those of the envelope.

    ``exact`` is how far its times may be off: no SDK keeps nanoseconds. Both SDKs make up a time
    where there is none, and give the message's key as ``partitionkey`` on Kafka.
    """
    wanted = envelope.headers()
    attributes = {name: _text(value) for name, value in found.items() if value is not None}
    if FLAG in attributes:
        attributes[FLAG] = attributes[FLAG].lower()  # the Python SDK writes True in binary mode
    time, other = attributes.pop("time", None), wanted.pop("time", None)
    if other is not None:
        assert time is not None
        assert abs(isoparse(time) - isoparse(other)) <= exact, envelope.id
    if "partitionkey" not in wanted and "partitionkey" in attributes:
        assert attributes.pop("partitionkey") == envelope.key
    assert attributes == wanted, envelope.id
    assert payload(data, envelope.datacontenttype) == payload(
        envelope.data, envelope.datacontenttype
    ), envelope.id


def same(found: Envelope, wanted: Envelope, *, exact: timedelta = timedelta(0)) -> None:
    """Assert that what Oyez read is what an SDK was given."""
    given = found.headers()
    given.setdefault("time", "")
    agree(given, found.data, wanted, exact=exact)


def payload(data: Any, kind: str) -> Any:
    """Data in one form: parsed where it is JSON, else its bytes; None and empty are the same."""
    if data is None or data in (b"", ""):
        return b""
    if kind.endswith("json"):
        return json.loads(data) if isinstance(data, bytes) else data
    return data.encode() if isinstance(data, str) else bytes(data)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
