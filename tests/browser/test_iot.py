"""The page of the thermometers in a real browser, while readings come and a sensor is too warm."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Opener
from playwright.sync_api import expect
from trial import free_address

ROOT = Path(__file__).resolve().parents[2]
FED = 60_000
"""Milliseconds until all readings were fed and are shown."""


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example with few sensors, on free ports, in processes of its own."""
    source = ROOT / "examples" / "iot"
    prepare = runpy.run_path(str(ROOT / "scripts" / "example"))["prepare"]
    pinned, own = source / "requirements.txt", ROOT / ".demo" / "iot.venv"
    python = prepare(Path(sys.executable), pinned, own)
    left = shutil.ignore_patterns(".oyez", "__pycache__", "out", "keys.toml")
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("iot") / "iot", ignore=left))
    text = (folder / "run.py").read_text()
    assert "LIVE = 20_000" in text
    (folder / "run.py").write_text(text.replace("LIVE = 20_000", "LIVE = 500"))
    gateway = free_address()
    there = {
        "OYEZ_GATEWAY_LISTEN": gateway,
        "OYEZ_SERVICES_DASHBOARD_HTTP": free_address(),
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "scripts" / "example.d"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    process = subprocess.Popen(
        [python, "run.py"],
        cwd=folder,
        env={**os.environ, **there},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "the page: " in process.stdout.readline()
        yield f"http://{gateway}/"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.parametrize("width", [390, 1280])
def test_sites_trouble_and_curves_come_live(page_url: str, open_window: Opener, width: int) -> None:
    page = open_window(viewport={"width": width, "height": 900})
    page.goto(page_url)
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#sensors")).to_have_text("100", timeout=FED)
    expect(page.locator("#silent")).to_have_text("2", timeout=FED)
    expect(page.locator("#sites button")).to_have_count(1)
    expect(page.locator("#trouble")).to_contain_text("cooled down", timeout=FED)
    expect(page.locator("#site canvas")).to_be_visible()
    expect(page.locator("#sensor canvas")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

    silent = page.locator("#trouble tr", has_text="silent").first.get_by_role("button")
    name = silent.inner_text()
    silent.click()
    expect(page.locator("#sensor-title")).to_have_text(re.compile(re.escape(name)))
    expect(silent).to_have_attribute("aria-pressed", "true")
