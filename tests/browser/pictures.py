"""Takes pictures of the shop's pages; `scripts/screenshots` runs it.

A shop is started in a temporary folder, on free ports, and used as a customer would use it. Each
page is taken at two widths, in light and in dark.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

import chromium
from shop import Shop, running_shop

SIZES = {390: 844, 1280: 900}
"""Width and height of the window, in CSS pixels."""
SCHEMES = ("light", "dark")
PATIENCE = 30_000
"""Milliseconds that the shop gets to settle an order."""


class Photographer:
    """Uses the shop in one window and takes a picture of what is worth one."""

    def __init__(self, shop: Shop, page: Page, folder: Path, suffix: str) -> None:
        self._shop = shop
        self._page = page
        self._folder = folder
        self._suffix = suffix

    def take_all(self) -> None:
        """Every picture, in the order in which a customer comes by."""
        self._front()
        self._checkout()
        self._cancelled()
        self._shipped()
        self._placed()
        self._unknown()
        self._mailbox()
        self._accounts()
        self._clerk()

    def _front(self) -> None:
        self._page.goto(f"{self._shop.url}/")
        expect(self._page.locator(".product")).to_have_count(6)
        self._save("storefront")

    def _checkout(self) -> None:
        self._fill_basket()
        self._page.fill("#email", "ada@example.org")
        self._page.fill("#phone", "0612")
        self._page.click("#place-order")
        expect(self._page.locator("#phone")).to_be_focused()
        self._save("checkout")
        self._page.fill("#phone", "")

    def _cancelled(self) -> None:
        self._order("tok_declined")
        self._settled("cancelled")
        self._save("order-cancelled")

    def _shipped(self) -> None:
        self._order("tok_ok")
        self._settled("shipped")
        self._save("order-shipped")

    def _placed(self) -> None:
        # The card that times out first leaves time to look at an order under way.
        self._order("tok_slow")
        expect(self._page.locator("[data-stage=reserved][data-state=done]")).to_be_visible()
        self._save("order-placed")
        self._settled("shipped")

    def _unknown(self) -> None:
        self._page.goto(f"{self._shop.url}/order.html?id=none")
        expect(self._page.locator("#headline")).to_contain_text("don’t know")
        self._save("order-unknown")

    def _mailbox(self) -> None:
        self._page.goto(f"http://127.0.0.1:{self._shop.ports['8026']}/")
        expect(self._page.locator(".mails li").first).to_be_visible()
        self._save("mailbox")
        self._page.locator(".mails a").first.click()
        self._save("mail")

    def _accounts(self) -> None:
        self._page.goto(f"{self._shop.url}/")
        self._page.click("#log-in")
        expect(self._page.locator(".people button")).to_have_count(3)
        self._save("accounts")

    def _clerk(self) -> None:
        self._page.get_by_role("button", name="Carol Clerk").click()
        expect(self._page.locator("#who")).to_be_visible()
        self._save("storefront-clerk")
        self._page.goto(f"{self._shop.url}/clerk.html")
        expect(self._page.locator("#orders li").first).to_be_visible()
        self._save("clerk")

    def _fill_basket(self) -> None:
        self._page.goto(f"{self._shop.url}/")
        self._page.evaluate("localStorage.clear()")
        self._page.reload()
        for sku in ("lantern", "bell", "lantern"):
            self._page.click(f"[data-sku={sku}]")

    def _order(self, card: str) -> None:
        self._fill_basket()
        self._page.fill("#email", "ada@example.org")
        self._page.check(f"[value={card}]")
        self._page.click("#place-order")
        self._page.wait_for_url("**/order.html?id=*")

    def _settled(self, status: str) -> None:
        expect(self._page.locator("#order-status")).to_have_text(status, timeout=PATIENCE)
        expect(self._page.locator("#connection")).to_have_text("complete", timeout=PATIENCE)

    def _save(self, name: str) -> None:
        # From the top, or the sticky head would stand in the middle of the long picture.
        self._page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        path = self._folder / f"{name}-{self._suffix}.png"
        self._page.screenshot(path=path, full_page=True, animations="disabled")
        sys.stdout.write(f"{path}\n")


def main() -> int:
    """Take the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("screenshots"))
    parser.add_argument("--width", type=int, choices=SIZES, action="append", help="only this one")
    parser.add_argument("--scheme", choices=SCHEMES, action="append", help="only this one")
    options = parser.parse_args()
    path = chromium.find()
    if path is None:
        sys.stderr.write("screenshots: no Chromium on this machine; try scripts/system-packages\n")
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_shop(Path(folder)) as shop,
        sync_playwright() as playwright,
    ):
        browser = chromium.launch(playwright, path)
        for width in options.width or SIZES:
            for scheme in options.scheme or SCHEMES:
                size = {"width": width, "height": SIZES[width]}
                page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
                Photographer(shop, page, options.folder, f"{width}-{scheme}").take_all()
                page.context.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
