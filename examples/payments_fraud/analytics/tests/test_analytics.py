"""The view of volume."""

from __future__ import annotations

from datetime import UTC, datetime

from analytics.events import TransferCompleted, TransferRefused
from analytics.service import service
from oyez.testing import Running

NOON = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
MINUTE = "2026-11-01T12:30"


async def test_transfers_are_counted_by_minute_and_country(running: Running) -> None:
    async with running(service) as system:
        for number, country in enumerate(("NL", "NL", "FR")):
            await system.publish(
                TransferCompleted(transfer_id=str(number), country=country, cents=100, at=NOON),
                service="transfers",
            )
        await system.publish(
            TransferRefused(transfer_id="9", country="NL", at=NOON), service="transfers"
        )
        await system.settled()
        rows = await service.fetch(
            "select slot, completed, refused, cents from volume order by slot"
        )
        assert [tuple(row.values()) for row in rows] == [
            (f"{MINUTE} FR", 1, 0, 100),
            (f"{MINUTE} NL", 2, 1, 200),
        ]
        async with system.http("analytics") as client:
            hours = (await client.get("/volume")).json()["hours"]
        assert hours == [{"hour": "2026-11-01T12", "completed": 3, "refused": 1}]
