"""The code in docs/guide/other-languages.md that is no Python does what the page says."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from wires import WIRES, Line, line

from oyez import Principal
from oyez.envelope import Envelope, open_record
from oyez.identity import Signer, new_key
from oyez.partitioning import partition_of
from oyez.ports import Record
from servers import ROOT

PAGE = (ROOT / "docs" / "guide" / "other-languages.md").read_text()
PARTITIONS = 8
"""What the page's code assumes, and what a stream gets by default."""
DEADLINE = 60.0
JAVASCRIPT = """
import {{ text }} from "node:stream/consumers";
{code}
const asked = JSON.parse(await text(process.stdin));
console.log(JSON.stringify(asked.map(([key, count]) => partitionOf(key, count))));
"""
GO = """
package main

import (
	"encoding/binary"
	"encoding/json"
	"os"
)

{code}

func main() {{
	var asked [][2]any
	json.NewDecoder(os.Stdin).Decode(&asked)
	found := []uint32{{}}
	for _, each := range asked {{
		found = append(found, partitionOf(each[0].(string), uint32(each[1].(float64))))
	}}
	json.NewEncoder(os.Stdout).Encode(found)
}}
"""
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_. äöüß東京ключ🎈"
QUESTIONS = [
    ((LETTERS * 2)[start : start + size], count)
    for size in range(41)
    for start in range(0, len(LETTERS), 7)
    for count in (1, 7, 8, 1_000, 2**31 - 1)
]
"""Keys of every length in several alphabets, and numbers of partitions."""


def block(language: str, first: str) -> str:
    """The page's one block of code that begins so."""
    found = re.findall(rf"^```{language}\n({re.escape(first)}.*?)^```$", PAGE, re.M | re.S)
    assert len(found) == 1, (language, first)
    return str(found[0])


async def answer(folder: Path, *command: str) -> list[int]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    said, error = await process.communicate(json.dumps(QUESTIONS).encode())
    assert process.returncode == 0, error.decode()
    found: list[int] = json.loads(said)
    return found


WANTED = [partition_of(key, count) for key, count in QUESTIONS]


