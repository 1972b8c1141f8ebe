"""A customer in a real browser: from the catalogue to "shipped", live."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "system"))

from shop import Shop, running_shop  # noqa: E402

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LIVE = 30_000
"""Milliseconds that an order may take to reach its end in front of the customer."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with running_shop(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium on this machine: scripts/system-packages installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[390, 1280])
def page(shop: Shop, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A customer with a basket of their own; fails on any error in the console."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            errors.append(message.text)
            if message.type == "error" and "Content Security Policy" in message.text
            else None
        ),
    )
    page.goto(shop.url)
    yield page
    assert errors == []
    context.close()


def fill_basket(page: Page, sku: str = "bell") -> None:
    page.locator(f'[data-sku="{sku}"]').first.click()
    expect(page.locator("#basket-badge")).to_contain_text("1")


def check_out(page: Page, token: str, email: str = "browser@example.org") -> None:
    page.locator('input[type="email"]').fill(email)
    page.locator(f'input[type="radio"][value="{token}"]').check(force=True)
    page.locator("#place-order").click()


def no_sideways_scroll(page: Page) -> None:
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0


def test_a_customer_buys_and_sees_the_order_reach_shipped_live(page: Page) -> None:
    no_sideways_scroll(page)
    fill_basket(page)
    check_out(page, "tok_ok")
    page.wait_for_url(re.compile(r"/order\.html\?id="))
    page.evaluate("window.neverReloaded = true")
    expect(page.locator("#order-status")).to_contain_text(
        re.compile("shipped", re.IGNORECASE), timeout=LIVE
    )
    for stage in ("placed", "paid", "reserved", "confirmed", "shipped"):
        expect(page.locator(f'[data-stage="{stage}"]')).to_have_attribute("data-state", "done")
    assert page.evaluate("window.neverReloaded") is True
    no_sideways_scroll(page)


def test_a_declined_card_ends_in_cancelled_with_the_reason(page: Page) -> None:
    fill_basket(page, "quill")
    check_out(page, "tok_declined")
    expect(page.locator("#order-status")).to_contain_text(
        re.compile("cancelled", re.IGNORECASE), timeout=LIVE
    )
    expect(page.locator("main")).to_contain_text(re.compile("declined", re.IGNORECASE))


def test_the_card_that_times_out_first_still_ships(page: Page) -> None:
    fill_basket(page, "lantern")
    check_out(page, "tok_slow")
    expect(page.locator("#order-status")).to_contain_text(
        re.compile("shipped", re.IGNORECASE), timeout=LIVE
    )


def test_it_can_be_bought_with_the_keyboard_alone(page: Page) -> None:
    button = page.locator('[data-sku="scroll"]').first
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#basket-badge")).to_contain_text("1")
    email = page.locator('input[type="email"]')
    for _ in range(80):
        page.keyboard.press("Tab")
        if email.evaluate("element => element === document.activeElement"):
            break
    page.keyboard.type("keys@example.org")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.locator("#place-order").evaluate("element => element === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#order-status")).to_contain_text(
        re.compile("shipped", re.IGNORECASE), timeout=LIVE
    )


def test_a_wrong_address_is_told_beside_the_field_and_takes_the_focus(page: Page) -> None:
    fill_basket(page)
    check_out(page, "tok_ok", email="nobody")
    email = page.locator('input[type="email"]')
    expect(email).to_be_focused()
    expect(email).to_have_attribute("aria-invalid", "true")
    described = email.get_attribute("aria-describedby")
    assert described is not None
    expect(page.locator(f"#{described.split()[-1]}")).not_to_be_empty()


def test_the_basket_survives_a_reload(page: Page) -> None:
    fill_basket(page)
    page.reload()
    expect(page.locator("#basket-badge")).to_contain_text("1")


def test_an_order_belongs_to_its_customer_and_ids_are_text(
    page: Page, shop: Shop, browser: Browser
) -> None:
    fill_basket(page)
    check_out(page, "tok_ok")
    page.wait_for_url(re.compile(r"/order\.html\?id="))
    stranger = browser.new_context().new_page()
    stranger.goto(page.url)
    expect(stranger.locator("main")).to_contain_text(
        re.compile("don.t know|not found", re.IGNORECASE)
    )
    stranger.goto(f"{shop.url}/order.html?id=<img src=x onerror=document.title='owned'>")
    expect(stranger.locator("main")).to_contain_text(
        re.compile("don.t know|not found|<img", re.IGNORECASE)
    )
    assert stranger.title() != "owned"
    stranger.context.close()


def test_the_order_page_is_honest_while_orders_is_killed(page: Page, shop: Shop) -> None:
    fill_basket(page, "boots")
    check_out(page, "tok_slow")
    page.wait_for_url(re.compile(r"/order\.html\?id="))
    shop.kill("orders")
    expect(page.locator("#order-status")).to_contain_text(
        re.compile("shipped", re.IGNORECASE), timeout=60_000
    )


def test_the_mailbox_shows_what_was_sent(page: Page, shop: Shop) -> None:
    fill_basket(page)
    check_out(page, "tok_ok", email="mailbox@example.org")
    expect(page.locator("#order-status")).to_contain_text(
        re.compile("shipped", re.IGNORECASE), timeout=LIVE
    )
    mailbox = f"http://127.0.0.1:{shop.ports['8026']}"
    page.goto(mailbox)
    expect(page.locator("body")).to_contain_text("mailbox@example.org")
    policy = httpx.get(shop.url).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
