"""Volume by minute and country: a view for the live page, and a columnar file for the analyst.

The live page asks for a few rows of now. The analyst asks for sums over all of it, by questions
that nobody foresaw: for these a columnar file is read, so that they never load the store.
"""

from __future__ import annotations

import asyncio
from datetime import UTC
from pathlib import Path
from typing import Any

from analytics.events import Ended, TransferCompleted, TransferRefused
from oyez import Service, Tick, View, applies

FILE = Path(__file__).resolve().parents[1] / ".oyez" / "volume.parquet"

ROWS = """select substr(slot, 1, 16) as minute, substr(slot, 18) as country, completed, refused,
 cents from volume"""
_HOURS = """select substr(slot, 1, 13) as hour, cast(sum(completed) as bigint) as completed,
 cast(sum(refused) as bigint) as refused from volume
 group by substr(slot, 1, 13) order by 1 desc limit 72"""

service = Service("analytics")


def slot_of(event: Ended) -> str:
    """Return the minute and the country of a transfer."""
    return f"{event.at.astimezone(UTC):%Y-%m-%dT%H:%M} {event.country}"


@service.view
class Volume(View, table="volume", key="slot"):
    """What was sent in one minute from one country."""

    slot: str
    completed: int = 0
    refused: int = 0
    cents: int = 0
    """The money that has moved."""

    @applies(by=slot_of)
    def on_completed(self, event: TransferCompleted) -> None:
        """One more, and its money."""
        self.completed += 1
        self.cents += event.cents

    @applies(by=slot_of)
    def on_refused(self, event: TransferRefused) -> None:
        """One more that moved nothing."""
        self.refused += 1


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """Write rows, one at least, as a Parquet file, in the place of the former one."""
    import polars  # for those who export alone

    draft = file.with_suffix(".draft")
    polars.DataFrame(rows).write_parquet(draft)
    draft.replace(file)


def summarize(file: Path) -> list[dict[str, Any]]:
    """Return the figures of each country in a Parquet file, if there is one, by their volume."""
    import polars

    if not file.exists():
        return []
    sums = polars.col("completed", "refused", "cents").sum()
    busiest = polars.col("minute").sort_by(polars.col("completed") + polars.col("refused")).last()
    countries = polars.scan_parquet(file).group_by("country").agg(sums, busiest=busiest)
    return list(countries.sort("cents", descending=True).collect().to_dicts())


@service.get("/volume")
async def volume() -> dict[str, Any]:
    """Show the newest hours."""
    return {"hours": (await service.fetch(_HOURS))[::-1]}


@service.get("/report")
async def report() -> dict[str, Any]:
    """Show the analyst's figures, from the file of the last export."""
    return {"countries": await asyncio.to_thread(summarize, FILE)}


@service.every(seconds=10)
async def export(tick: Tick) -> None:
    """Write the file anew."""
    if rows := await service.fetch(ROWS):
        await asyncio.to_thread(write, rows, FILE)
