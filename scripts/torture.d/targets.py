"""What the whole campaign comes to: how much of each part on each broker and store, and what of it
the results do not show yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import results
from grounds import BROKERS, STORES

Result = Mapping[str, Any]


class Target(NamedTuple):
    """So many faults of a part on a broker and a store, in runs of ``piece`` faults each."""

    part: str
    broker: str
    store: str
    wanted: int
    piece: int
    counts: str = ""
    """How the names begin of the faults that count: by default all but duplicates."""
    seconds: float = 300.0
    """What a run takes, before one has been seen."""

    @property
    def place(self) -> tuple[str, str, str]:
        """What is run."""
        return self.part, self.broker, self.store

    def of(self, result: Result) -> bool:
        """Whether a run was for this."""
        return (result["part"], result["broker"], result["store"]) == self.place

    def done(self, kept: Iterable[Result]) -> int:
        """Return the faults that runs have survived which were neither void nor harmed."""
        return sum(
            count
            for result in kept
            if self.of(result) and not results.failed(result)
            for name, count in result["faults"].items()
            if name.startswith(self.counts) and name != "duplicate"
        )

    def missing(self, kept: Iterable[Result]) -> int:
        """Return the faults that are still to fire."""
        return max(0, self.wanted - self.done(kept))

    def tried(self, kept: Sequence[Result]) -> float:
        """Return the share that was tried; a run that failed counts as if it had been whole.

        So a target that fails comes after the others, and is still missing. One whose cause was
        found and mended counts no more.
        """
        failures = sum(
            self.of(result) and results.failed(result) and not result.get("because")
            for result in kept
        )
        return (self.done(kept) + failures * self.piece) / self.wanted

    def takes(self, kept: Sequence[Result]) -> float:
        """Return the seconds that the next run may take."""
        seen = [result["seconds"] for result in kept if self.of(result) and result["seconds"]]
        return float(max(seen[-3:])) if seen else self.seconds


_SERVED = tuple(name for name in BROKERS if name not in ("embedded", "sns_sqs"))
"""Brokers that are servers, and keep what they have through a crash: the emulator does not.

Nor does RabbitMQ through a power loss, as it says: its streams are flushed later.
"""

TARGETS: tuple[Target, ...] = (
    *(
        Target("kills", broker, store, 1_000, 100 if broker == "sns_sqs" else 250, "kill")
        for broker in BROKERS
        for store in STORES
    ),
    Target("calls", "embedded", "sqlite", 600, 1_000_000, "kill", 400.0),
    *(Target("servers", broker, "postgresql", 40, 20) for broker in _SERVED),
    *(Target("links", broker, "postgresql", 40, 120, "partition") for broker in _SERVED),
    Target("power", "embedded", "sqlite", 50, 25),
    *(Target("power", broker, "postgresql", 10, 10) for broker in _SERVED if broker != "rabbitmq"),
    Target("bytes", "embedded", "sqlite", 25, 25),
    *(
        Target(part, broker, store, count, piece)
        for part, count, piece in (
            ("disk", 30, 30),
            ("clock", 40, 40),
            ("members", 40, 40),
            ("events", 36, 42),  # every seventh delivers old events again, and counts for nothing
        )
        for broker, store in (("embedded", "sqlite"), ("nats", "postgresql"))
    ),
    Target("soak", "embedded", "sqlite", 300, 360, seconds=3_900.0),  # as every sixth does here
    *(Target("soak", broker, "sqlite", 200, 120, seconds=1_500.0) for broker in ("kafka", "nats")),
)


def following(
    kept: Sequence[Result], seconds: float, targets: Sequence[Target] = TARGETS
) -> Target | None:
    """Return the target whose tried share is the smallest, of those with a run that fits into so
    many seconds; None if there is none."""
    fitting = [each for each in targets if each.missing(kept) and each.takes(kept) <= seconds]
    return min(fitting, key=lambda each: each.tried(kept), default=None)


def shown(kept: Sequence[Result], targets: Sequence[Target] = TARGETS) -> str:
    """Return what is done and missing, for a person."""
    lines = []
    for each in targets:
        failures = sum(each.of(result) and results.failed(result) for result in kept)
        lines.append(
            f"{each.part:8} {each.broker:10} {each.store:10} {each.done(kept):6,} of"
            f" {each.wanted:,}" + (f", {failures} runs failed" if failures else "")
        )
    events = sum(result["events"] for result in kept if not results.failed(result))
    return "\n".join([*lines, f"events seen: {events:,} of 1,000,000"])
