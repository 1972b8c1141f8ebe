"""Collects the findings of an inspection."""

from __future__ import annotations

from oyez.ports import Finding


class Findings:
    """The findings of one inspection, in order."""

    def __init__(self, about: str = "") -> None:
        """Create it empty; ``about`` is the beginning of each finding's text."""
        self.found: list[Finding] = []
        self._about = about

    def tell(self, wrong: bool, what: str, remedy: str, *, grave: bool = True) -> None:
        """Add a finding if something is ``wrong``; see `oyez.ports.Finding`."""
        if wrong:
            self.found.append(Finding(grave=grave, what=self._about + what, remedy=remedy))
