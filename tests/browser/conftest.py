"""A shop, a browser, and windows in which nothing may go wrong unseen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chromium
import pytest
from chromium import Opener
from playwright.sync_api import Browser, Page, sync_playwright
from shop import Shop, running_shop

WIDE = {"width": 1280, "height": 900}
PATIENCE = 15_000
"""Milliseconds that a page gets to become as expected, where a test does not say otherwise."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One shop for the tests of a module."""
    with running_shop(tmp_path_factory.mktemp("browser")) as shop:
        yield shop


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright, path)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the consoles said; a test that provokes something takes it out of here."""
    complaints: list[str] = []
    yield complaints
    assert complaints == []


@pytest.fixture
def open_window(browser: Browser, complaints: list[str]) -> Iterator[Opener]:
    """Opens a window of a customer of their own: no cookies, no basket."""
    contexts = []

    def open_it(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # Chromium reports requests that fail and violations of the policy as errors too.
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type == "error" else None,
        )
        return page

    yield open_it
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_window: Opener, shop: Shop) -> Page:
    """A wide window with the shop's first page."""
    page = open_window()
    page.goto(shop.url)
    return page
