"""Volume by minute and country: a view for the live page, and a columnar file for the analyst.

The live page asks for a few rows of now. The analyst asks for sums over all of it, by questions
that nobody foresaw: for these a columnar file is read, so that they never load the store.
"""

from __future__ import annotations

import asyncio
from datetime import UTC
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from analytics.events import TransferCompleted, TransferRefused
from oyez import Service, Tick, View, applies

FILE = Path(__file__).resolve().parents[1] / ".oyez" / "volume.parquet"

_ROWS = "select minute, country, completed, refused, cents from volume"
_HOURS = """select substr(minute, 1, 13) as hour, cast(sum(completed) as bigint) as completed,
 cast(sum(refused) as bigint) as refused from volume
 group by substr(minute, 1, 13) order by 1 desc limit 72"""


def slot_of(event: TransferCompleted | TransferRefused) -> str:
    """Return the minute and the country of a transfer."""
    return f"{event.at.astimezone(UTC):%Y-%m-%dT%H:%M} {event.country}"


class Volume(View, table="volume", key="slot"):
    """What was sent in one minute from one country."""

    slot: str
    minute: str = ""
    country: str = ""
    completed: int = 0
    refused: int = 0
    cents: int = 0
    """The money that has moved."""

    @applies(by=slot_of)
    def on_completed(self, event: TransferCompleted) -> None:
        """One more, and its money."""
        self.minute, self.country = self.slot.split(" ")
        self.completed += 1
        self.cents += event.cents

    @applies(by=slot_of)
    def on_refused(self, event: TransferRefused) -> None:
        """One more that moved nothing."""
        self.minute, self.country = self.slot.split(" ")
        self.refused += 1


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """Write the rows as a Parquet file, in the place of the former one."""
    import polars  # for those who export alone

    kinds = {"minute": polars.String, "country": polars.String}
    numbers = dict.fromkeys(("completed", "refused", "cents"), polars.Int64)
    draft = file.with_suffix(".draft")
    polars.DataFrame(rows, schema={**kinds, **numbers}).write_parquet(draft)
    draft.replace(file)


def summarize(file: Path) -> list[dict[str, Any]]:
    """Return the figures of each country in a Parquet file, the largest volume first."""
    import polars

    total = polars.col("completed") + polars.col("refused")
    found: list[dict[str, Any]] = (
        polars.scan_parquet(file)
        .group_by("country")
        .agg(
            polars.col("completed", "refused", "cents").sum(),
            busiest=polars.col("minute").sort_by(total).last(),
        )
        .sort("cents", descending=True)
        .collect()
        .to_dicts()
    )
    return found


async def volume(request: Request) -> Response:
    """``GET /volume``: the newest hours."""
    return JSONResponse({"hours": (await service.fetch(_HOURS))[::-1]})


async def report(request: Request) -> Response:
    """``GET /report``: the analyst's figures, from the file of the last export."""
    known = await asyncio.to_thread(lambda: summarize(FILE) if FILE.exists() else [])
    return JSONResponse({"countries": known})


service = Service(
    "analytics",
    http=Starlette(routes=[Route("/volume", volume), Route("/report", report)]),
)
service.view(Volume)


@service.every(seconds=10)
async def export(tick: Tick) -> None:
    """Write the file anew."""
    await asyncio.to_thread(write, await service.fetch(_ROWS), FILE)
