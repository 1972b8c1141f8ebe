"""The whole bank in real processes, one of which is killed; and that the check can fail."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from check import CASES, LABELS, moment, opened, quality, replay
from feed import plan
from oyez.config import load
from oyez.project import Project

HERE = Path(__file__).resolve().parents[1]


def test_a_plan_is_the_same_for_a_seed_and_knows_its_culprits() -> None:
    end = datetime(2026, 11, 1, tzinfo=UTC)
    made = plan(2_000, 7, end)
    assert made == plan(2_000, 7, end)
    assert made != plan(2_000, 8, end)
    assert made.transfers == 2_000
    assert len(made.culprits) == 30 + 2 * 10
    times = [data["at"] for kind, data in made.items if kind == "bank.transfer.requested"]
    assert times == sorted(times)
    assert times[-1] <= end.isoformat()


def test_recall_and_precision() -> None:
    cases = [{"transfer_id": str(n), "score": n / 10} for n in range(10)]
    assert quality(cases, {"9": "x", "8": "x", "1": "x", "elsewhere": "x"}, 0.7) == (2 / 3, 2 / 3)


@pytest.mark.timeout(280)
async def test_the_bank_is_right_after_a_kill_and_the_check_sees_what_is_changed(
    tmp_path: Path,
) -> None:
    for needed in ("matplotlib", "polars", "psutil", "river"):
        pytest.importorskip(
            needed, reason="pip install -r examples/payments_fraud/requirements.txt"
        )
    copy = tmp_path / "bank"
    shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns(".oyez", "out", "__pycache__"))
    environment = {**os.environ, "OYEZ_NAME": "bank-test"}
    environment.pop("OYEZ_PROJECT", None)
    ran = subprocess.run(
        [sys.executable, "run.py", "--events", "1000"],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "killed: " in ran.stdout
    assert (copy / "out" / "payments_fraud.svg").read_text().count("</svg>") == 1

    async with opened(Project(load(copy))) as stores:
        assert await moment(stores) == []
        cases = await stores["fraud"].fetch(CASES, {})
        for case in cases:
            case.update({name: msgspec.json.decode(case[name]) for name in ("facts", "why")})
        labels = await stores["fraud"].fetch(LABELS, {})
        assert replay(cases, labels) == []
        cases[0]["score"] += 0.1
        assert len(replay(cases, labels)) == 1

        with sqlite3.connect(copy / ".oyez" / "accounts.db") as ledger:
            ledger.execute("update entry set cents = cents + 1 where booking = 'opened A00001'")
        said = await moment(stores)
        assert len(said) == 3, said
