"""Takes the console's pictures of the guide; `scripts/screenshots console` runs it.

A shop whose parcels can't be packed is started on free ports. It lies beside the tests, since it is
their shop: what the pictures show is what they check.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import chromium
from test_console import order, poisoned, sign_in

LOOKS = {"": (1600, "light"), "-dark": (1600, "dark"), "-390": (390, "light")}
"""What stands behind a picture's name, with the window's width and its theme."""
PATIENCE = 30_000
"""Milliseconds that the shop gets to fail."""
ORDERS = 6


def take(page: Page, address: str, folder: Path, suffix: str) -> None:
    """Take a picture of each page."""

    def save(name: str) -> None:
        page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        path = folder / f"console-{name}{suffix}.png"
        page.screenshot(path=path, full_page=True, animations="disabled")
        sys.stdout.write(f"{path}\n")

    sign_in(page, address)
    alert = page.get_by_role("link", name=re.compile(f"{ORDERS} dead letters of shipping.prepare"))
    expect(alert).to_be_visible(timeout=PATIENCE)
    # Rates are of two looks, and a line of three.
    for _ in range(3):
        with page.expect_event("requestfinished", timeout=PATIENCE):
            page.reload()
        expect(alert).to_be_visible(timeout=PATIENCE)
    save("overview")
    page.goto(f"{address}/dead")
    save("dead")
    page.get_by_role("rowheader").get_by_role("link").first.click()
    expect(page.get_by_role("columnheader", name="Letter")).to_be_attached()
    save("letters")
    page.get_by_role("link", name="Redrive or discard them all").click()
    expect(page.get_by_role("heading", name="Dry run")).to_be_visible()
    save("many")
    page.go_back()
    page.get_by_role("rowheader").get_by_role("link").first.click()
    expect(page.get_by_label("Payload", exact=True)).to_be_visible()
    save("letter")


def main() -> int:
    """Take the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/screenshots console", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("screenshots"))
    options = parser.parse_args()
    path = chromium.find()
    if path is None:
        sys.stderr.write("screenshots: no Chromium on this machine; try scripts/system-packages\n")
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        shop = poisoned(Path(folder))
        shop.start()
        try:
            (shop.root / "poison").touch()
            for _ in range(ORDERS):
                order(shop)
            browser = chromium.launch(playwright, path)
            for suffix, (width, scheme) in LOOKS.items():
                size = {"width": width, "height": 900}
                page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
                take(page, f"http://127.0.0.1:{shop.ports['8081']}", options.folder, suffix)
                page.context.close()
            browser.close()
        finally:
            shop.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
