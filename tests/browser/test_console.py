"""The console in a real browser: from an alert to the stuck order, its cause and its cure."""

from __future__ import annotations

import re
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from axe import Auditor, routes
from chromium import Opener
from consoles import READ, TOKEN, WIDTHS, no_sideways_scroll, open_console, press, sign_in, tab_to
from playwright.sync_api import expect
from shop import Shop, copy_shop

from oyez.console.pages import SCREENS

HOSTILE = "<img src=x onerror='window.owned = 1'>\u202egnp\u200b\x1b[31m"
POISON = """    if pathlib.Path("poison").exists():
        raise ValueError(f"no box for order {event.order_id} {HOSTILE}")
    parcel.prepared = True
"""


def poisoned(folder: Path) -> Shop:
    """A shop in which `shipping.prepare` fails as long as there is a file "poison"."""
    tokens = {"OYEZ_TOKEN": TOKEN, "OYEZ_READ_TOKEN": READ}
    shop = copy_shop(folder, environment=tokens)
    code = shop.root / "shipping" / "service.py"
    text = code.read_text()
    text = text.replace("from oyez import", "import pathlib\n\nfrom oyez import Retry,", 1)
    text = text.replace(
        'service = Service("shipping")', f'HOSTILE = {HOSTILE!r}\nservice = Service("shipping")'
    )
    text = text.replace(
        "@service.on(OrderPlaced)", "@service.on(OrderPlaced, retry=Retry(attempts=2, first=0.05))"
    )
    code.write_text(text.replace("    parcel.prepared = True\n", POISON))
    return shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A poisoned shop that runs."""
    shop = poisoned(tmp_path_factory.mktemp("console"))
    shop.start()
    yield shop
    shop.stop()


@pytest.fixture
def address(shop: Shop) -> str:
    return f"http://127.0.0.1:{shop.ports['8081']}"


@pytest.fixture
def stuck(shop: Shop, address: str) -> Iterator[list[str]]:
    """Two orders whose parcels were never packed; the cause is gone when the test cures them."""
    (shop.root / "poison").touch()
    orders = [order(shop), order(shop)]
    yield orders
    (shop.root / "poison").unlink(missing_ok=True)


def order(shop: Shop) -> str:
    wish = {"lines": [{"sku": "bell", "quantity": 1}], "email": "ada@example.org", "card": "tok_ok"}
    with httpx.Client(base_url=shop.url, timeout=20) as client:
        client.post("/session").raise_for_status()
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return str(
            client.post("/orders", json=wish, headers=headers).raise_for_status().json()["order_id"]
        )


@WIDTHS
def test_from_an_alert_to_the_cure_in_three_clicks(
    open_window: Opener, shop: Shop, address: str, stuck: list[str], width: int
) -> None:
    page = open_console(open_window, width)
    sign_in(page, address)
    alert = page.get_by_role("link", name=re.compile("dead letters of shipping.prepare"))
    expect(alert).to_be_visible(timeout=30_000)
    expect(page.get_by_role("link", name=re.compile("no box for order"))).to_be_visible()
    no_sideways_scroll(page)
    alert.click()
    row = page.get_by_role("row").filter(has_text=stuck[0])
    expect(row.first).to_contain_text("no box for order")
    no_sideways_scroll(page)
    row.get_by_role("link").click()
    expect(page.get_by_label("Traceback", exact=True)).to_contain_text("ValueError")
    expect(page.get_by_label("Payload", exact=True)).to_contain_text(stuck[0])
    no_sideways_scroll(page)
    (shop.root / "poison").unlink()
    page.get_by_role("button", name="Redrive").click()
    expect(page.get_by_role("status")).to_contain_text("Redriven")
    assert page.evaluate("window.owned") is None
    page.goto(f"{address}/dead/shipping")
    for link in page.get_by_role("rowheader").get_by_role("link").all():
        number = link.inner_text()
        page.goto(f"{address}/dead/shipping/{number}")
        page.get_by_role("button", name="Redrive").click()
        expect(page.get_by_role("status")).to_contain_text("Redriven")
    page.goto(address)
    expect(page.get_by_text("Nothing is wrong")).to_be_visible(timeout=30_000)


def test_by_keyboard_alone(open_window: Opener, shop: Shop, address: str, stuck: list[str]) -> None:
    page = open_console(open_window, 1280)
    sign_in(page, address)
    alert = page.get_by_role("link", name=re.compile("dead letters of shipping.prepare"))
    expect(alert).to_be_visible(timeout=30_000)
    page.keyboard.press("Tab")
    press(page, "g", "d")
    expect(page.get_by_role("heading", name="Dead letters", exact=True)).to_be_visible()
    tab_to(page, "no box for order")
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="Letter")).to_be_visible()
    first = page.get_by_role("rowheader").get_by_role("link").first.inner_text()
    tab_to(page, first)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Redrive")).to_be_visible()
    (shop.root / "poison").unlink()
    tab_to(page, "Redrive")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Redriven")
    press(page, "?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    press(page, "g", "o")
    expect(page.get_by_role("heading", name="Topology")).to_be_visible()


def test_an_edit_shows_what_changes_and_a_discard_wants_a_reason(
    open_window: Opener, shop: Shop, address: str, stuck: list[str]
) -> None:
    page = open_console(open_window, 1280)
    sign_in(page, address)
    expect(page.get_by_role("link", name=re.compile("shipping.prepare"))).to_be_visible(
        timeout=30_000
    )
    page.goto(f"{address}/dead/shipping")
    page.get_by_role("row").filter(has_text=stuck[0]).get_by_role("link").click()
    here = page.url
    page.get_by_text("Edit the payload").click()
    editor = page.get_by_label("New payload")
    text = editor.input_value()
    editor.fill(text.replace(stuck[0], "another-order"))
    page.get_by_role("button", name="Show what changes").click()
    expect(page.locator(".diff .gone").filter(has_text=stuck[0])).to_be_visible()
    expect(page.locator(".diff .new").filter(has_text="another-order")).to_be_visible()
    page.goto(here)
    page.get_by_label("Why it may be discarded").fill("cured by hand")
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("status")).to_contain_text("Discarded: cured by hand")
    expect(page.get_by_role("button", name="Redrive")).to_have_count(0)


def test_who_may_read_is_shown_no_act(open_window: Opener, address: str, stuck: list[str]) -> None:
    page = open_console(open_window, 1280)
    sign_in(page, address, READ)
    alert = page.get_by_role("link", name=re.compile("shipping.prepare"))
    expect(alert).to_be_visible(timeout=30_000)
    page.goto(f"{address}/dead/shipping")
    page.get_by_role("rowheader").get_by_role("link").first.click()
    expect(page.get_by_text("Signed in to read")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Redrive|Discard"))).to_have_count(0)


def test_the_link_of_oyez_dev_signs_in_once(
    open_window: Opener, shop: Shop, address: str, complaints: list[str]
) -> None:
    (link,) = {
        match[0]
        for line in shop.lines
        if (match := re.search(r"http://\S+/sign-in#\S+", str(line.get("event"))))
    }
    page = open_console(open_window, 1280)
    page.goto(link)
    expect(page.get_by_role("heading", name="Topology")).to_be_visible()
    another = open_console(open_window, 1280)
    another.goto(link)
    expect(another.get_by_role("alert")).to_contain_text("not a token")
    assert [each for each in complaints if "403" not in each] == []
    complaints.clear()


def test_it_can_be_read_without_scripts(
    open_window: Opener, address: str, stuck: list[str]
) -> None:
    page = open_window(java_script_enabled=False)
    sign_in(page, address)
    expect(page.get_by_role("table")).to_contain_text("shipping")
    page.get_by_role("link", name="Dead letters", exact=True).click()
    expect(page.get_by_role("heading", name="Dead letters", exact=True)).to_be_visible()


@WIDTHS
def test_an_order_is_found_by_keyboard_and_its_flow_leads_to_the_cure(
    open_window: Opener, shop: Shop, address: str, stuck: list[str], width: int
) -> None:
    page = open_console(open_window, width)
    sign_in(page, address)
    alert = page.get_by_role("link", name=re.compile("shipping.prepare"))
    expect(alert).to_be_visible(timeout=30_000)
    press(page, "/")
    expect(page.get_by_role("searchbox", name="Find")).to_be_focused()
    page.keyboard.type(stuck[0])
    page.keyboard.press("Enter")
    held = page.get_by_role("region", name=re.compile("shipping.prepare gave up on"))
    expect(held).to_contain_text(f"no box for order {stuck[0]}")
    flow = page.get_by_role("table").first
    expect(flow).to_contain_text("shop.order.placed")
    expect(flow.get_by_role("row").filter(has_text="shipping.prepare")).to_contain_text("gave up")
    expect(flow.get_by_role("row").filter(has_text="orders.Fulfilment").first).to_contain_text(
        "handled after"
    )
    expect(page.get_by_role("region", name="Sagas")).to_contain_text("Fulfilment")
    no_sideways_scroll(page)
    here = page.url
    (shop.root / "poison").unlink()
    tab_to(page, "Dead letter ")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Payload", exact=True)).to_contain_text(stuck[0])
    tab_to(page, "Redrive")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Redriven")
    page.goto(here)
    # It keeps itself up to date: the order is shipped.
    expect(page.get_by_role("heading", name=re.compile("Nobody: all"))).to_be_visible(
        timeout=30_000
    )
    expect(flow).to_contain_text("shop.shipment.ready")
    assert page.evaluate("window.owned") is None
    press(page, "/")
    page.keyboard.type("nobody-knows")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("Nothing is known of"))).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1600])
def test_no_page_shuts_somebody_out(
    open_window: Opener,
    address: str,
    stuck: list[str],
    width: int,
    scheme: str,
) -> None:
    # axe is put into the page, which the console's policy forbids to any other script.
    page = open_window(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    auditor = Auditor(page)
    page.goto(address)
    auditor.look()
    sign_in(page, address)
    expect(
        page.get_by_role("link", name=re.compile("dead letters of shipping.prepare"))
    ).to_be_visible(timeout=30_000)
    left, waiting = routes(), deque(screen.path for screen in SCREENS)
    known, looked = set(waiting), 0
    while waiting and looked < 80:
        path = waiting.popleft()
        mine = [name for name, regex in left.items() if regex.match(urlsplit(path).path)]
        if not mine:
            continue
        page.goto(address + path)
        auditor.look()
        looked += 1
        del left[mine[0]]
        for link in page.eval_on_selector_all(
            "main a[href]", "all => all.map((a) => new URL(a.getAttribute('href'), location).href)"
        ):
            place = urlsplit(link)
            if link.startswith(address) and link not in known:
                known.add(link)
                waiting.append(f"{place.path}?{place.query}" if place.query else place.path)
    page.goto(f"{address}/dead/shipping")
    page.get_by_role("rowheader").get_by_role("link").first.click()
    page.get_by_text("Edit the payload").click()
    editor = page.get_by_label("New payload")
    editor.fill(editor.input_value().replace("ada", "eva"))
    page.get_by_role("button", name="Show what changes").click()
    expect(page.get_by_role("heading", name="What changes")).to_be_visible()
    auditor.look()
    page.goto(f"{address}/dead/shipping/many")
    page.get_by_role("button", name=re.compile("^Redrive ")).click()
    expect(page.get_by_text("Done.")).to_be_visible()
    auditor.look()
    page.goto(f"{address}/dead?text=nothing-like-it")
    auditor.look()
    assert auditor.found == []
    assert {screen.path for screen in SCREENS}.isdisjoint(left)
    assert {"/dead/{service}", "/dead/{service}/{id:int}", "/dead/{service}/many"}.isdisjoint(left)


def test_a_cause_is_tried_and_redriven_by_keyboard(
    open_window: Opener, shop: Shop, address: str, stuck: list[str]
) -> None:
    page = open_console(open_window, 1280)
    sign_in(page, address)
    alert = page.get_by_role("link", name=re.compile("dead letters of shipping.prepare"))
    expect(alert).to_be_visible(timeout=30_000)
    alert.click()
    expect(page.get_by_role("row").filter(has_text=stuck[0]).first).to_be_visible()
    tab_to(page, "Redrive or discard them all")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name=re.compile("would get")).first).to_contain_text("order")
    (shop.root / "poison").unlink()
    button = page.get_by_role("button", name=re.compile("^Redrive "))
    tab_to(page, button.inner_text())
    page.keyboard.press("Enter")
    expect(page.get_by_text("Done.")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Letters")).to_be_visible()
    page.goto(f"{address}/dead/shipping?all=1&key={stuck[0]}")
    page.get_by_role("row").filter(has_text=stuck[0]).get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="What was done to it")).to_be_visible()
    expect(page.get_by_text("dead.redrive")).to_be_visible()
