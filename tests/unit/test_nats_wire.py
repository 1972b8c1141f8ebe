"""Headers of NATS messages: read the same whether or not their names were met before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from oyez.brokers.nats import wire
from oyez.ports import Record

LINES = some.lists(
    some.sampled_from(
        [
            "ce-id: 1",
            "ce-id: 2: ce-type: x",
            "ce-type: x",
            "ce-source",
            "ce-type: ",
            "ce-subject:k",
            "ce-subject:k: ce-id",
            "CE-Subject: %6b",
            'ce-time: "  y"',
            "content-type: text/plain",
            "Oyez-Key: other",
            "Oyez-Absent: key",
            "Nats-Msg-Id: 7",
            "Nats-Msg-Id",
            "Foreign: header",
            "",
        ]
    )
)


def read(header: str) -> Record:
    return wire.decode(header.encode(), b"{}", "s", 0, 1, 0.0)


@given(
    lines=LINES,
    begin=some.sampled_from(["NATS/1.0\r\n", "NATS/1.0 100 Idle\r\n", ""]),
    end=some.sampled_from(["\r\n\r\n", "\r\n", ""]),
)
def test_names_that_were_met_change_nothing(lines: list[str], begin: str, end: str) -> None:
    header = begin + "\r\n".join(lines) + end
    wire._KINDS.clear()
    first = read(header)
    again = read(header)
    names = ["ce-id: 1", "ce-type: x", "ce-subject: k", "ce-source: s", "Nats-Msg-Id: 7"]
    read("NATS/1.0\r\n" + "\r\n".join(names) + "\r\n\r\n")
    assert first == again == read(header)


def test_strange_names_without_end_take_no_memory_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: dict[str, str] = {}
    monkeypatch.setattr(wire, "_KINDS", known)
    for number in range(2_000):
        assert read(f"NATS/1.0\r\nce-x{number}: 1\r\n\r\n").headers == {f"x{number}": "1"}
    assert len(known) == 1_024
