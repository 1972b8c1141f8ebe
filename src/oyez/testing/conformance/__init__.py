"""The conformance kit: a referee of programs in any language that follow wire 1.0.

`docs/wire/conformance.md` says what a program under test has to do. `Referee` tries it, by its
broker and by what it shows alone, and gives a `Verdict`.
"""

from oyez.testing.conformance.referee import Plan, Referee
from oyez.testing.conformance.verdict import Judgement, Verdict

__all__ = ["Judgement", "Plan", "Referee", "Verdict"]
