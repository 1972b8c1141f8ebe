"""JSON from outside is refused with the field's path before it becomes poison."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.errors import BadJson, InvalidEvent
from oyez.strict_json import MAX_DEPTH, read


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{'id': 1}",
        b'{"id": 1,}',
        b"\xff",
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'"a\nb"',
        b"nul",
        b"01",
        b"1.",
        b"// x",
    ],
)
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(BadJson):
        read(data)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"NaN", "$"),
        (b'{"a": [1, NaN]}', "$.a[1]"),
        (b'{"a": Infinity}', "$.a"),
        (b'{"a": -Infinity}', "$.a"),
        (b'{"a": 1e400}', "$.a"),
        (b'{"a": -1e400}', "$.a"),
        (b'{"a": {"b": [0, 9223372036854775808]}}', "$.a.b[1]"),
        (b'{"a": -9223372036854775809}', "$.a"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "$.a"),
        (b'{"a": "\\ud800"}', "$.a"),
        (b'{"a": ["x", "\\udc00\\ud800"]}', "$.a[1]"),
        (b'{"a": "\\u0000"}', "$.a"),
        (b'{"a": {"\\ud800": 1}}', "$.a"),
        (b'{"a\\u0000b": 1}', "$"),
        (b'{"a": 1, "a": 1}', "$"),
        (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', "$.a[0]"),
        (nested(MAX_DEPTH + 1), "$"),
        (b"[" * 100_000, "$"),
        (b'{"a":' * 100_000, "$"),
    ],
)
def test_what_must_not_enter(data: bytes, path: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        read(data)
    assert not isinstance(caught.value, BadJson)
    assert caught.value.field == path
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "data",
    [
        nested(MAX_DEPTH),
        b'"' + b"[{" * 500 + b'"',
        b'["' + b'\\"[' * 500 + b'"]',
        b"[" + b",".join([b"{}"] * 1_000) + b"]",
        b'{"a": 9223372036854775807, "b": -9223372036854775808}',
        b'{"a": 1.7976931348623157e308, "b": 5e-324, "c": -0.0}',
        b'"\\ud83d\\ude9a"',
        b' {"a": {"a": {"a": 1}}} ',
    ],
)
def test_what_may_enter(data: bytes) -> None:
    assert read(data) == json.loads(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00")),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00")),
            inner,
            max_size=4,
        ),
        max_leaves=10,
    )
)  # fmt: skip
def test_every_good_value_comes_back(value: Any) -> None:
    for ascii_only in (True, False):
        assert read(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0d8 19eE.-Nal', max_size=40).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        value = read(data)
    except InvalidEvent:
        return
    assert value == json.loads(data)
