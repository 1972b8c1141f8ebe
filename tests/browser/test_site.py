"""The docs as pages from the disk: found without a server, read, light and dark, on a phone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from chromium import Opener
from consoles import no_sideways_scroll
from playwright.sync_api import Page, expect

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the written site."""
    into = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, ROOT / "scripts" / "site", "--into", into], check=True)
    return into.as_uri()


def watched(page: Page) -> list[str]:
    """What the page asks for that is no file of its own."""
    asked: list[str] = []
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:")) else asked.append(request.url)
        ),
    )
    return asked


def test_a_word_is_found_without_a_server(open_window: Opener, site: str) -> None:
    page = open_window()
    asked = watched(page)
    page.goto(f"{site}/guide/events.html")
    page.keyboard.press("/")
    page.keyboard.type("dead letters")
    first = page.locator("#found a").first
    expect(first).to_contain_text("Dead letters")
    page.keyboard.press("Enter")
    expect(page.locator("h2", has_text="Dead letters")).to_be_in_viewport()
    page.locator("#search").fill("no such word anywhere")
    expect(page.locator("#found")).to_have_text("Nothing found.")
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit(open_window: Opener, site: str, scheme: str, width: int) -> None:
    page = open_window(viewport={"width": width, "height": 844}, color_scheme=scheme)
    asked = watched(page)
    for name in ("index", "five-minutes", "comparison", "brokers/kafka", "reference/oyez"):
        page.goto(f"{site}/{name}.html")
        expect(page.locator("main h1")).to_be_visible()
        no_sideways_scroll(page)
    assert asked == []


def test_the_theme_is_chosen_and_the_list_opens(open_window: Opener, site: str) -> None:
    page = open_window(viewport={"width": 390, "height": 844}, color_scheme="light")
    page.goto(f"{site}/why.html")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(paper) != light
    link = page.get_by_role("link", name="Tutorial", exact=True)
    expect(link).not_to_be_visible()
    page.get_by_text("Pages", exact=True).click()
    link.click()
    expect(page.locator("main h1")).to_have_text("Tutorial")
