"""Docs are code: what they show runs, what they link to exists, what is used is explained."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from oyez.config import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
async def test_every_python_example_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        # The page's blocks follow from each other; its annotations are looked up in one module.
        exec(compile(block, str(page), "exec", dont_inherit=True), namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test_"):
            result = value()
            if inspect.isawaitable(result):
                await result


def test_the_readme_has_an_example_with_a_test() -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    assert "async def test_" in example


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_toml_example_is_a_valid_configuration(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        path = tmp_path / "oyez.toml"
        path.write_text(block)
        load(path, {})


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_and_picture_exists(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_every_dependency_is_explained() -> None:
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for file in (ROOT / "requirements").glob("*.in"):
        lines = file.read_text().splitlines()
        wanted += [line for line in lines if line and not line.startswith(("#", "-"))]
    for line in wanted:
        name = re.match(r"[A-Za-z0-9-]+", line)
        assert name is not None
        assert f"`{name[0]}" in explained, f"docs/dependencies.md does not explain {name[0]}"


def test_no_tracked_file_names_a_registry() -> None:
    for file in (ROOT / "requirements").iterdir():
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", file.read_text())
