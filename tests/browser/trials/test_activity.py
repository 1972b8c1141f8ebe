"""The page of the activity example in a real browser: live, of a person, of nobody any more."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from axe import Auditor
from chromium import Opener
from consoles import no_sideways_scroll
from playwright.sync_api import expect
from showing import showing

PATIENCE = 60_000
"""Milliseconds until something is trending."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, with its key."""
    folder = tmp_path_factory.mktemp("shop")
    with showing("activity", folder, 20_000, "clicks", "profiles") as address:
        yield address


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_the_page_lives_and_shuts_nobody_out(
    open_window: Opener, address: str, width: int, scheme: str
) -> None:
    window = open_window(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    window.goto(address)
    expect(window.locator("#state")).to_have_text("live")
    expect(window.locator("#trending li").first).to_be_visible(timeout=PATIENCE)
    assert int(window.locator("#clicks").inner_text().replace(",", "")) > 0
    window.get_by_role("button", name="Show").click()
    expect(window.locator("#said")).to_contain_text("clicks")
    expect(window.locator("#recent li").first).to_be_visible()
    no_sideways_scroll(window)
    auditor = Auditor(window)
    auditor.look()
    assert auditor.found == []
    if folder := os.environ.get("PICTURES"):
        window.screenshot(path=f"{folder}/activity-{width}-{scheme}.png", full_page=True)


def test_who_is_forgotten_is_nobody(
    open_window: Opener, address: str, complaints: list[str]
) -> None:
    window = open_window()
    window.goto(address)
    expect(window.locator("#trending li").first).to_be_visible(timeout=PATIENCE)
    name = window.locator("#name")
    window.get_by_role("button", name="Show").click()
    expect(window.locator("#recent li").first).to_be_visible()
    window.get_by_role("button", name="Forget").click()
    expect(window.locator("#said")).to_have_text("Forgotten.")
    expect(window.locator("#person")).to_be_hidden()
    name.fill("nobody@example.org")
    window.get_by_role("button", name="Show").click()
    expect(window.locator("#said")).to_have_text("Nobody of this name is known here")
    window.goto("about:blank")
    window.goto(re.sub("key=[^&]+", "key=", address))
    window.get_by_role("button", name="Show").click()
    expect(window.locator("#said")).to_contain_text("key")
    assert sorted(re.findall(r"status of (\d+)", " ".join(complaints))) == ["401", "404"]
    complaints.clear()
