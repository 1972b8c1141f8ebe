"""The console's page of a service in a real browser: what waits in it, and for what."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import httpx
import pytest
from chromium import Opener
from consoles import READ, TOKEN, WIDTHS, no_sideways_scroll, open_console, press, sign_in, tab_to
from playwright.sync_api import Page, expect
from shop import Shop, copy_shop

HOSTILE = "<img src=x onerror='window.owned = 1'>\u202egnp\u200b\x1b[31m"
POISON = f"""    if pathlib.Path("poison").exists():
        raise ValueError(f"no box for order {{event.order_id}} " + {HOSTILE!r})
    parcel.prepared = True
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop in which `shipping.prepare` fails, and tries again in ten minutes."""
    tokens = {"OYEZ_TOKEN": TOKEN, "OYEZ_READ_TOKEN": READ}
    shop = copy_shop(tmp_path_factory.mktemp("services"), environment=tokens)
    code = shop.root / "shipping" / "service.py"
    text = code.read_text()
    text = text.replace("from oyez import", "import pathlib\n\nfrom oyez import Retry,", 1)
    text = text.replace(
        "@service.on(OrderPlaced)", "@service.on(OrderPlaced, retry=Retry(attempts=3, first=600.0))"
    )
    code.write_text(text.replace("    parcel.prepared = True\n", POISON))
    (shop.root / "poison").touch()
    shop.start()
    yield shop
    shop.stop()


@pytest.fixture
def address(shop: Shop) -> str:
    return f"http://127.0.0.1:{shop.ports['8081']}"


def order(shop: Shop) -> None:
    wish = {"lines": [{"sku": "bell", "quantity": 1}], "email": "ada@example.org", "card": "tok_ok"}
    with httpx.Client(base_url=shop.url, timeout=20) as client:
        client.post("/session").raise_for_status()
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        client.post("/orders", json=wish, headers=headers).raise_for_status()


def look(page: Page, address: str, text: str) -> None:
    """Look at shipping again until its page has this text."""
    page.goto(f"{address}/services/shipping")
    for _ in range(50):
        if page.get_by_text(text).count():
            return
        page.wait_for_timeout(200)
        page.reload()
    raise AssertionError(f"the page never had {text}")


def test_by_keyboard_from_the_list_to_what_waits_in_a_service(
    open_window: Opener, shop: Shop, address: str
) -> None:
    order(shop)
    page = open_console(open_window, 1280)
    sign_in(page, address)
    press(page, "g", "v")
    expect(page.get_by_role("heading", name="Services", exact=True)).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="shipping")).to_be_visible()
    tab_to(page, "shipping")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="shipping", exact=True)).to_be_visible()
    order(shop)
    look(page, address, "Of the last")
    look(page, address, "its next attempt")
    row = page.get_by_role("row").filter(has_text="its next attempt").first
    expect(row).to_contain_text("no box for order")
    expect(row).to_contain_text("U+202E")
    assert page.evaluate("window.owned") is None
    tab_to(page, "Configuration")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Configuration in effect")).to_be_in_viewport()
    page.get_by_role("link", name=re.compile(r"^shop\.orders$")).click()
    expect(page.get_by_role("columnheader", name="Epoch")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(1 + 8)


@WIDTHS
def test_all_of_it_fits_any_window(
    open_window: Opener, shop: Shop, address: str, width: int
) -> None:
    order(shop)
    page = open_console(open_window, width)
    sign_in(page, address)
    look(page, address, "its next attempt")
    no_sideways_scroll(page)
    for path in ("", "/shipping/partitions", "/shipping/parked", "/orders"):
        page.goto(f"{address}/services{path}")
        expect(page.get_by_role("table").first).to_be_visible()
        no_sideways_scroll(page)


def test_a_reader_without_scripts_reads_it_all(
    open_window: Opener, shop: Shop, address: str
) -> None:
    page = open_window(java_script_enabled=False)
    sign_in(page, address, READ)
    page.get_by_role("link", name="Services", exact=True).click()
    page.get_by_role("rowheader").get_by_role("link", name="orders", exact=True).click()
    expect(page.get_by_role("heading", name="Migrations")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="services.orders.http")).to_be_visible()
