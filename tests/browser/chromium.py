"""Finds this machine's Chromium and starts it without a window, for the tests and the pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from playwright.sync_api import Browser, Page, Playwright

Opener = Callable[..., Page]
"""Opens a window; takes the options of `Browser.new_context`."""

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # the sandbox refuses to run as root, and only our own pages are opened
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def launch(playwright: Playwright, path: str) -> Browser:
    """A headless Chromium."""
    return playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
