"""The site is whole by itself: its links lead somewhere, and nothing comes from another host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import oyez
import oyez.testing

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "site.d"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` writes it."""
    into = tmp_path_factory.mktemp("site")
    command = [sys.executable, ROOT / "scripts" / "site", "--into", into]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "every link checked" in done.stdout
    return into


def test_every_page_of_the_docs_is_there(site: Path) -> None:
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name != "index.md"]
    assert len(pages) > 60
    for page in pages:
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").exists()


def test_every_public_name_has_its_place(site: Path) -> None:
    for module in (oyez, oyez.testing):
        page = (site / "reference" / f"{module.__name__}.html").read_text()
        missing = [name for name in module.__all__ if f'id="{name.lower()}"' not in page]
        assert missing == []


def test_models_find_every_page_of_the_guide(site: Path) -> None:
    text = (site / "llms.txt").read_text()
    for page in (ROOT / "docs" / "guide").glob("*.md"):
        assert f"(guide/{page.stem}.html)" in text


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.html", '<a href="b.html">b</a>', "leads nowhere: b.html"),
        ("a.html", '<a href="#b">b</a>', "no such place: #b"),
        ("a.html", '<img src="https://elsewhere.example/b.png">', "asks another host"),
        ("a.html", '<link href="//elsewhere.example/b.css">', "asks another host"),
        ("a.html", '<p style="background: url(https://elsewhere.example)">', "asks another host"),
        ("a.css", "@import 'https://elsewhere.example/a.css';", "asks another host"),
        ("a.css", "a { background: url(//elsewhere.example/a.png) }", "asks another host"),
        ("a.js", "fetch(place)", "calls for something"),
    ],
)
def test_a_fault_is_found(tmp_path: Path, name: str, text: str, fault: str) -> None:
    from checked import faults

    (tmp_path / name).write_text(text)
    (found,) = faults(tmp_path)
    assert fault in found


def test_a_link_to_another_host_is_no_request(tmp_path: Path) -> None:
    from checked import faults

    (tmp_path / "a.html").write_text('<a href="https://elsewhere.example">b</a>')
    assert faults(tmp_path) == []
