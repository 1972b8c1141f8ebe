"""The board of the parcels in a real browser, while they fly and tours are planned."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from axe import Auditor
from chromium import Opener
from consoles import no_sideways_scroll
from playwright.sync_api import expect
from showing import showing

FED = 90_000
"""Milliseconds until a round is planned, and a parcel delivered."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the board."""
    with showing("logistics", tmp_path_factory.mktemp("parcels"), 1_500, "map") as address:
        yield address


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_stages_legs_and_tours(open_window: Opener, address: str, width: int, scheme: str) -> None:
    window = open_window(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    window.goto(address)
    expect(window.locator("#state")).to_have_text("live")
    expect(window.locator("#stages dd").nth(2)).not_to_have_text("0", timeout=FED)
    expect(window.locator("#legs line").first).to_be_attached()
    expect(window.locator("#tours polyline").first).to_be_attached(timeout=FED)
    no_sideways_scroll(window)
    auditor = Auditor(window)
    auditor.look()
    assert auditor.found == []
    if folder := os.environ.get("PICTURES"):
        window.screenshot(path=f"{folder}/logistics-{width}-{scheme}.png")
