"""What a run has shown, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one part."""

    state: State
    shown: Sequence[tuple[str, str]] = ()
    """What was seen, by what it is: figures of a part that passed, reasons otherwise."""

    @classmethod
    def failed(cls, why: str, shown: Sequence[tuple[str, str]] = ()) -> Outcome:
        """Something is not as it has to be."""
        return cls("failed", [*shown, ("failed", why)])

    @classmethod
    def skipped(cls, why: str) -> Outcome:
        """This machine can't show it."""
        return cls("skipped", [("skipped", why)])


@dataclass
class Findings:
    """Figures as they are found, each with whether it is as it has to be."""

    shown: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, seen: object) -> None:
        """Keep a figure that may be anything."""
        self.shown.append((what, str(seen)))

    def hold(self, what: str, seen: object, *, right: bool, expected: str) -> None:
        """Keep a figure that has to be right."""
        self.note(what, seen)
        if not right:
            self.wrong.append(f"{what}: expected {expected}, found {seen}")

    def outcome(self) -> Outcome:
        """Return what they come to."""
        if self.wrong:
            return Outcome.failed("\n".join(self.wrong), self.shown)
        return Outcome("passed", self.shown)


class Report:
    """The outcomes of a run, in the order in which its parts ran."""

    def __init__(self, parts: Mapping[str, str]) -> None:
        self._parts = parts
        self._outcomes: dict[str, Outcome] = {}

    def add(self, part: str, outcome: Outcome) -> None:
        """Keep a part's outcome."""
        self._outcomes[part] = outcome

    def stopped(self, parts: Sequence[str]) -> None:
        """Count what has not ended as failed: a run that was stopped has not shown it."""
        for part in parts:
            self._outcomes.setdefault(part, Outcome.failed("stopped before its end"))

    @property
    def exit_code(self) -> int:
        """0 if no part failed."""
        return int(any(each.state == "failed" for each in self._outcomes.values()))

    def table(self) -> str:
        """Return all of it as text."""
        lines = []
        for part, outcome in self._outcomes.items():
            lines.append(f"{outcome.state:8} {part}: {self._parts[part]}")
            width = max((len(what) for what, _ in outcome.shown), default=0)
            for what, seen in outcome.shown:
                first, *rest = seen.splitlines() or [""]
                lines.append(f"         {what:{width}}  {first}")
                lines += [f"         {'':{width}}  {line}" for line in rest]
        counts = [sum(o.state == state for o in self._outcomes.values())
                  for state in ("passed", "failed", "skipped")]  # fmt: skip
        lines.append("{} passed, {} failed, {} skipped".format(*counts))
        return "\n".join(lines)
