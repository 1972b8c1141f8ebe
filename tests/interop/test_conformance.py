"""The conformance kit: Oyez's own counter and one in Go are green, planted bugs are named.

``OYEZ_TEST_BUGS`` is how many of the planted bugs are tried, 10 for all: some at a time, as each
run mostly waits.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import asyncpg
import pytest

from oyez.wire import RULES, Level
from servers import Server, server

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "wire" / "1.0.md"
BUGS = {
    "newer-as-old": "W18",
    "ack-before-commit": "W21",
    "inbox-apart": "W23",
    "id-only": "W24",
    "crc32": "W7",
    "delete-before-confirm": "W27",
    "unordered": "W26",
    "position-unguarded": "W22",
    "dead-drops-bytes": "W17",
    "no-park": "W28",
}
"""The mistakes that ``COUNTER_BUG`` plants in the Go counter, and the rule that each breaks."""
TRIED = list(BUGS)[: int(os.environ.get("OYEZ_TEST_BUGS", "1"))]
OURS = f"{sys.executable} -m oyez.testing.counter"
DEADLINE = 240.0
AT_ONCE = 3

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Go counter, built; Go keeps what it has compiled."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed: scripts/system-packages")
    program, here = tmp_path_factory.mktemp("go") / "counter", HERE / "counter"
    try:
        done = subprocess.run(
            ["go", "mod", "download"],
            cwd=here, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("go can't download the counter's modules: no answer within 120 s")
    if done.returncode != 0:
        pytest.skip(f"go can't download the counter's modules: {done.stderr.strip()[-300:]}")
    build = ["go", "build", "-p", "2", "-o", str(program), "."]
    subprocess.run(build, cwd=here, timeout=250, check=True)
    return str(program)


async def conformance(
    *arguments: str, level: Level = Level.SERVICE, bug: str = "", codes: tuple[int, ...] = (0,)
) -> dict[str, Any]:
    """The verdict of a run as JSON, which ends with one of the codes."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oyez", "conformance", "run", "--json", "--level", level,
        *arguments,
        stdout=pipe, stderr=pipe, env={**os.environ, "COUNTER_BUG": bug},
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE):
            said, error = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode in codes, said.decode() + error.decode()
    verdict = json.loads(said)
    print(f"{verdict['subject']} {bug} on {verdict['broker']}: {verdict['seconds']:.1f} s")
    return dict(verdict)


def outcomes(verdict: dict[str, Any], outcome: str) -> set[str]:
    return {each["rule"] for each in verdict["judgements"] if each["outcome"] == outcome}


def of_level(level: Level) -> set[str]:
    return {name for name, rule in RULES.items() if level in rule.levels}


def proxied(kafka: Server) -> str:
    """What ``--proxy`` is told of the server that `scripts/services` runs."""
    return f"{kafka.host}:{kafka.ports['proxied']}={kafka.ports['proxy']}"


async def test_oyez_itself_keeps_every_rule(tmp_path: Path) -> None:
    """On a log in a file, on NATS and on Kafka; what Kafka's proxy is for, is tried in Go."""
    urls = [f"embedded:{tmp_path / 'events.db'}", server("nats").url, server("kafka").url]
    junit, page = tmp_path / "junit.xml", tmp_path / "report.md"
    written = ("--junit", str(junit), "--report", str(page))
    verdicts = await asyncio.gather(
        *(
            conformance("--broker", url, "--start", OURS, "--kills", "1", *more)
            for url, more in zip(urls, (written, (), ()), strict=True)
        )
    )
    for verdict in verdicts:
        assert outcomes(verdict, "broken") == set()
        cut = {"W12"} if verdict["broker"] != "nats" else set()
        assert outcomes(verdict, "kept") == of_level(Level.SERVICE) - cut
    assert int(Xml.parse(junit).getroot().get("tests", 0)) == len(RULES)
    assert f"| ✓ | W1 | {RULES['W1'].what} |" in page.read_text()


async def test_a_program_in_go_keeps_every_rule(counter: str) -> None:
    """As a service on NATS and on Kafka, as a producer and as a consumer."""
    kafka, nats = server("kafka"), server("nats").url
    runs = [
        (Level.SERVICE, nats, ()),
        (Level.SERVICE, kafka.url, ("--proxy", proxied(kafka))),
        (Level.PRODUCER, nats, ()),
        (Level.CONSUMER, nats, ()),
    ]
    verdicts = await asyncio.gather(
        *(
            conformance("--broker", url, "--start", counter, "--kills", "2", *more, level=level)
            for level, url, more in runs
        )
    )
    for (level, _, _), verdict in zip(runs, verdicts, strict=True):
        assert outcomes(verdict, "kept") == of_level(level), verdict


async def test_each_planted_bug_is_named_by_its_rule(counter: str) -> None:
    """None beside it, except what the same bug breaks as well."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def found(bug: str) -> set[str]:
        async with turns:
            verdict = await conformance(
                "--broker", server("nats").url, "--start", counter, "--patience", "6",
                bug=bug, codes=(0, 1),
            )  # fmt: skip
            return outcomes(verdict, "broken")

    broken = await asyncio.gather(*map(found, TRIED))
    assert dict(zip(TRIED, broken, strict=True)) == {bug: {BUGS[bug]} for bug in TRIED}


async def test_a_subject_that_ends_is_told_with_its_last_words() -> None:
    start = f"{sys.executable} -c \"import sys; sys.exit('no such thing')\""
    verdict = await conformance("--broker", server("nats").url, "--start", start, codes=(1,))
    whys = [each["why"] for each in verdict["judgements"] if each["outcome"] == "broken"]
    assert any("ended by itself with exit code 1; its last words: no such thing" in w for w in whys)


async def test_the_tables_and_statements_of_the_page_are_postgresql() -> None:
    _, tables, statements = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    connection = await asyncpg.connect(server("postgresql").url)
    try:
        await connection.execute("begin; create schema wire; set local search_path to wire")
        await connection.execute(tables)
        bare = re.sub(r"^--.*$", "", statements, flags=re.MULTILINE)
        for statement in filter(str.strip, bare.split(";")):
            for number, name in enumerate(dict.fromkeys(re.findall(r":(\w+)", statement)), 1):
                statement = re.sub(rf":{name}\b", f"${number}", statement)
            await connection.prepare(statement)
    finally:
        await connection.close()
