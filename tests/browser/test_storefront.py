"""A customer in a real browser: from the catalogue to "shipped", live, whatever happens."""

from __future__ import annotations

import json
import re
import smtplib
from email.message import EmailMessage
from typing import Any

import httpx
import pytest
from chromium import Opener
from playwright.sync_api import Locator, Page, expect
from shop import Shop

SETTLED = 30_000
"""Milliseconds that an order may take to reach its end in front of the customer."""
STAGES = ("placed", "paid", "reserved", "confirmed", "shipped")
HOSTILE = "<img src=x onerror='window.owned = 1'>"
NARROW = {"width": 390, "height": 844}
PHONE_AND_DESK = pytest.mark.parametrize("width", [390, 1280])


def put_in_basket(page: Page, sku: str = "bell") -> None:
    page.click(f"[data-sku={sku}]")
    expect(page.locator("#basket-badge")).to_have_text("1")


def check_out(page: Page, card: str = "tok_ok", email: str = "browser@example.org") -> None:
    page.fill("#email", email)
    page.check(f"[value={card}]")
    page.click("#place-order")


def order(page: Page, card: str = "tok_ok", sku: str = "bell") -> None:
    """Buy something; afterwards the order's page is open and marked: a reload loses the mark."""
    put_in_basket(page, sku)
    check_out(page, card)
    page.wait_for_url(re.compile(r"/order\.html\?id=.+"))
    mark(page)


def mark(page: Page) -> None:
    page.evaluate("window.neverReloaded = true")


def settled(page: Page, status: str) -> None:
    expect(page.locator("#order-status")).to_have_text(status, timeout=SETTLED)
    expect(page.locator("#connection")).to_have_text("complete", timeout=SETTLED)
    assert page.evaluate("window.neverReloaded") is True


def stage(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stage={name}]")


