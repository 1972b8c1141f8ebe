"""The contracts as one page in a real browser: read, walked by keyboard, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe import Auditor
from chromium import Opener
from consoles import no_sideways_scroll, tab_to
from playwright.sync_api import expect

from oyez.contracts.model import Published, Read, ServiceContract, read_folder
from oyez.contracts.page import page

SHOP = Path(__file__).parents[2] / "examples" / "shop" / "contracts"
EVIL = '"><img src=x onerror="document.title=1"></style><script>document.title=2</script>'


def written(folder: Path, contracts: dict[str, ServiceContract]) -> str:
    file = folder / "index.html"
    file.write_bytes(page(contracts, contracts))
    return file.as_uri()


def hostile() -> ServiceContract:
    schema = {
        "title": EVIL,
        "description": EVIL,
        "type": "object",
        "properties": {EVIL: {"enum": [EVIL]}},
        "required": [EVIL],
    }
    published = Published(
        version=1, key=EVIL, stream=EVIL, to=EVIL, personal=(EVIL,), schema=schema
    )
    read = Read(
        type=EVIL, version=1, key=EVIL, stream=None, handlers=(EVIL,), upcasts=(), schema=schema
    )
    return ServiceContract(system=EVIL, service=EVIL, publishes={EVIL: published}, reads=(read,))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_read_and_walked(open_window: Opener, tmp_path: Path, scheme: str) -> None:
    # axe looks from within the page, which lets no script run but one that is let past its policy.
    window = open_window(color_scheme=scheme, bypass_csp=True)
    asked: list[str] = []
    window.on("request", lambda request: asked.append(request.url))
    window.goto(written(tmp_path, read_folder(SHOP)))
    expect(window.get_by_role("heading", level=2, name="orders").last).to_be_visible()
    placed = window.get_by_role("article", name="shop.order.placed version 1")
    expect(placed).to_contain_text("notifications")
    expect(placed.get_by_role("row", name="email")).to_contain_text("string")
    expect(placed.get_by_role("row", name="order_id key")).to_be_visible()
    tab_to(window, "Skip to the contracts")
    window.keyboard.press("Enter")
    expect(window.locator("main")).to_be_focused()
    example = placed.locator("summary")
    example.focus()
    window.keyboard.press("Enter")
    expect(placed.locator("pre")).to_be_visible()
    auditor = Auditor(window)
    auditor.look()
    assert auditor.found == []
    no_sideways_scroll(window)
    window.set_viewport_size({"width": 390, "height": 844})
    no_sideways_scroll(window)
    assert [each for each in asked if not each.startswith(("file:", "data:"))] == []


def test_what_a_contract_says_is_text(
    open_window: Opener, complaints: list[str], tmp_path: Path
) -> None:
    window = open_window()
    window.goto(written(tmp_path, {EVIL: hostile()}))
    expect(window).to_have_title(f"{EVIL}: events and who reads them")
    assert window.locator("img, script").count() == 0
    assert window.locator("style").count() == 1
    assert complaints == []
    # Nor would anything run that were there all the same.
    blocked = window.evaluate(
        "new Promise(done => { document.addEventListener('securitypolicyviolation',"
        " event => done(event.effectiveDirective));"
        " const made = document.createElement('img'); made.src = 'https://example.org/x';"
        " document.body.append(made); })"
    )
    assert blocked == "img-src"
    complaints.clear()  # of what was blocked
