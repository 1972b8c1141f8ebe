"""The gateway's reference in a real browser: read, walked by keyboard, light and dark."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from axe import Auditor
from chromium import Opener
from consoles import no_sideways_scroll, tab_to
from playwright.sync_api import expect
from test_gateway_openapi import HOSTILE, OLD, ORDERS, settings


def describing(document: Any) -> ThreadingHTTPServer:
    """A service that says this of itself."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-length", f"{len(content)}")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a gateway is that has a reference."""
    folder = tmp_path_factory.mktemp("reference")
    services = {"orders": describing(ORDERS), "stock": describing(OLD)}
    settings(folder, {name: each.server_port for name, each in services.items()})
    command = [sys.executable, "-m", "oyez", "gateway"]
    gateway = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert gateway.stderr is not None
    started = next(line for line in gateway.stderr if "started" in line)
    found = re.search(r"http=(\S+)", started)
    assert found is not None
    yield f"http://{found[1]}"
    gateway.terminate()
    gateway.communicate(timeout=20)
    for each in services.values():
        each.shutdown()


@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_reference_shuts_nobody_out(
    open_window: Opener, address: str, width: int, scheme: str, tmp_path: Path
) -> None:
    window = {"width": width, "height": 900}
    page = open_window(viewport=window, color_scheme=scheme, bypass_csp=True)
    page.goto(f"{address}/reference")
    expect(page.get_by_role("heading", name="Place an order")).to_be_visible()
    auditor = Auditor(page)
    auditor.look()
    assert auditor.found == []
    no_sideways_scroll(page)
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png")


def test_by_keyboard_from_the_list_to_a_schema(open_window: Opener, address: str) -> None:
    page = open_window()
    page.goto(f"{address}/reference")
    tab_to(page, "Place an order")
    page.keyboard.press("Enter")
    expect(page.locator("article:target")).to_contain_text("Place an order")
    page.locator("article:target").get_by_role("link", name="Order", exact=True).first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("article:target")).to_contain_text("What a customer has ordered.")


def test_nothing_of_a_service_is_run_and_nothing_is_loaded(
    open_window: Opener, address: str
) -> None:
    page = open_window()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/reference")
    expect(page.get_by_text(HOSTILE)).to_be_visible()
    assert page.evaluate("window.owned") is None
    assert [url for url in asked if not url.startswith("data:")] == [f"{address}/reference"]
