"""The Parquet file, written and read by polars."""

from __future__ import annotations

from pathlib import Path

from analytics.service import summarize, write


def test_the_analyst_reads_what_was_written(tmp_path: Path) -> None:
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
