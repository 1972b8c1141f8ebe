"""Grafana with Oyez's dashboards, where the machine has it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from errors import ServiceError
from process import Command
from server import LOOPBACK, SBIN, Server, get, version_of
from state import ROOT

from kinds.jaeger import Jaeger
from kinds.prometheus import Prometheus

DASHBOARDS = ROOT / "src" / "oyez" / "observe" / "grafana"
HOMES = ("/usr/share/grafana", "/opt/grafana")
"""Where packages put its pages."""


class Grafana(Server):
    """Grafana from whatever package the machine has; none of ours brings it."""

    name = "grafana"
    durability = "the dashboards are files of the repository; changes to them are not kept"
    port_names = ("http",)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def install(self) -> None:
        self._executable()

    def version(self) -> str:
        return version_of(self._executable())

    def prepare(self) -> None:
        made = self.folder / "provisioning"
        shutil.rmtree(made, ignore_errors=True)
        sources = [
            {
                "name": "Prometheus",
                "uid": "prometheus",
                "type": "prometheus",
                "url": Prometheus(self.state).url,
                "isDefault": True,
                "jsonData": {
                    "timeInterval": "5s",
                    "exemplarTraceIdDestinations": [
                        {"name": "trace_id", "datasourceUid": "jaeger"}
                    ],
                },
            },
            {"name": "Jaeger", "uid": "jaeger", "type": "jaeger", "url": Jaeger(self.state).url},
        ]
        shown = {"name": "oyez", "type": "file", "options": {"path": str(DASHBOARDS)}}
        # JSON is YAML.
        for kind, content in (
            ("datasources", {"apiVersion": 1, "datasources": sources}),
            ("dashboards", {"apiVersion": 1, "providers": [shown]}),
        ):
            (made / kind).mkdir(parents=True)
            (made / kind / "oyez.yml").write_text(json.dumps(content, indent=2) + "\n")

    def command(self) -> Command:
        executable = self._executable()
        words = ("server",) if executable.name == "grafana" else ()
        home = next((each for each in HOMES if Path(each).is_dir()), str(executable.parents[1]))
        settings = {
            "GF_SERVER_HTTP_ADDR": LOOPBACK,
            "GF_SERVER_HTTP_PORT": str(self.port),
            "GF_PATHS_DATA": str(self.folder / "data"),
            "GF_PATHS_PROVISIONING": str(self.folder / "provisioning"),
            "GF_SECURITY_ADMIN_PASSWORD": self.password,
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        }
        return Command((executable, *words, "--homepath", home), {**os.environ, **settings})

    def ask(self) -> None:
        get(f"{self.url}/api/health")

    def _executable(self) -> Path:
        path = os.pathsep.join((os.environ.get("PATH", ""), *SBIN, *(f"{h}/bin" for h in HOMES)))
        for name in ("grafana", "grafana-server"):
            found = shutil.which(name, path=path)
            if found is not None:
                return Path(found)
        raise ServiceError(
            "grafana is missing: neither Debian nor a registry used here has it",
            "install its vendor's package, so that grafana or grafana-server is on the PATH; or "
            f"import {DASHBOARDS.relative_to(ROOT)}/*.json into one that runs elsewhere",
        )
