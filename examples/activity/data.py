"""What is clicked: ratings of films with their real times, or clicks made up in the same shape.

The ratings are MovieLens' 100,000, which the package recbole carries for research; they are read
where they lie, and are no part of this repository. A rating of 5 counts as a purchase.
"""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

PACKAGE = "recbole==1.2.1"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k"
PEOPLE, FILMS, KINDS = 943, 1_682, 12
LATE = 30.0
"""Seconds by which one click in fifty comes late."""
HELD_OUT = 5
"""Clicks that a person has at least whose last one is kept back, to be guessed."""


class Sent(msgspec.Struct):
    """A click as a shop would send it; ``at`` is in seconds since the first one."""

    id: str
    name: str
    item: str
    title: str
    kind: str
    at: float
    query: str = ""


def load(
    count: int, seed: int, folder: Path, source: str
) -> tuple[list[Sent], dict[str, str], str]:
    """Return clicks in the order of sending, what was kept back by name, and where it is from."""
    chance = random.Random(seed)
    wheel = _wheel(folder) if source == "ml-100k" else None
    if wheel is not None:
        told, clicks = f"MovieLens 100k of {PACKAGE}", sorted(_ratings(wheel))[:count]
    else:
        told, clicks = f"made up by seed {seed}", sorted(_made(chance, count))[:count]
    first = clicks[0][0] if clicks else 0.0
    each = Counter(person for _, person, *_ in clicks)
    left, held, sent = Counter(each), {}, []
    for n, (at, person, item, title, rating) in enumerate(clicks):
        name = f"user{person:04d}@example.org"
        left[person] -= 1
        if not left[person] and each[person] >= HELD_OUT:
            held[name] = item
            continue
        query = f"{title}, asked by {name}" if n % 25 == 0 else ""
        kind = "purchase" if rating == 5 else "view"
        sent.append(Sent(f"{seed}-{n}", name, item, title, kind, at - first, query))
    sent.sort(key=lambda click: click.at + (LATE if chance.random() < 0.02 else 0.0))
    return sent, held, told


def _wheel(folder: Path) -> Path | None:
    """Fetch the package, once; None where it can't be had."""
    found = next(folder.glob("recbole-*.whl"), None)
    if found is None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
        subprocess.run([*pip, PACKAGE], check=False, timeout=300)
        found = next(folder.glob("recbole-*.whl"), None)
    return found


def _ratings(wheel: Path) -> Iterator[tuple[float, int, str, str, int]]:
    with zipfile.ZipFile(wheel) as package:
        items = package.read(f"{INSIDE}.item").decode().splitlines()[1:]
        lines = package.read(f"{INSIDE}.inter").decode().splitlines()[1:]
    titles = {row[0]: row[1] for row in (line.split("\t") for line in items)}
    for line in lines:
        person, item, rating, at = line.split("\t")
        yield float(at), int(person), item, titles[item], int(float(rating))


def _made(chance: random.Random, count: int) -> Iterator[tuple[float, int, str, str, int]]:
    """As many people and films; each person likes two kinds of film, and some films are known."""
    films = defaultdict(list)
    for film in range(1, FILMS + 1):
        films[film % KINDS].append(film)
    seen: dict[int, set[int]] = defaultdict(set)
    made, begin = 0, 0.0
    while made < count:
        begin += chance.expovariate(1 / 9_000)
        person, at = chance.randint(1, PEOPLE), begin
        for _ in range(chance.randint(5, 90)):
            at += chance.expovariate(1 / 15)
            of = films[(person + chance.choice((0, 0, 5))) % KINDS]
            film = of[min(int(chance.paretovariate(0.6)) - 1, len(of) - 1)]
            if film not in seen[person]:
                seen[person].add(film)
                made += 1
                yield at, person, str(film), f"Film {film}", chance.randint(1, 5)
