"""What tests of the console's screens share: tokens, the sign-in, and the keyboard."""

from __future__ import annotations

import pytest
from chromium import Opener
from playwright.sync_api import Page, expect

TOKEN = "the-operators-token"
READ = "the-readers-token"
WIDTHS = pytest.mark.parametrize("width", [390, 1600])
"""The narrowest and the widest window."""


def sign_in(page: Page, address: str, token: str = TOKEN) -> None:
    """Open the console, sign in, and wait for its overview."""
    page.goto(address)
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Topology")).to_be_visible()


def press(page: Page, *keys: str) -> None:
    """Press the console's own keys, once its script hears them."""
    expect(page.get_by_role("button", name="Keys")).to_be_visible()
    for key in keys:
        page.keyboard.press(key)


def no_sideways_scroll(page: Page) -> None:
    """Fail if the page is wider than its window."""
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def open_console(open_window: Opener, width: int) -> Page:
    """Open a window of this width."""
    return open_window(viewport={"width": width, "height": 900})


def tab_to(page: Page, name: str) -> None:
    """Press Tab until a link or button of that name has the focus; fails after a hundred."""
    for _ in range(100):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.innerText ?? ''")
        if name in focused:
            return
    raise AssertionError(f"no Tab leads to {name}")
