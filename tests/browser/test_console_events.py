"""The console's events and contracts in a real browser."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import httpx
import pytest
from chromium import Opener
from consoles import TOKEN, WIDTHS, no_sideways_scroll, open_console, press, sign_in, tab_to
from playwright.sync_api import Page, expect
from shop import Shop, copy_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with some orders."""
    shop = copy_shop(tmp_path_factory.mktemp("events"), environment={"OYEZ_TOKEN": TOKEN})
    shop.start()
    order(shop)
    yield shop
    shop.stop()


@pytest.fixture
def address(shop: Shop) -> str:
    return f"http://127.0.0.1:{shop.ports['8081']}"


def order(shop: Shop) -> str:
    """Place an order and return its id."""
    wish = {"lines": [{"sku": "bell", "quantity": 1}], "email": "ada@example.org", "card": "tok_ok"}
    with httpx.Client(base_url=shop.url, timeout=20) as client:
        client.post("/session").raise_for_status()
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answer = client.post("/orders", json=wish, headers=headers).raise_for_status()
        return str(answer.json()["order_id"])


def look(page: Page, **fields: str) -> None:
    """Fill in the form and send it."""
    page.get_by_role("combobox", name="Stream").select_option(label=fields.pop("stream"))
    for label, value in fields.items():
        page.get_by_role("textbox", name=label, exact=True).fill(value)
    page.get_by_role("button", name="Look").click()


@WIDTHS
def test_an_event_is_found_and_read(
    open_window: Opener, shop: Shop, address: str, width: int
) -> None:
    placed = order(shop)
    page = open_console(open_window, width)
    sign_in(page, address)
    page.get_by_role("link", name="Events", exact=True).click()
    look(page, stream="shop.orders", Key=placed, Type="shop.order.*")
    rows = page.get_by_role("row").filter(has=page.get_by_role("rowheader"))
    expect(rows.filter(has_text="shop.order.placed")).to_have_count(1)
    no_sideways_scroll(page)
    rows.filter(has_text="shop.order.placed").get_by_role("link").click()
    expect(page.get_by_role("heading", name="shop.order.placed")).to_be_visible()
    expect(page.get_by_label("Payload", exact=True)).to_contain_text(f'"order_id": "{placed}"')
    no_sideways_scroll(page)
    expect(page.get_by_role("link", name="What came of it")).to_have_attribute(
        "href", re.compile(r"^/find\?q=[0-9a-f-]{36}$")
    )
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert placed in download.value.path().read_text()
    page.get_by_role("link", name="Later in its partition").click()
    expect(page.get_by_role("combobox", name="Order")).to_have_value("oldest")


def test_what_arrives_is_followed_by_keyboard_and_paused(
    open_window: Opener, shop: Shop, address: str
) -> None:
    page = open_console(open_window, 1280)
    sign_in(page, address)
    page.keyboard.press("Tab")
    press(page, "g", "e")
    page.wait_for_url("**/events")
    tab_to(page, "shop.orders")
    page.keyboard.type("shop.orders")
    page.keyboard.press("Tab")
    page.keyboard.type("shop.order.placed")
    page.keyboard.press("Enter")
    page.wait_for_url("**/events?stream=embedded+shop.orders&type=shop.order.placed&**")
    tab_to(page, "Follow")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Following.")
    before = page.get_by_role("rowheader").count()
    placed = order(shop)
    first = page.locator("#events tbody tr").first
    expect(first).to_contain_text(placed)
    expect(page.get_by_role("rowheader")).to_have_count(before + 1)
    assert page.evaluate("document.activeElement.innerText") == "Pause"
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Paused")
    missed = order(shop)
    page.keyboard.press("Enter")
    expect(first).to_contain_text(missed)
    expect(page.get_by_role("rowheader")).to_have_count(before + 2)


@WIDTHS
def test_contracts_lead_to_fields_and_events(open_window: Opener, address: str, width: int) -> None:
    page = open_console(open_window, width)
    sign_in(page, address)
    page.get_by_role("link", name="Contracts", exact=True).click()
    expect(page.get_by_role("heading", name="Contracts")).to_be_visible()
    no_sideways_scroll(page)
    page.get_by_role("link", name="shop.order.placed", exact=True).click()
    row = page.get_by_role("row", name=re.compile("order_id"))
    expect(row.get_by_role("cell").first).to_have_text("string")
    expect(page.get_by_role("columnheader", name="orders publishes")).to_be_visible()
    no_sideways_scroll(page)
    page.get_by_role("link", name="its events").click()
    expect(page.get_by_role("link", name="shop.order.placed").first).to_be_visible()


def test_it_can_be_read_without_scripts(open_window: Opener, address: str) -> None:
    page = open_window(java_script_enabled=False)
    sign_in(page, address)
    page.goto(f"{address}/events")
    look(page, stream="shop.orders", Type="shop.order.placed")
    expect(page.get_by_role("rowheader").first).to_contain_text("shop.order.placed")
    expect(page.get_by_role("button", name="Follow")).to_be_hidden()
