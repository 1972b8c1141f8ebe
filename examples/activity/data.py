"""What is clicked: ratings of films with their real times, as clicks.

The ratings are MovieLens' 100,000, which the package recbole carries for research; they are read
where they lie, and are no part of this repository. A rating of 5 counts as a purchase.
"""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clicks.service import Click, Kind

PACKAGE = "recbole==1.2.1"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k"


def load(count: int, seed: int, folder: Path) -> tuple[list[Click], dict[str, str]]:
    """Return clicks in the order of sending, and the last item of each person, kept back.

    One in fifty comes half a minute late.
    """
    chance = random.Random(seed)
    clicks = sorted(_ratings(_wheel(folder)))[:count]
    last = {person: number for number, (_, person, *_) in enumerate(clicks)}
    held, sent = {}, []
    for number, (at, person, item, title, rating) in enumerate(clicks):
        name = f"user{person}@example.org"
        if number == last[person]:
            held[name] = item
            continue
        query = f"{title}, asked by {name}" if number % 25 == 0 else ""
        kind: Kind = "purchase" if rating == 5 else "view"
        sent.append(Click(f"{seed}-{number}", name, item, title, kind, at, query))
    sent.sort(key=lambda click: click.at + timedelta(seconds=30 * (chance.random() < 0.02)))
    return sent, held


def _wheel(folder: Path) -> Path:
    """Return the package, fetched once."""
    if not any(folder.glob("recbole-*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
        subprocess.run([*pip, PACKAGE], check=True, timeout=300)
    return next(folder.glob("recbole-*.whl"))


def _ratings(wheel: Path) -> Iterator[tuple[datetime, int, str, str, float]]:
    with zipfile.ZipFile(wheel) as package:
        items = package.read(f"{INSIDE}.item").decode().splitlines()[1:]
        lines = package.read(f"{INSIDE}.inter").decode().splitlines()[1:]
    titles = dict(line.split("\t")[:2] for line in items)
    for line in lines:
        person, item, rating, at = line.split("\t")
        yield datetime.fromtimestamp(float(at), UTC), int(person), item, titles[item], float(rating)
