"""The console's sagas in a real browser: from what is stuck to its history and its cure."""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Iterator

import httpx
import pytest
from chromium import Opener
from consoles import READ, TOKEN, WIDTHS, no_sideways_scroll, open_console, press, sign_in, tab_to
from playwright.sync_api import expect
from shop import Shop, copy_shop

SOON = 30_000
"""Milliseconds within which services have done what an order asks of them."""
POISON = """    if pathlib.Path("poison").exists():
        raise ValueError("no shelf")
    for line in event.lines:
"""


OFFLINE = """    if pathlib.Path("offline").exists():
        raise ValueError("no line")
    try:
        captured"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop that ships before it is paid, so that an order whose card is declined is stuck.

    It reserves nothing as long as there is a file "poison", and charges nothing as long as there is
    one "offline".
    """
    tokens = {"OYEZ_TOKEN": TOKEN, "OYEZ_READ_TOKEN": READ}
    shop = copy_shop(tmp_path_factory.mktemp("console"), environment=tokens)
    _edit(shop, "orders", "after=(reserve, charge, *REVIEW)", "after=(reserve,)")
    _edit(shop, "shipping", "self.prepared and self.paid and", "self.prepared and")
    _edit(shop, "inventory", "from oyez import", "import pathlib\n\nfrom oyez import Retry,")
    _edit(shop, "inventory", "on(OrderPlaced)", "on(OrderPlaced, retry=Retry(attempts=1))")
    _edit(shop, "inventory", "    for line in event.lines:\n", POISON)
    _edit(shop, "payments", "from oyez import", "import pathlib\n\nfrom oyez import")
    _edit(shop, "payments", "attempts=10, first=0.25", "attempts=1000, first=0.05")
    _edit(shop, "payments", "longest=30.0", "longest=0.1")
    _edit(shop, "payments", "    try:\n        captured", OFFLINE)
    shop.start()
    yield shop
    shop.stop()


@pytest.fixture
def address(shop: Shop) -> str:
    return f"http://127.0.0.1:{shop.ports['8081']}"


def _edit(shop: Shop, service: str, old: str, new: str) -> None:
    code = shop.root / service / "service.py"
    text = code.read_text()
    assert old in text
    code.write_text(text.replace(old, new, 1))


def order(shop: Shop, card: str) -> str:
    wish = {"lines": [{"sku": "bell", "quantity": 1}], "email": "ada@example.org", "card": card}
    with httpx.Client(base_url=shop.url, timeout=20) as client:
        client.post("/session").raise_for_status()
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answer = client.post("/orders", json=wish, headers=headers).raise_for_status()
        return str(answer.json()["order_id"])


def stuck_order(shop: Shop) -> str:
    """An order that was shipped before its card was declined."""
    (shop.root / "offline").touch()
    key = order(shop, "tok_declined")
    shop.wait_for(lambda: standing(shop, key) == ("running", "charge"))
    (shop.root / "offline").unlink()
    shop.wait_for(lambda: standing(shop, key) == ("stuck", ""))
    return key


def standing(shop: Shop, key: str) -> tuple[str, str] | None:
    """The status of an order's saga, and the steps that it waits for."""
    with sqlite3.connect(shop.root / ".oyez" / "orders.db") as connection:
        sql = "select status, step from oyez_saga where key = ?"
        found: tuple[str, str] | None = connection.execute(sql, (key,)).fetchone()
    return found


@WIDTHS
def test_from_what_is_stuck_to_its_history_and_its_retry(
    open_window: Opener, shop: Shop, address: str, width: int
) -> None:
    key = stuck_order(shop)
    page = open_console(open_window, width)
    sign_in(page, address)
    page.get_by_role("link", name="Sagas", exact=True).click()
    stuck = page.get_by_role("link", name=re.compile("Fulfilment stuck on charge"))
    expect(stuck).to_be_visible(timeout=SOON)
    no_sideways_scroll(page)
    page.goto(f"{address}/sagas/orders/Fulfilment")
    picture = page.get_by_role("region", name="Where they stand")
    expect(picture).to_contain_text(re.compile(r"charge .*1 stuck"))
    no_sideways_scroll(page)
    page.get_by_role("row").filter(has_text=key).get_by_role("link").click()
    expect(page.get_by_text("Stuck on charge")).to_be_visible()
    history = page.get_by_role("table").last
    expect(history).to_contain_text("shop.payment.failed")
    expect(history).to_contain_text("is stuck: charge failed")
    expect(page.get_by_role("region", name="Data as JSON")).to_contain_text(key)
    no_sideways_scroll(page)
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text("It was asked again")
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")


def test_an_order_is_found_by_its_key_and_aborted_by_keyboard_alone(
    open_window: Opener, shop: Shop, address: str
) -> None:
    (shop.root / "poison").touch()
    key = order(shop, "tok_ok")
    page = open_console(open_window, 1280)
    sign_in(page, address)
    press(page, "g", "s")
    expect(page.get_by_role("heading", name="Sagas")).to_be_visible()
    tab_to(page, "Fulfilment")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Fulfilment", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Keys")).to_be_visible()  # its script is at work
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "key":
            break
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(key)
    page.get_by_label("Why it is undone").focus()
    page.keyboard.type("the guest has left")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("It is being undone")
    expect(page.get_by_text("It was told to be undone: the guest has left")).to_be_visible()
    (shop.root / "poison").unlink()

    shop.wait_for(lambda: standing(shop, key) == ("ended", ""))
    page.reload()
    expect(page.get_by_text("ends as cancelled")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Retry|Undo"))).to_have_count(0)


def test_who_may_read_is_shown_no_act(open_window: Opener, shop: Shop, address: str) -> None:
    key = stuck_order(shop)
    page = open_console(open_window, 1280)
    sign_in(page, address, READ)
    page.goto(f"{address}/sagas/orders/Fulfilment?status=stuck")
    page.get_by_role("row").filter(has_text=key).get_by_role("link").click()
    expect(page.get_by_text("Signed in to read")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Retry|Undo"))).to_have_count(0)
