"""Entries of Redis: those that Oyez writes, and those that anything else does."""

from __future__ import annotations

import pytest

from oyez.brokers.redis import wire
from oyez.ports import Record

ID = b"1795947880039-7"
HEADERS = {"specversion": "1.0", "id": "ä-1", "type": "shop.paid", "partitionkey": "k"}


def entry(record: Record) -> wire.Entry:
    """The entry as the server hands it out, without the command, the stream's name and ``*``."""
    return ID, [each.encode() if isinstance(each, str) else each for each in fields_of(record)]


def fields_of(record: Record) -> list[str | bytes]:
    return [each for each in wire.encode(record, 3)[3:] if not isinstance(each, int)]


@pytest.mark.parametrize("key", ["k", None])
@pytest.mark.parametrize("data", [b"{}", b"", b"\xff", None])
@pytest.mark.parametrize("headers", [HEADERS, {}])
def test_what_was_written_is_read(
    key: str | None, data: bytes | None, headers: dict[str, str]
) -> None:
    record = Record(stream="s", key=key, headers=headers, data=data)
    for _ in range(2):  # the first teaches the names
        found = wire.decode(entry(record), "s", 3)
        assert (found.key, found.headers, found.data) == (key, headers, data)
        assert (found.stream, found.partition) == ("s", 3)
        assert found.position == wire.position_of(ID)
        assert found.time == 1795947880.039


@pytest.mark.parametrize(
    "fields",
    [
        [b"data", b"{}", b"ce_id", b"1", b"key", b"k"],
        [b"ce_id", b"1", b"key", b"k", b"data", b"{}"],
        [b"key", b"other", b"ce_id", b"1", b"key", b"k", b"data", b"{}"],
        [b"key", b"k", b"data", b"other", b"ce_id", b"1", b"data", b"{}"],
        [b"key", b"k", b"id", b"1", b"data", b"{}"],
    ],
)
def test_another_order_means_the_same(fields: list[bytes]) -> None:
    for _ in range(2):
        found = wire.decode((ID, fields), "s", 0)
        assert (found.key, found.headers, found.data) == ("k", {"id": "1"}, b"{}")


def test_bytes_that_are_not_text_are_replaced() -> None:
    fields = [b"key", b"\xff", b"ce_id", b"\xfe1", b"\xfd", b"x", b"data", b"\xff"]
    for _ in range(2):
        found = wire.decode((ID, fields), "s", 0)
        assert (found.key, found.data) == ("�", b"\xff")
        assert found.headers == {"id": "�1", "�": "x"}


def test_strange_names_without_end_take_no_memory_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: dict[bytes, str] = {}
    monkeypatch.setattr(wire, "_PLAIN", known)
    for number in range(2_000):
        fields = [b"ce_x%d" % number, b"1", b"data", b"{}"]
        assert wire.decode((ID, fields), "s", 0).headers == {f"x{number}": "1"}
    assert len(known) == 1024
