"""`make observe` on the shop: what the machine has is started, and scrapes every process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from shop import SERVICES, Shop, running_shop

from oyez.observe import FILES

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = {*SERVICES, "gateway"}


class Observed:
    """The servers beside a shop, with what their script has said."""

    def __init__(self, shop: Shop, folder: Path, *names: str) -> None:
        self.log = folder / "observe.log"
        self.folder = folder / "observe"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "scripts" / "observe", "--project", shop.root, *names],
                env={**shop.environment, "OYEZ_OBSERVE": str(self.folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def url(self, name: str) -> str:
        found = re.search(rf"^{name}: (http://\S+)$", self.said, re.MULTILINE)
        assert found, self.said
        return found[1]

    def asked(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers now."""
        query = urllib.parse.urlencode({"query": expression})
        answer = read(f"{self.url('prometheus')}/api/v1/query?{query}")
        assert answer["status"] == "success", expression
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def wait_for(
        self,
        condition: Callable[[], object],
        seconds: float = 60.0,
        told: Callable[[], object] = lambda: "",
    ) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (told(), self.said)
            assert self.process.poll() is None, self.said
            time.sleep(0.1)


def read(url: str) -> Any:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as got:
        return json.load(got)


@contextmanager
def observed(shop: Shop, folder: Path, *names: str) -> Iterator[Observed]:
    beside = Observed(shop, folder, *names)
    try:
        beside.wait_for(lambda: "scraping" in beside.said, 90.0)
        yield beside
    finally:
        beside.process.send_signal(signal.SIGINT)
        assert beside.process.wait(60) == 0, beside.said


@pytest.fixture
def prometheus() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: make services")


@pytest.mark.timeout(280)
@pytest.mark.usefixtures("prometheus")
def test_the_shop_is_scraped_and_each_panel_has_its_numbers(tmp_path: Path) -> None:
    with running_shop(tmp_path / "shop") as shop, observed(
        shop, tmp_path, "prometheus", "grafana"
    ) as beside:  # fmt: skip
        if shutil.which("grafana") is None and shutil.which("grafana-server") is None:
            assert "grafana: grafana is missing" in beside.said
            assert "install its vendor's package" in beside.said

        def running() -> set[str]:
            found = beside.asked('oyez_build_info and on (instance) (up{job="oyez"} == 1)')
            return {each["metric"]["service"] for each in found}

        beside.wait_for(lambda: running() == PROCESSES)
        place_orders(shop, 20)
        beside.wait_for(lambda: beside.asked("sum(oyez_dead_letters) == 0"))
        rules = read(f"{beside.url('prometheus')}/api/v1/rules")["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        assert {rule["lastError"] for rule in rules if "lastError" in rule} <= {""}
        # A rate needs two samples.
        beside.wait_for(lambda: not dead_panels(beside), told=lambda: dead_panels(beside))
        url = beside.url("prometheus")
    with pytest.raises(OSError, match="refused"):
        read(f"{url}/-/ready")


def dead_panels(beside: Observed) -> set[str]:
    """Panels without a number although there is one to show."""
    empty = set()
    for dashboard in sorted((FILES / "grafana").glob("*.json")):
        for panel in json.loads(dashboard.read_text())["panels"]:
            for target in panel.get("targets", ()):
                if not beside.asked(filled(target["expr"])):
                    empty.add(f"{dashboard.stem}: {panel['title']}")
    return empty - OF_TROUBLE


OF_TROUBLE = {
    "system: Firing",
    "system: Troubles",
    "system: Retries and dead letters",
    "service: Retried and dead",
    "service: Late events",
    "service: Views",
    "service: Troubles",
    "broker: Missed",
    "gateway: Refused",
    "gateway: Over a rate limit",
    "gateway: Sent once more",
}
"""Panels that are empty while all is well, or for a service without views or windows."""


def filled(expression: str) -> str:
    """An expression as Grafana asks it, for all of everything and for one service."""
    values = {"service": "orders", "__rate_interval": "1m"}
    exact = re.sub(r'="\$service"', '="orders"', re.sub(r'=~"\$[a-z]+"', '=~".*"', expression))
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], exact)


def place_orders(shop: Shop, count: int) -> None:
    line = {"sku": "lantern", "quantity": 1}
    order = {"lines": [line], "email": "a@example.org", "phone": None, "card": "tok_ok"}
    with httpx.Client(base_url=shop.url, timeout=20.0, trust_env=False) as client:
        client.post("/session").raise_for_status()
        for number in range(count):
            key = {"Idempotency-Key": f"observed-{os.getpid()}-{number}"}
            assert client.post("/orders", json=order, headers=key).status_code == 202
