"""What the referee found, rule by rule: as lines, as Markdown, and as JUnit's XML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from xml.etree import ElementTree as Xml

import msgspec

from oyez.inspection.form import escape
from oyez.wire import RULES, VERSION


class Outcome(StrEnum):
    """Of a rule."""

    KEPT = "kept"
    BROKEN = "broken"
    NOT_TRIED = "not tried"


_MARKS = {Outcome.KEPT: "✓", Outcome.BROKEN: "✗", Outcome.NOT_TRIED: "·"}


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """One rule's outcome; ``why`` tells what was seen where it is broken, or was not tried."""

    rule: str
    outcome: Outcome
    trial: str = ""
    why: str = ""

    @property
    def what(self) -> str:
        """The rule's sentence."""
        return RULES[self.rule].what


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a run; ``seconds`` is what it took, ``seed`` repeats it."""

    subject: str
    level: str
    broker: str
    seed: int
    seconds: float
    judgements: Sequence[Judgement]
    wire: str = VERSION

    @property
    def ok(self) -> bool:
        """Whether no rule is broken."""
        return not self.broken

    @property
    def broken(self) -> list[str]:
        """The rules that are broken, such as ``W7``."""
        return [each.rule for each in self.judgements if each.outcome is Outcome.BROKEN]

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"{self._title()}, seed {self.seed}"
        for each in self.judgements:
            yield f"{_MARKS[each.outcome]} {each.rule:<4}{each.what}"
            if each.why:
                yield f"       {escape(each.why)}"
        yield self._summary()

    def markdown(self) -> str:
        """The report as a page."""
        rows = [
            f"| {_MARKS[each.outcome]} | {each.rule} | {each.what} | {_cell(each.why)} |"
            for each in self.judgements
        ]
        head = ["| | | rule | |", "| --- | --- | --- | --- |"]
        return "\n".join([f"# {self._title()}", "", *head, *rows, "", f"{self._summary()}.", ""])

    def junit(self) -> str:
        """The report for CI: a test case for each rule."""
        counted = dict.fromkeys(Outcome, 0)
        for each in self.judgements:
            counted[each.outcome] += 1
        suite = Xml.Element(
            "testsuite",
            name=f"oyez conformance {self.level}",
            tests=str(len(self.judgements)),
            failures=str(counted[Outcome.BROKEN]),
            skipped=str(counted[Outcome.NOT_TRIED]),
            errors="0",
            time=f"{self.seconds:.3f}",
        )
        for each in self.judgements:
            case = Xml.SubElement(
                suite, "testcase", classname="oyez.wire", name=f"{each.rule} {each.what}"
            )
            if each.outcome is Outcome.BROKEN:
                Xml.SubElement(case, "failure", message=escape(each.why))
            elif each.outcome is Outcome.NOT_TRIED:
                Xml.SubElement(case, "skipped", message=escape(each.why))
        return Xml.tostring(suite, encoding="unicode", xml_declaration=True)

    def _title(self) -> str:
        return f"{escape(self.subject)}: level {self.level} of wire {self.wire} on {self.broker}"

    def _summary(self) -> str:
        counts = [
            f"{sum(each.outcome is outcome for each in self.judgements)} {outcome.value}"
            for outcome in Outcome
        ]
        return f"{', '.join(counts)}, in {self.seconds:.1f} s"


def _cell(text: str) -> str:
    return escape(text).replace("|", "\\|")