def no_sideways_scroll(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def only(complaints: list[str], what: str) -> None:
    """Take out the complaints that a test provoked; there must be some, and no others."""
    assert complaints
    assert [complaint for complaint in complaints if what not in complaint] == []
    complaints.clear()


@PHONE_AND_DESK
def test_a_customer_buys_with_the_mouse_and_sees_it_shipped_live(
    open_window: Opener, shop: Shop, width: int
) -> None:
    page = open_window(viewport={"width": width, "height": 900})
    page.goto(shop.url)
    order(page)
    settled(page, "shipped")
    for name in STAGES:
        expect(stage(page, name)).to_have_attribute("data-state", "done")
    expect(page.locator("#headline")).to_have_text("Your order is on its way.")
    expect(page.locator("#timeline li")).to_have_count(len(STAGES))
    no_sideways_scroll(page)
    page.goto(shop.url)
    expect(page.locator("#basket-empty")).to_be_visible()


def test_it_can_be_bought_with_the_keyboard_alone(page: Page) -> None:
    expect(page.locator(".product")).to_have_count(6)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the link that skips to the goods
    tab_to(page, "[data-sku=bell]")
    page.keyboard.press("Enter")
    expect(page.locator("#basket-badge")).to_have_text("1")
    expect(page.locator("[data-sku=bell]")).to_be_focused()
    tab_to(page, ".more")
    page.keyboard.press("Space")
    expect(page.locator("#basket-badge")).to_have_text("2")
    tab_to(page, "#email")
    page.keyboard.type("keys@example.org")
    tab_to(page, "[value=tok_ok]")
    page.keyboard.press("ArrowDown")
    expect(page.locator("[value=tok_declined]")).to_be_checked()
    page.keyboard.press("ArrowUp")
    expect(page.locator("[value=tok_ok]")).to_be_checked()
    tab_to(page, "#place-order")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/order\.html\?id=.+"))
    mark(page)
    settled(page, "shipped")


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus; every stop on the way shows that it has it."""
    for _ in range(40):
        page.keyboard.press("Tab")
        shown = page.evaluate(
            """() => [document.activeElement, document.activeElement.closest(".card")]
              .filter(Boolean).some((element) => {
                const style = getComputedStyle(element);
                return style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2;
              })"""
        )
        assert shown, page.evaluate("document.activeElement.outerHTML")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not lead to {selector}")


def test_a_customer_finds_the_earlier_order(page: Page) -> None:
    """The list holds the one that was placed a moment ago, too, and follows what becomes of it."""
    order(page, sku="scroll")
    expect(page.locator("#mine")).to_be_hidden()
    settled(page, "shipped")
    first = page.url
    page.click(".basket-link")
    order(page, "tok_declined", sku="quill")
    rows = page.locator("#mine-list li")
    expect(rows).to_have_count(2)
    expect(rows.nth(0).locator("a")).to_have_attribute("aria-current", "page")
    expect(rows.nth(1).locator(".status")).to_have_text("shipped")
    settled(page, "cancelled")
    expect(rows.nth(0).locator(".status")).to_have_text("cancelled")
    rows.nth(1).locator("a").click()
    page.wait_for_url(first)
    expect(page.locator("#order-status")).to_have_text("shipped")


def test_a_declined_card_ends_in_cancelled_with_the_reason(page: Page) -> None:
    order(page, "tok_declined", sku="quill")
    settled(page, "cancelled")
    expect(page.locator("#reason")).to_have_text("The card was declined.")
    expect(stage(page, "paid")).to_have_attribute("data-state", "failed")
    expect(stage(page, "cancelled")).to_be_visible()
    expect(stage(page, "shipped")).to_be_hidden()


def test_the_card_that_times_out_first_still_ships(page: Page) -> None:
    order(page, "tok_slow", sku="lantern")
    expect(stage(page, "reserved")).to_have_attribute("data-state", "done")
    expect(stage(page, "paid")).to_have_attribute("data-state", "current")
    expect(page.locator("#connection")).to_have_text("live")
    settled(page, "shipped")


@pytest.mark.parametrize(
    ("email", "refused_by_the_shop"),
    [("", False), ("nobody", False), ("nobody@nowhere", True)],
)
def test_a_wrong_address_is_told_at_the_field_which_gets_the_focus(
    page: Page, complaints: list[str], email: str, refused_by_the_shop: bool
) -> None:
    put_in_basket(page)
    check_out(page, email=email)
    field = page.locator("#email")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(re.compile("e-mail address"))
    expect(page.locator("#email-error")).to_be_visible()
    if refused_by_the_shop:
        only(complaints, "422")
    page.fill("#email", "somebody@example.org")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/order\.html\?id=.+"))


def test_the_basket_survives_a_reload(page: Page) -> None:
    put_in_basket(page)
    page.click(".more")
    page.reload()
    expect(page.locator("#basket-badge")).to_have_text("2")
    expect(page.locator("#lines .line-name")).to_have_text("Brass hand bell")
    page.click(".remove")
    expect(page.locator("#basket-empty")).to_be_visible()
    page.reload()
    expect(page.locator("#basket-badge")).to_have_text("0")


def test_an_order_is_shown_to_its_own_customer_alone(
    page: Page, open_window: Opener, complaints: list[str]
) -> None:
    order(page)
    settled(page, "shipped")
    stranger = open_window()
    stranger.goto(page.url)
    expect(stranger.locator("#headline")).to_have_text("We don’t know this order.")
    expect(stranger.locator("#details")).to_be_hidden()
    expect(stranger.locator("#lines li")).to_have_count(0)
    stranger.click("#to-goods")
    expect(stranger.locator(".product")).to_have_count(6)
    only(complaints, "404")


def log_in(page: Page, shop: Shop, name: str) -> None:
    """Log in with the mouse; afterwards the page is the one from before."""
    before = page.url
    page.click("#log-in")
    page.wait_for_url(f"http://127.0.0.1:{shop.ports['8092']}/**")
    page.get_by_role("button", name=name).click()
    page.wait_for_url(before)
    expect(page.locator("#who")).to_have_text(name)


def test_orders_belong_to_who_is_logged_in(
    page: Page, shop: Shop, open_window: Opener, complaints: list[str]
) -> None:
    """On any browser; and neither to the next user, nor to the same browser logged out."""
    log_in(page, shop, "Alice Archer")
    order(page)
    settled(page, "shipped")
    placed = page.url
    elsewhere = open_window()
    elsewhere.goto(placed)
    expect(elsewhere.locator("#headline")).to_have_text("We don’t know this order.")
    only(complaints, "404")
    log_in(elsewhere, shop, "Alice Archer")
    expect(elsewhere.locator("#order-status")).to_have_text("shipped")
    page.click("#log-out")
    page.wait_for_url(f"{shop.url}/")
    expect(page.locator("#log-in")).to_be_visible()
    page.goto(placed)
    expect(page.locator("#headline")).to_have_text("We don’t know this order.")
    log_in(page, shop, "Bob Baker")
    expect(page.locator("#headline")).to_have_text("We don’t know this order.")
    only(complaints, "404")


def test_a_clerk_cancels_an_order_and_its_customer_sees_it(
    page: Page, shop: Shop, open_window: Opener
) -> None:
    weather = f"http://127.0.0.1:{shop.ports['8090']}/weather"
    httpx.post(weather, json={"mode": "down"}).raise_for_status()  # so it is not shipped meanwhile
    try:
        order(page, sku="lantern")
        expect(stage(page, "reserved")).to_have_attribute("data-state", "done")
        clerk = open_window()
        clerk.goto(shop.url)
        # By keyboard alone: log in as the clerk, open the list, cancel.
        tab_to(clerk, "#log-in")
        clerk.keyboard.press("Enter")
        clerk.wait_for_url(f"http://127.0.0.1:{shop.ports['8092']}/**")
        for _ in range(3):
            clerk.keyboard.press("Tab")
        expect(clerk.get_by_role("button", name="Carol Clerk")).to_be_focused()
        clerk.keyboard.press("Enter")
        clerk.wait_for_url(f"{shop.url}/")
        tab_to(clerk, "[href='clerk.html']")
        clerk.keyboard.press("Enter")
        clerk.wait_for_url(f"{shop.url}/clerk.html")
        row = clerk.locator("#orders li").first
        expect(row.locator("code")).to_have_text(f"…{page.url[-8:]}")
        tab_to(clerk, "#orders li:first-child .cancel")
        clerk.keyboard.press("Enter")
    finally:
        httpx.post(weather, json={"mode": "fair"}).raise_for_status()
    expect(row.locator(".status")).to_have_text("cancelled", timeout=SETTLED)
    expect(row.locator(".cancel")).to_be_hidden()
    settled(page, "cancelled")
    expect(page.locator("#reason")).to_contain_text("The shop had to cancel it.")
    no_sideways_scroll(clerk)


def test_a_clerk_releases_an_order_that_was_flagged(
    page: Page, shop: Shop, open_window: Opener
) -> None:
    weather = f"http://127.0.0.1:{shop.ports['8090']}/weather"
    httpx.post(weather, json={"mode": "down"}).raise_for_status()  # so it is not shipped meanwhile
    try:
        order(page)
        order_id = page.url.rpartition("=")[2]
        flag = json.dumps({"order_id": order_id, "reason": "over_the_limit"})
        said = shop.run("publish", "shop.order.flagged", flag, "--service", "orders")
        assert said.returncode == 0, said.stderr
        expect(page.locator("#order-status")).to_have_text("held", timeout=SETTLED)
        expect(page.locator("#headline")).to_contain_text("a second look")
        clerk = open_window()
        clerk.goto(f"{shop.url}/")
        log_in(clerk, shop, "Carol Clerk")
        clerk.goto(f"{shop.url}/clerk.html")
        row = clerk.locator(f"#orders li[data-order='{order_id}']")
        expect(row.locator(".status")).to_have_text("held")
        fits_and_stands_out(clerk)
        row.get_by_role("button", name="Release").click()
        expect(row.locator(".status")).not_to_have_text("held", timeout=SETTLED)
        expect(row.locator(".approve")).to_be_hidden()
    finally:
        httpx.post(weather, json={"mode": "fair"}).raise_for_status()
    settled(page, "shipped")
    expect(page.locator("#timeline")).to_contain_text("Looked at, and all is well")


def test_a_clerk_may_operate_the_console(page: Page, shop: Shop, complaints: list[str]) -> None:
    console = f"http://127.0.0.1:{shop.ports['8081']}"
    accounts = f"http://127.0.0.1:{shop.ports['8092']}/**"
    page.goto(f"{console}/dead")
    page.click("text=Sign in with your account")
    page.wait_for_url(accounts)
    page.get_by_role("button", name="Alice Archer").click()
    expect(page.locator("[role=alert]")).to_contain_text("none of your roles lets you in here")
    only(complaints, "403")
    page.goto(f"{console}/dead")
    page.click("text=Sign in with your account")
    page.wait_for_url(accounts)
    page.get_by_role("button", name="Carol Clerk").click()
    page.wait_for_url(f"{console}/dead")
    expect(page.locator("h1")).to_have_text("Dead letters")
    page.reload()
    expect(page.get_by_title("Signed in as carol@example.org")).to_be_visible()


def test_the_list_of_all_orders_is_for_clerks(
    page: Page, shop: Shop, complaints: list[str]
) -> None:
    page.goto(f"{shop.url}/clerk.html")
    expect(page.locator("#clerk-notice")).to_contain_text("Only clerks see all orders")
    only(complaints, "401")
    log_in(page, shop, "Bob Baker")
    expect(page.locator("#clerk-notice")).to_contain_text("Only clerks see all orders")
    expect(page.locator("#orders li")).to_have_count(0)
    only(complaints, "403")


def test_a_hostile_id_in_the_address_stays_text(
    page: Page, shop: Shop, complaints: list[str]
) -> None:
    for hostile in (HOSTILE, "javascript:window.owned=1", "../../session", "\u202e%00"):
        page.goto(f"{shop.url}/order.html")
        page.evaluate("id => { location.search = new URLSearchParams({ id }); }", hostile)
        expect(page.locator("#headline")).to_have_text("We don’t know this order.")
        assert page.evaluate("window.owned") is None
        assert page.locator("main img").count() == 0
    assert [text for text in complaints if not re.search(r"status of 40[04]", text)] == []
    complaints.clear()


def test_what_the_shop_answers_is_shown_as_text(page: Page) -> None:
    product = {"sku": HOSTILE, "name": HOSTILE, "blurb": HOSTILE, "cents": 1}
    page.route("**/catalogue", lambda route: route.fulfill(json={"products": [product]}))
    page.reload()
    expect(page.locator(".product h3")).to_have_text(HOSTILE)
    expect(page.locator(".blurb")).to_have_text(HOSTILE)
    page.click(".add")
    expect(page.locator(".line-name")).to_have_text(HOSTILE)
    assert page.evaluate("window.owned") is None


def test_the_gateways_policy_stops_a_script_in_the_page(
    page: Page, shop: Shop, complaints: list[str]
) -> None:
    answer = page.request.get(shop.url)
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.owned = 1";
              document.body.append(script);
            }"""
        )
    assert page.evaluate("window.owned") is None
    only(complaints, "Content Security Policy")


