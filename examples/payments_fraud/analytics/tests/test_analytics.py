"""The view of volume, and the Parquet file that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics.events import TransferCompleted, TransferRefused
from analytics.service import service, summarize, write
from oyez.testing import Running

MINUTE = "2026-11-01T12:30"


async def test_transfers_are_counted_by_minute_and_country(running: Running) -> None:
    async with running(service) as system:
        for number, country in enumerate(("NL", "NL", "FR")):
            await system.publish(
                TransferCompleted(transfer_id=str(number), slot=f"{MINUTE} {country}", cents=100),
                service="transfers",
            )
        await system.publish(
            TransferRefused(transfer_id="9", slot=f"{MINUTE} NL", cents=5_000), service="transfers"
        )
        await system.settled()
        rows = await service.fetch(
            "select country, completed, refused, cents from volume order by country"
        )
        assert [tuple(row.values()) for row in rows] == [("FR", 1, 0, 100), ("NL", 2, 1, 200)]
        async with system.http("analytics") as client:
            hours = (await client.get("/volume")).json()["hours"]
        assert hours == [{"hour": "2026-11-01T12", "completed": 3, "refused": 1}]


def test_the_analyst_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="pip install -r examples/payments_fraud/requirements.txt")
    rows = [
        {"minute": minute, "country": country, "completed": many, "refused": 1, "cents": cents}
        for minute, country, many, cents in (
            ("2026-11-01T12:30", "NL", 3, 300),
            ("2026-11-01T12:31", "NL", 5, 100),
            ("2026-11-01T12:31", "FR", 1, 900),
        )
    ]
    file = tmp_path / "volume.parquet"
    write(rows, file)
    french, dutch = summarize(file)
    assert french["country"] == "FR"
    assert dutch == {
        "country": "NL", "completed": 8, "refused": 2, "cents": 400, "busiest": "2026-11-01T12:31"
    }  # fmt: skip
    write([], file)
    assert summarize(file) == []
