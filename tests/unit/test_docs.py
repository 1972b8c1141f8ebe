"""The docs are true: their code runs, their settings load, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_origin

import msgspec
import pytest

from oyez import adapters, signals
from oyez.cli import _COMMANDS
from oyez.config import (
    BridgeSettings,
    Companion,
    ConsoleLoginSettings,
    ConsoleSettings,
    CorsSettings,
    GatewaySettings,
    HttpBridgeSettings,
    IdempotencySettings,
    IngestSettings,
    IssuerSettings,
    Limit,
    LoginSettings,
    OpenapiSettings,
    Route,
    ScalingSettings,
    SenderSettings,
    ServiceSettings,
    SystemSettings,
    WebhookSettings,
    load,
)
from oyez.observe.catalogue import CATALOGUE
from oyez.testing import running

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if not page.name.startswith(".")
)
GUIDE = [p for p in PAGES if p.parent.name == "guide" or p.name in ("README.md", "why.md")]

SECRET = "whsec_dGhlIHZhbHVlIG9mIGEgdmFyaWFibGUh"
"""The value of each variable that a page names."""

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]")
_FILE = re.compile(r"(?:#|--) ((?:[\w-]+/)*[\w-]+\.(?:py|sql|toml))\n")
_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_MACHINE = re.compile(r"(?<![\w.}/~])/(?:work|home|root|Users)/")


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start(2)))
        for found in _FENCE.finditer(text)
    ]


def install(page: Path, folder: Path) -> None:
    """Make the entry points that a page shows those of a package that lies in the folder."""
    shown = "".join(block.text for block in blocks(page) if block.language == "ini")
    metadata = folder / "shown-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shown\nVersion: 1.0\n")
    points = tomllib.loads(shown).get("project", {}).get("entry-points", {})
    lines = [
        line
        for group, names in points.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    adapters.found.cache_clear()


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that is the current one and holds the modules that a page writes."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    adapters.found.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", GUIDE, ids=named)
async def test_the_code_of_a_page_runs(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks run in order in one namespace, then the tests that they define.

    A block whose first line is a comment with a file's name is that file. The tests may ask for
    the fixtures `running` and `monkeypatch`.
    """
    fixtures = {"running": partial(running, root=folder), "monkeypatch": monkeypatch}
    install(page, folder)
    module = types.ModuleType("page")
    namespace = module.__dict__
    sys.modules["page"] = module
    try:
        for block in blocks(page):
            file = _FILE.match(block.text)
            if file is not None:
                forget(file[1], monkeypatch)
                path = folder / file[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            if block.language != "python":
                continue
            if file is not None:
                importlib.invalidate_caches()
                found = vars(importlib.import_module(file[1].removesuffix(".py")))
                namespace.update({k: v for k, v in found.items() if not k.startswith("__")})
            else:
                await run(block, named(page), namespace)
        for name, test in list(namespace.items()):
            if name.startswith("test_"):
                wanted = inspect.signature(test).parameters
                answer = test(**{each: fixtures[each] for each in wanted})
                if inspect.isawaitable(answer):
                    await answer
    finally:
        del sys.modules["page"]


def forget(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the page's file be imported, though another test holds a module of its name."""
    name = file.partition("/")[0].removesuffix(".py")
    for each in list(sys.modules):
        if each == name or each.startswith(f"{name}."):
            monkeypatch.delitem(sys.modules, each)


async def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    source = "\n" * block.line + block.text
    code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    answer = eval(code, namespace)
    if inspect.isawaitable(answer):
        await answer


def test_there_is_code_to_run() -> None:
    without = {
        named(page) for page in GUIDE if not any(b.language == "python" for b in blocks(page))
    }
    assert without == {
        f"docs/guide/{name}.md"
        for name in (
            "access",
            "api-reference",
            "asynchrony",
            "bridges",
            "browsers",
            "console",
            "deployment",
            "deploy-test",
            "large-systems",
            "limits",
            "login",
            "metrics",
            "operations",
            "options",
            "performance",
            "runbook",
            "scaling",
            "security",
        )
    }


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_settings_of_a_page_load(page: Path, folder: Path) -> None:
    install(page, folder)
    for number, block in enumerate(b for b in blocks(page) if b.language == "toml"):
        file = folder / f"{number}.toml"
        file.write_text(block.text)
        load(file, dict.fromkeys(_VARIABLE.findall(block.text), SECRET))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(prose(page))
    return {re.sub(r"[^\w -]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    missing = []
    for file, test in _TEST.findall(prose(page)):
        found = [*(ROOT / "tests").rglob(file), *(ROOT / "examples").rglob(file)]
        if not any(f"def {test}(" in each.read_text() for each in found):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_each_point_of_owasp_has_tests() -> None:
    text = (ROOT / "docs" / "guide" / "security.md").read_text()
    rows = re.findall(r"^\| \*\*(API\d+)\*\* .*$", text, re.MULTILINE)
    assert rows == [f"API{number}" for number in range(1, 11)]
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith(("| |", "| ---", "| input")):
            assert _TEST.search(line), line


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in _LINK.findall(index.read_text())}
    assert [named(page) for page in PAGES if page not in linked and page != index] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_names_no_place_of_this_machine(page: Path) -> None:
    assert _MACHINE.findall(page.read_text()) == []


def test_decisions_are_numbered_and_have_their_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} "), page.name
        parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert parts == ["Context", "Choice", "Consequences"], page.name


def test_no_requirement_names_a_registry() -> None:
    for file in (ROOT / "requirements").iterdir():
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", file.read_text())


def test_every_dependency_is_explained() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text().lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"].get("optional-dependencies", {}).values():
        wanted.extend(extra)
    for file in (ROOT / "requirements").glob("*.in"):
        wanted.extend(line for line in file.read_text().splitlines() if line[:1].isalnum())
    names = {re.match(r"[A-Za-z0-9._-]+", each)[0].lower() for each in wanted}  # type: ignore[index]
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_readme_lists_every_command() -> None:
    rows = re.findall(r"^\| `oyez ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == list(_COMMANDS)


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("[system]", SystemSettings),
        ("[services.NAME]", ServiceSettings),
        ("[services.NAME.bridge]", HttpBridgeSettings),
        ("[services.NAME.scaling]", ScalingSettings),
        ("[gateway]", GatewaySettings),
        ("[gateway.issuers.NAME]", IssuerSettings),
        ("[gateway.cors]", CorsSettings),
        ("[gateway.openapi]", OpenapiSettings),
        ("[gateway.limits.NAME]", Limit),
        ("[gateway.idempotency]", IdempotencySettings),
        ("[gateway.login]", LoginSettings),
        ("[[gateway.routes]]", Route),
        ("[gateway.ingest]", IngestSettings),
        ("[gateway.ingest.senders.NAME]", SenderSettings),
        ("[gateway.webhooks.NAME]", WebhookSettings),
        ("[console]", ConsoleSettings),
        ("[console.login]", ConsoleLoginSettings),
        ("[bridges.NAME]", BridgeSettings),
        ("[companions.NAME]", Companion),
    ],
)
def test_every_setting_is_in_the_tables(heading: str, schema: type[msgspec.Struct]) -> None:
    text = (ROOT / "docs" / "guide" / "operations.md").read_text()
    section = text.partition(f"### `{heading}`\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z_]+)`", section, re.MULTILINE)
    # Tables within it are under headings of their own.
    fields = [f.name for f in msgspec.structs.fields(schema) if get_origin(f.type) is Annotated]
    assert listed == fields


def test_every_signal_is_in_the_table() -> None:
    text = (ROOT / "docs" / "guide" / "operations.md").read_text()
    names = [
        name
        for name, each in vars(signals).items()
        if isinstance(each, type)
        and issubclass(each, signals.Signal)
        and each is not signals.Signal
    ]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "guide" / "metrics.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `oyez_")]
    made = [
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | "
        f"{', '.join(each.where)} | {each.text} |"
        for each in CATALOGUE
    ]
    assert rows == [row.replace("|  |", "| |") for row in made]


def test_the_options_are_those_of_the_code() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "options"], capture_output=True, text=True, check=True
    )
    page = ROOT / "docs" / "guide" / "options.md"
    assert ran.stdout == page.read_text(), "run: python scripts/options > docs/guide/options.md"