@PHONE_AND_DESK
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_and_its_text_stands_out(
    open_window: Opener, shop: Shop, width: int, scheme: Any, complaints: list[str]
) -> None:
    page = open_window(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(shop.url)
    expect(page.locator(".product")).to_have_count(6)
    fits_and_stands_out(page)
    put_in_basket(page)
    check_out(page, email="nobody")
    expect(page.locator("#email-error")).not_to_be_empty()
    fits_and_stands_out(page)
    check_out(page, "tok_declined")
    page.wait_for_url(re.compile(r"/order\.html\?id=.+"))
    mark(page)
    settled(page, "cancelled")
    fits_and_stands_out(page)
    page.goto(f"http://127.0.0.1:{shop.ports['8026']}/")
    expect(page.locator(".mails li").first).to_be_visible()
    fits_and_stands_out(page)
    page.goto(f"{shop.url}/clerk.html")
    page.click("#log-in")
    only(complaints, "401")
    expect(page.locator(".people button")).to_have_count(3)
    page.wait_for_load_state()  # with its style
    fits_and_stands_out(page)
    page.get_by_role("button", name="Carol Clerk").click()
    expect(page.locator("#orders li").first).to_be_visible()
    fits_and_stands_out(page)


def fits_and_stands_out(page: Page) -> None:
    """No scrolling to the side, and every text has a contrast of 4.5 to 1."""
    no_sideways_scroll(page)
    # Colours still on their way from one to another are not judged.
    page.evaluate("Promise.all(document.getAnimations().filter((one) => one.transitionProperty)"
                  ".map((one) => one.finished.catch(() => {})))")  # fmt: skip
    assert page.evaluate(_FAINT) == []


_FAINT = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours) => {  // what is seen when they are painted one over the other
    paint.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      paint.fillStyle = colour;
      paint.fillRect(0, 0, 1, 1);
    }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => value / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim();
    const element = texts.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest(".unseen, noscript, :disabled")) {
      continue;
    }
    const grounds = [];
    for (let on = element; on; on = on.parentElement) {
      grounds.unshift(getComputedStyle(on).backgroundColor);
    }
    const ground = over(["white", ...grounds]);
    const ink = over(["white", ...grounds, getComputedStyle(element).color]);
    const [dark, bright] = [light(ground), light(ink)].sort((a, b) => a - b);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${text}`);
  }
  return faint;
}"""


def test_the_order_page_is_honest_while_orders_is_killed_and_comes_back(
    page: Page, shop: Shop, complaints: list[str]
) -> None:
    order(page, "tok_slow", sku="boots")
    connection = page.locator("#connection")
    expect(connection).to_have_text("live")
    page.evaluate(
        """() => {
          const place = document.querySelector("#connection");
          window.states = [];
          new MutationObserver(() => window.states.push(place.dataset.connection))
            .observe(place, { attributeFilter: ["data-connection"] });
        }"""
    )
    shop.kill("orders")
    # It did not go on saying "live" over a connection that was gone ...
    page.wait_for_function(
        "window.states.some((state) => ['reconnecting', 'polling', 'lost'].includes(state))"
    )
    # ... and found its way back by itself.
    settled(page, "shipped")
    for name in STAGES:
        expect(stage(page, name)).to_have_attribute("data-state", "done")
    complaints.clear()  # requests that failed meanwhile


def test_an_order_page_opened_while_orders_is_away_comes_back_by_itself(
    page: Page, complaints: list[str]
) -> None:
    order(page)
    settled(page, "shipped")
    away = {"status": 503, "json": {"title": "Service Unavailable", "detail": "Orders is away."}}
    page.route("**/orders/*", lambda route: route.fulfill(**away))
    page.reload()
    expect(page.locator("#headline")).to_have_text("The shop can’t be reached now.")
    expect(page.locator("#connection")).to_have_text("out of reach, trying again…")
    expect(page.locator("#retry")).to_be_visible()
    mark(page)
    page.unroute("**/orders/*")
    settled(page, "shipped")
    expect(page.locator("#retry")).to_be_hidden()
    only(complaints, "503")


def test_the_mailbox_shows_every_mail_as_text(page: Page, shop: Shop) -> None:
    put_in_basket(page)
    check_out(page, email="mailbox@example.org")
    page.wait_for_url(re.compile(r"/order\.html\?id=.+"))
    page.goto(f"http://127.0.0.1:{shop.ports['8026']}/")
    mine = page.locator(".mails li", has_text="mailbox@example.org")
    expect(mine).to_have_count(4)  # placed, paid, confirmed, shipped: the page renews itself
    mail = EmailMessage()
    mail["From"] = "stranger@example.org"
    mail["To"] = "stranger@example.org"
    mail["Subject"] = HOSTILE
    mail["X-Stage"] = HOSTILE
    mail.set_content(f"{HOSTILE}</pre><script>window.owned = 1</script>")
    with smtplib.SMTP("127.0.0.1", shop.ports["8025"]) as smtp:
        smtp.send_message(mail)
    item = page.locator(".mails li", has_text="stranger@example.org")
    expect(item.locator("a")).to_have_text(HOSTILE)
    expect(item.locator(".stage")).to_have_text(HOSTILE)
    item.locator("a").click()
    expect(page.locator("h2")).to_have_text(HOSTILE)
    expect(page.locator("pre")).to_contain_text("</pre><script>")
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.owned") is None
    page.set_viewport_size(NARROW)
    no_sideways_scroll(page)