async def test_the_partition_in_javascript(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed: scripts/system-packages")
    (tmp_path / "ask.mjs").write_text(JAVASCRIPT.format(code=block("js", "// murmur2.mjs")))
    assert await answer(tmp_path, "node", "ask.mjs") == WANTED


async def test_the_partition_in_go(tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    (tmp_path / "ask.go").write_text(GO.format(code=block("go", "// imports")))
    assert await answer(tmp_path, "go", "run", "ask.go") == WANTED


def test_the_scripts_beside_these_tests_have_the_pages_function(node_packages: Path) -> None:
    assert (node_packages / "murmur2.mjs").read_text() == block("js", "// murmur2.mjs")


CALLER = """
import { text } from "node:stream/consumers";
import { caller } from "./identity.mjs";
const { keys, tokens, now } = JSON.parse(await text(process.stdin));
console.log(JSON.stringify(tokens.map((token) => {
  try {
    return caller(token, keys, "shop", "orders", now);
  } catch (error) {
    return error.message;
  }
})));
"""


async def test_a_callers_identity_in_javascript(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed: scripts/system-packages")
    (tmp_path / "identity.mjs").write_text(block("js", "// identity.mjs"))
    (tmp_path / "ask.mjs").write_text(CALLER)
    pem, now = new_key(), 1_800_000_000.0
    signer = Signer("shop", pem)
    ann = Principal(kind="user", issuer="login", subject="ann", roles=frozenset({"clerk"}))
    token = signer.sign(ann, "orders", now)
    head, claims, signature = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    asked = {
        "keys": json.loads(signer.jwks)["keys"],
        "now": now,
        "tokens": [
            token,
            f"{head}.{claims}.{signature[:-4]}AAAA",
            f"{none}.{claims}.",
            "a.b",
            Signer("shop", new_key()).sign(ann, "orders", now),
            signer.sign(ann, "payments", now),
            Signer("bank", pem).sign(ann, "orders", now),
            signer.sign(ann, "orders", now - 70),
            signer.sign(ann, "orders", now + 70),
        ],
    }
    process = await asyncio.create_subprocess_exec(
        "node", "ask.mjs", cwd=tmp_path, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    said, error = await process.communicate(json.dumps(asked).encode())
    assert process.returncode == 0, error.decode()
    proven, *refused = json.loads(said)
    assert (proven["sub"], proven["authtype"], proven["roles"]) == (ann.name, "app_user", ["clerk"])
    assert refused == [
        *["not signed by this gateway"] * 2, "no token", "not signed by this gateway",
        *["for another"] * 2, *["not valid now"] * 2,
    ]  # fmt: skip


# -- producers and consumers -----------------------------------------------------------------------


def address(line: Line) -> str:
    """What the page's code has in BROKER."""
    server = line.server
    return f"{server.host}:{server.port}" if server.name == "kafka" else server.url


def written(line: Line, folder: Path, packages: Path, name: str) -> Path:
    """A script of the page, on the line's stream instead of shop.orders."""
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(packages / "node_modules")
        (folder / "murmur2.mjs").write_text(block("js", "// murmur2.mjs"))
    code = block("js", f"// {name}")
    stream = line.stream
    code = code.replace("shop.orders", stream).replace("shop_orders", stream.replace(".", "_"))
    code = code.replace('"reports"', f'"{stream}"')  # the group, which others may be in
    script = folder / name
    script.write_text(code)
    return script


async def lines(line: Line, script: Path, count: int) -> list[str]:
    """The first lines that a consumer prints, without its driver's log; then it is ended."""
    found: list[str] = []
    environment = {**os.environ, "BROKER": address(line)}
    process = await asyncio.create_subprocess_exec(
        "node", script, stdout=PIPE, env=environment, cwd=script.parent
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE):
            while len(found) < count and (text := (await process.stdout.readline()).decode()):
                if not text.startswith('{"level":'):
                    found.append(text.rstrip("\n"))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return found


async def produced(line: Line, *command: str | Path) -> None:
    environment = {**os.environ, "BROKER": address(line)}
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=environment)
    _, error = await process.communicate()
    assert process.returncode == 0, error.decode()


def check(record: Record) -> None:
    envelope = open_record(record.headers, record.data)
    assert (envelope.type, envelope.source, envelope.key) == (
        "shop.order.placed",
        "/legacy",
        "4711",
    )
    assert json.loads(envelope.data) == {"order_id": "4711"}
    assert record.key == "4711"
    assert record.partition == partition_of("4711", PARTITIONS)


@pytest.mark.parametrize("wire", WIRES)
async def test_the_pages_producer_and_consumer(
    wire: str, node_packages: Path, tmp_path: Path
) -> None:
    ours = Envelope(
        id="1", source="/shop/orders", type="shop.order.paid", subject="Jürgen 1", data=b'{"a": 1}'
    )
    async with line(wire, tmp_path, PARTITIONS) as to:
        await produced(to, "node", written(to, tmp_path, node_packages, f"{wire}-produce.mjs"))
        (record,) = await to.records(1)
        check(record)
        await to.broker.publish(
            [Record(stream=to.stream, key=ours.key, headers=ours.headers(), data=ours.data)]
        )
        consumer = written(to, tmp_path, node_packages, f"{wire}-consume.mjs")
        assert sorted(await lines(to, consumer, 2)) == [
            'shop.order.paid Jürgen 1 {"a": 1}',
            'shop.order.placed 4711 {"order_id":"4711"}',
        ]


async def test_the_pages_kcat(tmp_path: Path) -> None:
    for program in ("kcat", "bash"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: scripts/system-packages")
    async with line("kafka", tmp_path, PARTITIONS) as to:
        code = block("sh", "kcat").replace("shop.orders", to.stream)
        environment = {**os.environ, "BROKER": address(to)}
        process = await asyncio.create_subprocess_exec(
            "bash", "-ec", code, stdout=PIPE, stderr=PIPE, env=environment
        )
        said, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        assert said.decode().startswith("4711 ce_specversion=1.0,ce_id=1,")
        (record,) = await to.records(1)
    check(record)
