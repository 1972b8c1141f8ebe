"""The page of the bank in a real browser, while transfers come and some are refused."""

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

FED = 60_000
"""Milliseconds until some transfers are refused, and the file is written."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page."""
    folder = tmp_path_factory.mktemp("bank")
    with showing("payments_fraud", folder, 1_500, "fraud", "analytics") as address:
        yield address


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_cases_volume_and_report(
    open_window: Opener, address: str, width: int, scheme: str
) -> None:
    window = open_window(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    window.goto(address)
    expect(window.locator("#counts")).to_contain_text("looked at")
    expect(window.locator("#cases tr").nth(5)).to_be_visible(timeout=FED)
    expect(window.locator("#cases tr").first).to_contain_text(re.compile(r"\d\.\d\d"))
    expect(window.locator("#report tr").first).to_be_visible(timeout=FED)
    expect(window.locator("#volume .bar").first).to_be_visible()
    no_sideways_scroll(window)
    auditor = Auditor(window)
    auditor.look()
    assert auditor.found == []
    if folder := os.environ.get("PICTURES"):
        window.screenshot(path=f"{folder}/payments_fraud-{width}-{scheme}.png")
