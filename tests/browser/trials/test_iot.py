"""The page of the thermometers in a real browser, while readings come and a sensor is too warm."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from chromium import Opener
from playwright.sync_api import expect
from showing import showing

FED = 60_000
"""Milliseconds until all readings were fed and are shown."""


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, with few sensors."""
    with showing("iot", tmp_path_factory.mktemp("iot"), 500, "dashboard") as address:
        yield address


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "light"), (1280, "dark")])
def test_sites_trouble_and_curves_come_live(
    page_url: str, open_window: Opener, width: int, scheme: str
) -> None:
    page = open_window(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(page_url)
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#sensors")).to_have_text("100", timeout=FED)
    expect(page.locator("#silent")).to_have_text("2", timeout=FED)
    expect(page.locator("#sites button")).to_have_count(1)
    expect(page.locator("#trouble")).to_contain_text("cooled down", timeout=FED)
    expect(page.locator("#site canvas")).to_be_visible()
    expect(page.locator("#sensor canvas")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

    silent = page.locator("#trouble tr", has_text="silent").first.get_by_role("button")
    name = silent.inner_text()
    silent.click()
    expect(page.locator("#sensor-title")).to_have_text(re.compile(re.escape(name)))
    expect(silent).to_have_attribute("aria-pressed", "true")
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=f"{folder}/iot-{width}-{scheme}.png")

    page.route("**/fleet/sensors/*", lambda route: route.fulfill(json={"windows": []}))
    page.locator("#trouble tr", has_text="cooled down").first.get_by_role("button").click()
    expect(page.locator("#sensor-title")).to_have_text(re.compile("none is over yet"))
