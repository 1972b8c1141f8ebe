"""CloudEvents in both forms: what is written is read back, what is broken is named."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oyez.envelope import (
    MAX_ATTRIBUTE,
    STRUCTURED,
    Envelope,
    check_headers,
    format_time,
    open_record,
    parse_time,
)
from oyez.errors import InvalidEvent

TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30
)  # fmt: skip
MAYBE = st.none() | TEXT
PRINTABLE = st.none() | TEXT.filter(str.isprintable)
NAMES = st.from_regex(r"x[a-z0-9]{0,19}", fullmatch=True)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
GOOD = {"specversion": "1.0", "id": "1", "source": "/s/a", "type": "a.b"}


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    is_json = draw(st.booleans())
    kind = draw(st.sampled_from(["application/json", "application/vnd.a+json; charset=utf-8"]))
    return Envelope(
        id=draw(TEXT),
        source=draw(TEXT),
        type=draw(TEXT),
        data=msgspec.json.encode(draw(JSON_VALUES)) if is_json else draw(st.binary(max_size=50)),
        datacontenttype=kind if is_json else draw(st.sampled_from(["text/plain", "image/png"])),
        time=draw(st.none() | st.floats(0, 4e9).map(format_time)),
        **{
            name: draw(MAYBE)
            for name in (
                "subject dataschema partitionkey correlationid causationid traceparent tracestate "
                "dataref replayed recipient"
            ).split()
        },
        expires=draw(st.none() | st.floats(0, 4e9).map(format_time)),
        authid=draw(PRINTABLE),
        authtype=draw(PRINTABLE),
        extensions=draw(st.dictionaries(NAMES, TEXT, max_size=3)),
    )


@given(envelopes())
def test_the_binary_form_comes_back(envelope: Envelope) -> None:
    assume(envelope.data or envelope.dataref is None)  # empty beside a dataref means elsewhere
    check_headers(envelope.headers())
    assert open_record(envelope.headers(), envelope.data) == envelope


@given(envelopes())
def test_the_structured_form_comes_back(envelope: Envelope) -> None:
    for name in ("datacontenttype", "content-type"):
        headers = {name: f"{STRUCTURED}; charset=UTF-8"}
        assert open_record(headers, envelope.structured()) == envelope


@given(envelopes())
def test_headers_are_cloudevents_attributes(envelope: Envelope) -> None:
    headers = envelope.headers()
    assert {"specversion", "id", "source", "type"} <= headers.keys()
    assert headers["specversion"] == "1.0"
    assert "data" not in headers
    for name, value in headers.items():
        assert name.isascii()
        assert name.isalnum()
        assert name == name.lower()
        assert len(name) <= 20
        assert isinstance(value, str)
    body = json.loads(envelope.structured())
    assert ("data" in body) != ("data_base64" in body)
    assert {name: body[name] for name in headers} == headers


def test_the_key_is_the_partition_key_before_the_subject() -> None:
    assert open_record(GOOD, b"").key is None
    assert open_record({**GOOD, "subject": "s"}, b"").key == "s"
    assert open_record({**GOOD, "subject": "s", "partitionkey": "p"}, b"").key == "p"


def test_absent_and_default_attributes() -> None:
    envelope = open_record(GOOD, b"{}")
    assert envelope.datacontenttype == "application/json"
    assert envelope.subject is envelope.time is envelope.traceparent is None
    assert envelope.extensions == {}


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in GOOD.items() if key != name}


BROKEN: list[tuple[str, dict[str, str]]] = [
    *((name, without(name)) for name in GOOD),
    *((name, {**GOOD, name: ""}) for name in GOOD),
    ("specversion", {**GOOD, "specversion": "0.3"}),
    ("specversion", {**GOOD, "specversion": "1.1"}),
    ("Type", {**GOOD, "Type": "x"}),
    ("ünder", {**GOOD, "ünder": "x"}),
    ("with-dash", {**GOOD, "with-dash": "x"}),
    ("a b", {**GOOD, "a b": "x"}),
    ("", {**GOOD, "": "x"}),
    ("data", {**GOOD, "data": "x"}),
    ("data_base64", {**GOOD, "data_base64": "eA=="}),
    ("subject", {**GOOD, "subject": "a\r\nb"}),
    ("subject", {**GOOD, "subject": "a\nb"}),
    ("subject", {**GOOD, "subject": "a\x00b"}),
    ("subject", {**GOOD, "subject": "a\x85b"}),
    ("subject", {**GOOD, "subject": "a\ud800b"}),
    ("x", {**GOOD, "x": "a\rb"}),
    ("expires", {**GOOD, "expires": "soon"}),
    ("subject", {**GOOD, "subject": "x" * 65_536}),
    ("partitionkey", {**GOOD, "partitionkey": "x" * (MAX_ATTRIBUTE + 1)}),
    *(
        ("time", {**GOOD, "time": time})
        for time in (
            "",
            "yesterday",
            "1700000000",
            "2024-13-01T00:00:00Z",
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00.000000Z",
            "0000-01-01T00:00:00Z",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00.000000+25:00",
            "99999-01-01T00:00:00Z",
            "2024-01-01T00:00:00Z ",
            "\uff12\uff10\uff12\uff14-01-01T00:00:00Z",
        )
    ),
]


@pytest.mark.parametrize(("field", "headers"), BROKEN)
def test_a_broken_record_names_the_attribute(field: str, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidEvent) as caught:
        open_record(headers, b"{}")
    assert caught.value.field == field
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("field", "headers"), BROKEN)
def test_a_broken_structured_event_names_the_attribute(field: str, headers: dict[str, str]) -> None:
    if field in ("data", "data_base64") or "\ud800" in "".join(headers.values()):
        return  # these are data, or no JSON, there
    body = json.dumps({**headers, "data": 1}).encode()
    with pytest.raises(InvalidEvent) as caught:
        open_record({"content-type": STRUCTURED}, body)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("$", b""),
        ("$", b"["),
        ("$", b"[]"),
        ("$", b"1"),
        ("$", b"\xff"),
        ("id", b'{"id": "' + b"\xff" + b'"}'),
        ("data", json.dumps({**GOOD, "dataref": "s3://elsewhere/1"}).encode()),
        ("data_base64", json.dumps({**GOOD, "data": 1, "data_base64": "eA=="}).encode()),
        ("data_base64", json.dumps({**GOOD, "data_base64": "%%%"}).encode()),
        ("data_base64", json.dumps({**GOOD, "data_base64": "eA"}).encode()),
        ("data_base64", json.dumps({**GOOD, "data_base64": "ü"}).encode()),
        ("data_base64", json.dumps({**GOOD, "data_base64": 5}).encode()),
        ("x", json.dumps({**GOOD, "data": 1, "x": {}}).encode()),
        ("x", json.dumps({**GOOD, "data": 1, "x": [1]}).encode()),
        ("x", json.dumps({**GOOD, "data": 1, "x": 1.5}).encode()),
        ("x", json.dumps({**GOOD, "data": 1}).encode()[:-1] + b',"x":' + b"[" * 100_000),
        ("id", json.dumps({**GOOD, "data": 1, "id": None}).encode()),
    ],
)
def test_a_broken_structured_body_names_what_is_wrong(field: str, body: bytes) -> None:
    with pytest.raises(InvalidEvent) as caught:
        open_record({"content-type": STRUCTURED}, body)
    assert caught.value.field in (field, "$")
    assert field == caught.value.field or body.endswith(b"[")


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion", "subject", "partitionkey"])
def test_headers_and_structured_body_must_agree(name: str) -> None:
    body = {**GOOD, "subject": "s", "partitionkey": "p", "data": 1}
    headers = {"content-type": STRUCTURED}
    same = open_record({**headers, name: str(body[name])}, json.dumps(body).encode())
    assert same.data == b"1"
    with pytest.raises(InvalidEvent) as caught:
        open_record({**headers, name: "other"}, json.dumps(body).encode())
    assert caught.value.field == name


def test_a_tombstone_is_refused_and_empty_data_is_not() -> None:
    with pytest.raises(InvalidEvent, match="tombstone"):
        open_record(GOOD, None)
    assert open_record(GOOD, b"").data == b""


def test_structured_attributes_may_be_booleans_and_integers() -> None:
    body: dict[str, Any] = {**GOOD, "data": {"a": 1}, "xbool": True, "xint": -5, "xnull": None}
    envelope = open_record({"content-type": STRUCTURED}, json.dumps(body).encode())
    assert envelope.extensions == {"xbool": "true", "xint": "-5"}
    assert json.loads(envelope.data) == {"a": 1}


@pytest.mark.parametrize(
    ("kind", "member", "data"),
    [
        ("text/plain", '"Grüße"', "Grüße".encode()),
        ("application/octet-stream", '"abc"', b"abc"),
        ("text/plain", '{"a": 1}', b'{"a": 1}'),
        ("application/json", '"abc"', b'"abc"'),
        ("application/vnd.a+json; charset=utf-8", '"abc"', b'"abc"'),
        ("application/json", "null", b"null"),
    ],
)
def test_text_that_is_no_json_stands_as_a_json_string(kind: str, member: str, data: bytes) -> None:
    body = json.dumps({**GOOD, "datacontenttype": kind})[:-1] + f', "data": {member}}}'
    assert open_record({"content-type": STRUCTURED}, body.encode()).data == data


def test_a_structured_event_without_data_has_empty_data() -> None:
    envelope = open_record({"content-type": STRUCTURED}, json.dumps(GOOD).encode())
    assert envelope.data == b""
    assert open_record({"content-type": STRUCTURED}, envelope.structured()) == envelope


def test_binary_data_in_a_structured_event() -> None:
    body = {**GOOD, "datacontenttype": "image/png"}
    body["data_base64"] = base64.b64encode(b"\x00\xff").decode()
    envelope = open_record({"content-type": STRUCTURED}, json.dumps(body).encode())
    assert envelope.data == b"\x00\xff"
    assert json.loads(envelope.structured())["data_base64"] == body["data_base64"]


@given(st.floats(0, 4e9))
def test_times_come_back_to_the_microsecond(seconds: float) -> None:
    text = format_time(seconds)
    assert abs(parse_time(text).timestamp() - seconds) < 1e-5
    assert open_record({**GOOD, "time": text}, b"").time == text


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-29T00:00:00Z",
        "2024-02-29t00:00:00z",
        "2024-06-30T23:59:60Z",
        "2024-06-30T23:59:59.123456789+02:00",
        "2024-06-30T23:59:59.1-23:59",
        "9999-12-31T23:59:59Z",
    ],
)
def test_other_rfc_3339_times_are_accepted(text: str) -> None:
    assert open_record({**GOOD, "time": text}, b"").time == text
    assert parse_time(text).tzinfo is not None
