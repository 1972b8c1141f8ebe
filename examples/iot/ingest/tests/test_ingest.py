"""Ingest alone: each reading once, in any order, and none that can't be true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ingest.events import ReadingAccepted, ReadingSent
from ingest.service import SPAN, Device, fault, service
from oyez.testing import Running

READING = {"site_id": "site-1", "sensor_id": "site-1.7", "celsius": 20.5, "measured_at": 1000.0}


@pytest.mark.parametrize(
    ("given", "when", "then"),
    [
        ([], 1, True),
        ([1], 1, False),
        ([1, 3], 2, True),
        ([1, 3, 2], 2, False),
        ([SPAN + 9], 10, True),
        ([SPAN + 9], 9, False),  # too old to be known
        ([1, 2**53], 2**53, False),
        ([1, 2**53], 2**53 - 1, True),
    ],
)
def test_a_number_comes_first_once(given: list[int], when: int, then: bool) -> None:
    device = Device.keyed("site-1.7")
    for number in given:
        assert device.first(number)
    assert device.first(when) is then
    assert device.come < 2**SPAN


@pytest.mark.parametrize(
    ("change", "sender", "why"),
    [
        ({}, "key:site-1", None),
        ({}, "key:mqtt", None),
        ({}, "key:site-2", "another site's"),
        ({}, None, "another site's"),
        ({"sensor_id": "site-10.7"}, "key:site-1", "not of this site"),
        ({"celsius": 999.9}, "key:site-1", "can't be measured"),
        ({"celsius": float("nan")}, "key:site-1", "can't be measured"),
        ({"measured_at": 1061.0}, "key:site-1", "of the future"),
    ],
)
def test_what_can_not_be_true(change: dict[str, Any], sender: str | None, why: str | None) -> None:
    assert fault(ReadingSent(**{**READING, "number": 1, **change}), sender, 1000.0) == why


async def test_a_reading_is_accepted_once_however_it_comes(running: Running) -> None:
    async with running(service) as system:
        for name, number in (("a", 1), ("a", 1), ("b", 1), ("c", 2)):
            sent = {"specversion": "1.0", "type": "iot.reading.sent", "id": name}
            by = {"source": "/sites/1", "authid": "key:site-1", "time": "2030-01-01T00:00:00Z"}
            data = json.dumps({**READING, "number": number}).encode()
            await system.publish_raw({**sent, **by}, data, service="gateway", key="site-1")
        await system.settled()
        assert [event.number for event in system.announced(ReadingAccepted)] == [1, 2]
        refused = await system.fetch("ingest", "select event, number, why from refused")
        assert refused == [{"event": "/sites/1 b", "number": 1, "why": "repeated"}]
