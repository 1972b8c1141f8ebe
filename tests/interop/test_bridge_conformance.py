"""A server of the standard library behind the HTTP bridge keeps the rules of wire 1.0.

``OYEZ_TEST_BROKERS`` names further brokers, such as ``nats kafka``: each takes most of a minute.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from oyez.wire import RULES, Level
from servers import server

PROGRAM = f"{sys.executable} {Path(__file__).parent / 'bridge_counter.py'}"
BROKERS = ["embedded", *os.environ.get("OYEZ_TEST_BROKERS", "").split()]

pytestmark = pytest.mark.timeout(280)


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_server_behind_the_bridge_keeps_every_rule(broker: str, tmp_path: Path) -> None:
    url = f"embedded:{tmp_path / 'events.db'}" if broker == "embedded" else server(broker).url
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oyez", "conformance", "run", "--json", "--level", "service",
        "--broker", url, "--start", PROGRAM, "--kills", "1",
        stdout=pipe, stderr=pipe,
    )  # fmt: skip
    said, error = await process.communicate()
    assert process.returncode == 0, said.decode() + error.decode()
    kept = {each["rule"] for each in json.loads(said)["judgements"] if each["outcome"] == "kept"}
    # The connection to a file can't be cut, nor that to a broker which says where to connect.
    not_tried = set() if broker == "nats" else {"W12"}
    assert kept == {n for n, rule in RULES.items() if Level.SERVICE in rule.levels} - not_tried
