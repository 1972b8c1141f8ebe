"""Looks at pages with axe, for what shuts somebody out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from npm import installed
from playwright.sync_api import Page

from oyez.console.pages import SCREENS

SERIOUS = ("serious", "critical")


def script() -> str:
    """Return axe, which npm installs once; skip without it."""
    folder = installed(Path(__file__).parent / "node")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


class Auditor:
    """Looks at pages with axe."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._script = script()
        self.found: list[str] = []

    def look(self) -> None:
        """Note what is serious on the page as it is now, with all its details open."""
        self._page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
        self._page.evaluate(self._script)
        result: dict[str, Any] = self._page.evaluate(
            "axe.run(document, {resultTypes: ['violations']})"
        )
        assert result["passes"], "axe has checked nothing"
        for each in result["violations"]:
            if each["impact"] in SERIOUS:
                nodes = [node["html"][:160] for node in each["nodes"][:3]]
                self.found.append(f"{self._page.url}: {each['id']}: {each['help']}: {nodes}")


def routes() -> dict[str, re.Pattern[str]]:
    """The paths of all pages that are read, each with what it matches."""
    return {
        route.path: route.path_regex
        for screen in SCREENS
        for route in screen.routes
        if "GET" in (route.methods or ()) and not re.search(r"/(live|data)(/|$)", route.path)
    }
