"""Hours: twelve have a view, and one view is no trend."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from oyez.testing import Running
from oyez.window import window_type
from sessions.events import HourCounted, ItemViewed
from sessions.service import Hour, service

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_given_an_hour_when_there_is_one_view_then_nothing_is_told() -> None:
    hour: Hour = window_type(Hour).state.new("bell")
    hour.add(ItemViewed(item="bell", at=NOON))
    assert hour.close() is None


async def test_two_views_five_minutes_apart_are_in_eleven_hours(running: Running) -> None:
    async with running(service) as system:
        begin = datetime.fromtimestamp(system.ambient.now() // 300 * 300, UTC)
        for minutes in (-5, 0):
            at = begin + timedelta(minutes=minutes)
            await system.publish(ItemViewed(item="bell", at=at))
        await system.publish(ItemViewed(item="boots", at=begin))
        await system.settled()
        assert system.announced(HourCounted) == []
        await system.advance(3_600.0 + 902.0)
        told = system.announced(HourCounted)
        assert {hour.item for hour in told} == {"bell"}
        assert [hour.views for hour in told] == [2] * 11
        assert [hour.end for hour in told] == [
            begin + timedelta(minutes=5 * n) for n in range(1, 12)
        ]
