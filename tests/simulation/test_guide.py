"""docs/guide/simulation.md, done as it says: from two services to the first bug, mended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "simulation.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def simulate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return oyez(folder, "simulate", *options)


def oyez(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "oyez", *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_first_bug_is_found_and_mended(tmp_path: Path) -> None:
    for language, body in _BLOCK.findall(PAGE.read_text()):
        if language == "toml":
            (tmp_path / "oyez.toml").write_text(body)
        elif body.startswith("# "):
            (tmp_path / body.split()[1]).write_text(body)
    found = simulate(tmp_path, "--seeds", "200", "--jobs", "1")
    assert found.returncode == 1, found.stderr
    assert "each_order_is_charged_once: AssertionError: charged" in found.stdout
    seed = re.search(r"^again: oyez simulate --seed (\d+)$", found.stdout, re.MULTILINE)
    assert seed is not None
    assert f"seed {seed[1]} fails" in PAGE.read_text()

    again = simulate(tmp_path, "--seed", seed[1], "--json")
    assert again.returncode == 1
    value = json.loads(again.stdout)
    assert "FakeBank.charge" in str(value["failure"]["story"])

    calm = simulate(tmp_path, "--seeds", "20", "--faults", "none", "--jobs", "1")
    assert calm.returncode == 0, calm.stdout + calm.stderr
    typed = simulate(tmp_path, "--faults", "fire")
    assert typed.returncode == 2
    assert "unknown: fire; there are: crash," in typed.stderr

    toml = (tmp_path / "oyez.toml").read_text()
    (tmp_path / "oyez.toml").write_text(toml.replace("payments:service", "mended:service"))
    mended = simulate(tmp_path, "--seeds", "100", "--jobs", "2")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "nothing found" in mended.stdout


def test_a_flow_of_production_comes_again(tmp_path: Path) -> None:
    for language, body in _BLOCK.findall(PAGE.read_text()):
        if language == "toml":
            (tmp_path / "oyez.toml").write_text(body)
        elif body.startswith("# "):
            (tmp_path / body.split()[1]).write_text(body)
    event = '{"order_id": "4711", "cents": 900}'
    assert oyez(tmp_path, "publish", "shop.order.placed", event).returncode == 0
    exported = oyez(tmp_path, "flow", "4711", "--export", "flow.jsonl")
    assert exported.returncode == 0, exported.stderr
    assert "1 events written to flow.jsonl" in exported.stdout
    file = tmp_path / "flow.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    (line,) = [json.loads(each) for each in file.read_text().splitlines()]
    assert line["headers"]["type"] == "shop.order.placed"
    assert line["data"]["cents"] == 900

    # In production nobody was there to charge for it, and today somebody is.
    found = simulate(tmp_path, "--replay", "flow.jsonl", "--seeds", "3", "--faults", "none")
    assert found.returncode == 1
    assert "never reached: the flow goes as it went" in found.stderr
    paid = line | {"headers": line["headers"] | {"type": "shop.order.paid"}}
    paid["headers"] |= {"id": "another", "causationid": line["headers"]["id"]}
    file.write_text(f"{json.dumps(line)}\n{json.dumps(paid)}\n")
    found = simulate(
        tmp_path, "--replay", "flow.jsonl", "--seeds", "3", "--faults", "none", "--broker", "kafka"
    )
    assert found.returncode == 0, found.stdout + found.stderr

    file.write_text("{}\n")
    wrong = simulate(tmp_path, "--replay", "flow.jsonl")
    assert wrong.returncode == 2
    assert "flow.jsonl:1: " in wrong.stderr
    assert "expected what `oyez flow ID --export FILE` writes" in wrong.stderr
    assert "unknown: fax; there are: embedded," in simulate(tmp_path, "--broker", "fax").stderr


def test_without_a_scenario_events_are_drawn(tmp_path: Path) -> None:
    for language, body in _BLOCK.findall(PAGE.read_text()):
        if language == "toml":
            (tmp_path / "oyez.toml").write_text(body)
        elif body.startswith(("# orders.py", "# payments.py")):
            (tmp_path / body.split()[1]).write_text(body)
    source = (tmp_path / "payments.py").read_text().replace("    await bank.charge", "    # ")
    provided = 'raise NotImplementedError("your client of the bank")'
    (tmp_path / "payments.py").write_text(
        source.replace(provided, "return object()  # type: ignore")
    )
    found = simulate(tmp_path, "--seeds", "20", "--jobs", "1", "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    assert json.loads(found.stdout)["seeds"] == 20
