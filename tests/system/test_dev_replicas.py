"""`oyez dev` with ``replicas = "1..4"``: as many as the lag needs, and every event handled once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oyez.testing.ticks import SERVICE, TOML, Ticks, until

CLOCKS = [f"clock{number}" for number in range(64)]
EACH = 220
"""So many that four are needed even when the first has handled some before it is asked."""
SCALING = """
[services.counter.scaling]
target = 6
cooldown = 6
"""


@pytest.mark.timeout(180)
async def test_replicas_come_with_the_lag_and_go_without_it(tmp_path: Path) -> None:
    """From one to four and back. A tick takes 2 ms of a replica's time, whatever its partition."""
    ticks = Ticks(tmp_path)
    toml = TOML.format(
        name=ticks.name, broker="embedded:.oyez/events.db", store="sqlite:.oyez/counter.db"
    )
    (tmp_path / "oyez.toml").write_text(toml.replace("= 2\n", '= "1..4"\n', 1) + SCALING)
    slow = SERVICE.replace(
        "async def count(event: Tick, tx: Transaction, context: Context) -> Tock:\n",
        "async def count(event: Tick, tx: Transaction, context: Context) -> Tock:\n"
        "    time.sleep(0.002)\n",
    ).replace("import asyncio, os", "import asyncio, os, time")
    (tmp_path / "counter.py").write_text(slow)
    log = tmp_path / "dev.log"
    await ticks.open()
    records = [record for _ in range(EACH) for record in ticks.ticking(*CLOCKS)]
    await ticks.broker.publish(records)
    with log.open("wb") as output:
        dev = subprocess.Popen(
            [sys.executable, "-m", "oyez", "dev", "--json", "--no-reload"],
            cwd=tmp_path,
            env=ticks.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def changes() -> list[tuple[int, int]]:
            found = re.findall(r"counter: (\d) to (\d) replicas", log.read_text())
            return [(int(before), int(after)) for before, after in found]

        async def back_to_one() -> bool:
            gone = sum(before - after for before, after in changes() if after < before)
            stopped = log.read_text().count('"event": "stopped"')
            return changes()[-1][1] == 1 and stopped == gone

        await ticks.all_seen(*CLOCKS)
        await until(back_to_one, 60.0, log.read_text)
        # On a busy machine more may not help, and are then taken back at once.
        assert max(after for _, after in changes()) == 4
        said = log.read_text()
        dev.send_signal(signal.SIGINT)
        assert dev.wait(30) == 0
        handled = [*await ticks.seen(), *await ticks.seen(table="heard")]
        pids = {pid for _, _, pid in handled}
        assert len(pids) > 1
        assert "not scaled" not in said
        assert "ended (" not in said
    finally:
        dev.kill()
        dev.wait()
        await ticks.close()
