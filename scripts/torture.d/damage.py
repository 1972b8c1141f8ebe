"""Damage to the embedded broker's file: it has to be found, or to have changed nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
from journal import Journal

from oyez.config import load
from oyez.errors import OyezError
from oyez.inspection import history
from oyez.ports import Record
from oyez.project import Project

FILE = Path(".oyez") / "events.db"


async def inflict(root: Path, scratch: Path, journal: Journal, seed: int, count: int) -> None:
    """Damage copies of the broker's file so many times, and write down what became of each.

    Every other time a byte is another one, or the file has lost its end.
    """
    chance = random.Random(seed)
    whole = await _contents(root)
    for number in range(count):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(root, scratch, ignore=shutil.ignore_patterns("outside", "*.bell"))
        what = _flip(scratch / FILE, chance) if number % 2 else _cut(scratch / FILE, chance)
        try:
            became = "harmless" if await _contents(scratch) == whole else "skipped"
        except OyezError as error:
            became = "refused" if str(scratch / FILE) in str(error) else f"unclear: {error}"
        journal.write("damage", what=what, became=became)
    shutil.rmtree(scratch, ignore_errors=True)


def _flip(file: Path, chance: random.Random) -> str:
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= chance.randrange(1, 256)
    file.write_bytes(content)
    return f"byte {place} is another"


def _cut(file: Path, chance: random.Random) -> str:
    size = chance.randrange(file.stat().st_size)
    with file.open("r+b") as open_:
        open_.truncate(size)
    return f"cut to {size} bytes"


async def _contents(root: Path) -> list[bytes]:
    """Every record, whole, as the broker hands it out."""
    found: list[Record] = []
    project = Project(load(root, {}))
    async with project.opened_broker() as broker:
        places = await history.ends(broker, await history.streams(broker))
        short = await history.scan(broker, places, found.append)
    return sorted(msgspec.json.encode(each) for each in found) + [repr(p).encode() for p in short]
