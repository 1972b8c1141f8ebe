"""The pages of the site, out of Markdown and of what that links to."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.util import ClassNotFound
from reference import MODULES, reference

HERE = Path(__file__).parent
_FAR = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_ENTRY = re.compile(r"\[([^\]]+)\]\(([^)]+)\)(?:: (.+))?")
_LONGEST = 400
"""Characters of a section that a search may find."""


@dataclass
class Page:
    """One page: where its source lies in the repository, and what it says."""

    source: str
    title: str
    body: Markup
    sections: list[tuple[str, str, str]] = field(default_factory=list)
    """Anchor, heading and text of each section."""

    @property
    def place(self) -> str:
        """Where it lies in the site."""
        return place_of(self.source)


def place_of(source: str) -> str:
    """Where the page of a file of the repository lies in the site."""
    if source == "README.md":
        return "index.html"
    if source == "docs/index.md":
        return "contents.html"
    name = source.removeprefix("docs/")
    if name.startswith("reference/") or source.endswith(".md"):
        return f"{name.removesuffix('.md')}.html"
    return f"source/{source}.html"


class Site:
    """The site of a checkout."""

    def __init__(self, root: Path, into: Path) -> None:
        self._root = root
        self._into = into
        self._markdown = MarkdownIt("commonmark", {"html": True, "highlight": code}).enable(
            ["table", "strikethrough"]
        )
        self._markdown.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
        self._markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        self._version = project["version"]
        self._about = project["description"]
        self._templates = Environment(
            loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html"])
        )
        self._wanted: list[str] = []

    def write(self) -> int:
        """Write all of it; the number of pages."""
        shutil.rmtree(self._into, ignore_errors=True)
        self._into.mkdir(parents=True)
        pages = [*self._documents(), *self._references()]
        done = {page.source for page in pages}
        while self._wanted:
            source = self._wanted.pop()
            if source not in done:
                done.add(source)
                pages.append(
                    self._document(source) if source.endswith(".md") else self._source(source)
                )
        navigation = self._navigation()
        layout = self._templates.get_template("page.html")
        for page in pages:
            file = self._into / page.place
            file.parent.mkdir(parents=True, exist_ok=True)
            up = "../" * page.place.count("/")
            text = layout.render(
                page=page, up=up, version=self._version, navigation=navigation, about=self._about
            )
            file.write_text(text)
        for name in ("site.css", "site.js"):
            shutil.copy(HERE / name, self._into)
        (self._into / "code.css").write_text(colours())
        (self._into / "index.js").write_text(f"const INDEX = {json.dumps(list(index(pages)))};\n")
        (self._into / "llms.txt").write_text(self._for_models())
        return len(pages)

    def _documents(self) -> Iterator[Page]:
        for file in sorted((*self._root.glob("*.md"), *(self._root / "docs").rglob("*.md"))):
            yield self._document(str(file.relative_to(self._root)))

    def _references(self) -> Iterator[Page]:
        for module in MODULES:
            yield self._page(f"docs/reference/{module}.md", reference(module))

    def _document(self, source: str) -> Page:
        return self._page(source, (self._root / source).read_text())

    def _page(self, source: str, text: str) -> Page:
        tokens = self._markdown.parse(text)
        title, sections, taken = "", [], set[str]()
        for number, token in enumerate(tokens):
            if token.type == "heading_open":
                said = tokens[number + 1]
                name = "".join(child.content for child in said.children or ())
                anchor = anchor_of(name, taken)
                token.attrSet("id", anchor)
                title = title or name
                sections.append((anchor, name, ""))
            elif token.type == "inline" and sections and tokens[number - 1].type != "heading_open":
                anchor, name, so_far = sections[-1]
                said_here = " ".join(
                    child.content for child in token.children or () if child.content
                )
                sections[-1] = (anchor, name, f"{so_far} {said_here}"[:_LONGEST].strip())
            self._lead(source, token)
        body = Markup(self._markdown.renderer.render(tokens, self._markdown.options, {}))
        return Page(source, title, body, sections)

    def _lead(self, source: str, token: Token) -> None:
        """Let the links and pictures of a token lead to places of the site."""
        for child in token.children or ():
            for name in ("href", "src"):
                if child.attrGet(name):
                    child.attrSet(name, self._place(source, str(child.attrGet(name))))
        if token.type == "html_block":
            token.content = re.sub(
                r'src="([^"]+)"',
                lambda found: f'src="{self._place(source, found[1])}"',
                token.content,
            )

    def _place(self, source: str, link: str) -> str:
        """Where a link of a page leads in the site; what it leads to is wanted there, too."""
        path, mark, anchor = link.partition("#")
        if not path or _FAR.match(link):
            return link
        target = os.path.normpath(Path(source).parent / path)
        here = place_of(source)
        if not (self._root / target).exists():
            return link  # the check finds it
        if Path(target).suffix in (".png", ".svg"):
            place = f"pictures/{Path(target).name}"
            (self._into / "pictures").mkdir(exist_ok=True)
            shutil.copy(self._root / target, self._into / place)
        else:
            self._wanted.append(target)
            place = place_of(target)
        return os.path.relpath(place, Path(here).parent) + mark + anchor

    def _source(self, source: str) -> Page:
        """A file as it is, or the list of a folder's files."""
        path = self._root / source
        if path.is_dir():
            shown = sorted(
                str(each.relative_to(self._root))
                for each in path.rglob("*")
                if each.suffix in (".py", ".sql", ".toml", ".json", ".in", ".txt")
                and not {"__pycache__", ".oyez", "node_modules"} & set(each.parts)
            )
            self._wanted += shown
            here = Path(place_of(source)).parent
            places = [(os.path.relpath(place_of(each), here), html.escape(each)) for each in shown]
            rows = "".join(f'<li><a href="{place}">{name}</a></li>' for place, name in places)
            return Page(source, source, Markup(f"<h1>{html.escape(source)}</h1><ul>{rows}</ul>"))
        try:
            lexer = get_lexer_for_filename(path.name)
        except ClassNotFound:
            lexer = get_lexer_by_name("text")
        shown_text = highlight(path.read_text(), lexer, HtmlFormatter(cssclass="code"))
        return Page(source, source, Markup(f"<h1>{html.escape(source)}</h1>{shown_text}"))

    def _navigation(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The groups of docs/index.md, each with its pages, and the reference."""
        groups: list[tuple[str, list[tuple[str, str]]]] = [("Begin", [])]
        for line in (self._root / "docs" / "index.md").read_text().splitlines():
            if line.startswith("## "):
                groups.append((line[3:], []))
            for title, link, _ in _ENTRY.findall(line):
                source = os.path.normpath(f"docs/{link}")
                if source.endswith(".md"):
                    groups[-1][1].append((title, place_of(source)))
        modules = [(module, f"reference/{module}.html") for module in MODULES]
        groups.insert(2, ("Reference", modules))
        return groups

    def _for_models(self) -> str:
        """llms.txt: what there is, a line for each page."""
        lines = [f"# Oyez {self._version}", "", f"> {self._about}", ""]
        for line in (self._root / "docs" / "index.md").read_text().splitlines()[2:]:
            moved = _ENTRY.sub(
                lambda m: m[0].replace(m[2], self._place("docs/index.md", m[2])), line
            )
            lines.append(moved)
        lines += ["", "## Reference", ""]
        lines += [
            f"- [{module}](reference/{module}.html): {said}" for module, said in MODULES.items()
        ]
        return "\n".join(lines) + "\n"


def code(text: str, language: str, _: object) -> str:
    """A block of code in colours; a diagram that needs a program of others is folded away."""
    try:
        lexer = get_lexer_by_name(language or "text")
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    shown = highlight(text, lexer, HtmlFormatter(nowrap=True))
    block = f'<pre class="code" tabindex="0"><code>{shown}</code></pre>'
    if language == "mermaid":
        return f"<pre hidden></pre><details><summary>As Mermaid</summary>{block}</details>"
    return block


def colours() -> str:
    """The colours of code, by the page's theme."""

    def of(style: str, place: str) -> str:
        return str(HtmlFormatter(style=style, nobackground=True).get_style_defs(place))

    light = of("xcode", ":root .code")
    dark = of("github-dark", ':root[data-theme="dark"] .code')
    system = of("github-dark", ':root:not([data-theme="light"]) .code')
    return f"{light}\n{dark}\n@media (prefers-color-scheme: dark) {{\n{system}\n}}\n"


def anchor_of(name: str, taken: set[str]) -> str:
    """The anchor of a heading, as hosts of repositories make it."""
    anchor = plain = re.sub(r"[^\w -]", "", name.lower()).strip().replace(" ", "-")
    number = 0
    while anchor in taken:
        number += 1
        anchor = f"{plain}-{number}"
    taken.add(anchor)
    return anchor


def index(pages: list[Page]) -> Iterator[tuple[str, str, str, str]]:
    """What a search looks through: page, heading, where, text."""
    for page in pages:
        if (
            page.source.startswith(("docs/decisions", "benchmarks", "CHANGELOG"))
            or not page.sections
        ):
            continue
        for anchor, heading, text in page.sections:
            yield page.title, heading, f"{page.place}#{anchor}", text
