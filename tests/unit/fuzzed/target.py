"""Readers of strangers' bytes, and the running of them on what Hypothesis makes of good inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st

Check = Callable[[bytes], None]
"""Takes any bytes. It lets through only what it may raise, and checks what it is told."""


class Target(NamedTuple):
    """What makes a check, given an empty folder, and inputs that are good or nearly so."""

    make: Callable[[Path], Check]
    seeds: list[bytes]


@st.composite
def inputs(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed of which a few places are cut out, doubled, or replaced by bytes or other seeds."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 12)))
        other = draw(st.sampled_from(seeds))
        start = draw(st.integers(0, len(other)))
        piece = other[start : start + draw(st.integers(0, 12))]
        new = draw(st.binary(max_size=4) | st.just(data[at:until] * 2) | st.just(piece))
        data = data[:at] + new + data[until:]
    return data


def run(target: Target, folder: Path, seconds: float) -> int:
    """Check generated inputs for a number of seconds, and at least some; return how many."""
    check = target.make(folder)
    for seed in target.seeds:
        check(seed)
    count = 0

    @examples(
        max_examples=300,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target.seeds) | st.binary(max_size=200))
    def each(data: bytes) -> None:
        nonlocal count
        count += 1
        check(data)

    end = time.monotonic() + seconds
    each()
    while time.monotonic() < end:
        each()
    return count
