"""Whether every link of a written site leads somewhere, and nothing is asked of another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

_FAR = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
_LOADS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_CALLS = re.compile(r"""\b(?:fetch|import|WebSocket|EventSource|XMLHttpRequest|sendBeacon)\s*\(""")


class _Page(HTMLParser):
    """The anchors of a page, what it leads to, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.leads: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.leads.append(given["href"])
        elif "href" in given:
            self.loads.append(given["href"])
        for name in ("src", "srcset", "poster", "data", "action", "formaction"):
            if name in given:
                self.loads.append(given[name])
        self.loads += ["".join(found) for found in _LOADS.findall(given.get("style", ""))]


def faults(folder: Path) -> list[str]:
    """What is wrong, each in a line."""
    pages = {}
    for file in folder.rglob("*.html"):
        page = pages[file.resolve()] = _Page()
        page.feed(file.read_text())
    found = []
    for file, page in pages.items():
        where = file.relative_to(folder.resolve())
        for link in page.leads + page.loads:
            if _FAR.match(link):
                if link in page.loads and not link.startswith("data:"):
                    found.append(f"{where}: asks another host: {link}")
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (file.parent / path).resolve() if path else file
            if target.is_dir() or not target.exists():
                found.append(f"{where}: leads nowhere: {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{where}: no such place: {link}")
    found += [
        f"{file.name}: asks another host: {''.join(loaded)}"
        for file in folder.rglob("*.css")
        for loaded in _LOADS.findall(file.read_text())
        if _FAR.match("".join(loaded))
    ]
    found += [
        f"{file.name}: calls for something"
        for file in folder.glob("*.js")
        if file.name != "index.js" and _CALLS.search(file.read_text())
    ]
    return sorted(found)
