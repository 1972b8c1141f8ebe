"""Prometheus with Oyez's rules, scraping what `scripts/observe` finds."""

from __future__ import annotations

import json
import os

from process import Command
from server import LOOPBACK, Server, get, program, version_of
from state import ROOT

RULES = ROOT / "src" / "oyez" / "observe" / "prometheus" / "*.yml"
KEPT = "2d"


class Prometheus(Server):
    """Debian's prometheus."""

    name = "prometheus"
    durability = f"samples are kept for {KEPT}"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def install(self) -> None:
        program("prometheus", "prometheus")

    def version(self) -> str:
        return version_of(program("prometheus", "prometheus"))

    def prepare(self) -> None:
        targets = self.folder / "targets.json"
        if not targets.exists():
            targets.write_text("[]\n")
        settings = {
            "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {
                    "job_name": "oyez",
                    "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}],
                }
            ],
        }
        # JSON is YAML.
        (self.folder / "prometheus.yml").write_text(json.dumps(settings, indent=2) + "\n")

    def command(self) -> Command:
        return Command(
            (
                program("prometheus", "prometheus"),
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--storage.tsdb.retention.time={KEPT}",
                f"--web.listen-address={LOOPBACK}:{self.port}",
                "--enable-feature=exemplar-storage",
            ),
            os.environ,
        )

    def ask(self) -> None:
        get(f"{self.url}/-/ready")

    def extras(self) -> dict[str, object]:
        return {"targets": str(self.folder / "targets.json")}
