"""The picture: how well fraud is found at each threshold, and how fast transfers are settled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from check import quality
from fraud.rules import LIMIT


def draw(
    cases: list[dict[str, Any]], culprits: dict[str, str], seconds: list[float], file: Path
) -> None:
    """Draw recall and precision over the threshold, and the times from request to end."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "oyez"
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    limits = [step / 50 for step in range(5, 61)]
    found = [quality(cases, culprits, limit) for limit in limits]
    left.plot(limits, [recall for recall, _ in found], label="recall", color="#0b6e99")
    left.plot(limits, [precision for _, precision in found], label="precision", color="#c2571a")
    left.axvline(LIMIT, color="#777777", linestyle=":", label="refused from here on")
    left.set(title="Planted fraud that is found", xlabel="score", ylim=(0, 1.03))
    left.legend(loc="lower left")
    right.ecdf([each * 1000 for each in seconds] or [0.0], color="#0b6e99")
    right.set(title="From request to end", xlabel="milliseconds", ylabel="share of transfers")
    for each in (left, right):
        each.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
