"""Jaeger, which keeps traces in memory; built from its module."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from errors import ServiceError
from process import Command
from server import LOOPBACK, Server, get
from state import whole

VERSION = "1.76.0"
PROGRAM = "github.com/jaegertracing/jaeger/cmd/jaeger"
KEPT = 50_000
"""Traces."""


class Jaeger(Server):
    """Jaeger's collector and query in one process, without its pages, which its module lacks."""

    name = "jaeger"
    durability = f"volatile: the last {KEPT:,} traces, in memory"
    port_names = ("query", "otlp", "otlp_grpc", "health", "query_grpc")

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def install(self) -> None:
        if shutil.which("jaeger") is not None:
            return
        if shutil.which("go") is None and not self._built.exists():
            raise ServiceError(
                "jaeger is missing, and go to build it",
                "install go, or put the program jaeger on the PATH; traces are not kept until then",
            )
        with self.state.cached(f"jaeger-{VERSION}") as kept:
            if not kept.exists():
                with whole(kept) as folder:
                    _build(folder)

    def version(self) -> str:
        return VERSION if self._executable() == self._built else "unknown"

    def prepare(self) -> None:
        at = {name: {"endpoint": f"{LOOPBACK}:{port}"} for name, port in self.ports.items()}
        settings = {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
                "pipelines": {
                    "traces": {
                        "receivers": ["otlp"],
                        "processors": ["batch"],
                        "exporters": ["jaeger_storage_exporter"],
                    }
                },
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
            "extensions": {
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": at["query"],
                    "grpc": at["query_grpc"],
                },
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": KEPT}}}},
                "healthcheckv2": {"use_v2": True, "http": at["health"]},
            },
            "receivers": {"otlp": {"protocols": {"grpc": at["otlp_grpc"], "http": at["otlp"]}}},
            "processors": {"batch": {"timeout": "200ms"}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        }
        # JSON is YAML.
        (self.folder / "jaeger.yml").write_text(json.dumps(settings, indent=2) + "\n")

    def command(self) -> Command:
        # It traces itself, by default to a port that may be another collector's.
        own = {
            "OTEL_TRACES_SAMPLER": "always_off",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{self.ports['otlp_grpc']}",
        }
        return Command((self._executable(), "--config", "jaeger.yml"), {**os.environ, **own})

    def ask(self) -> None:
        get(f"http://{LOOPBACK}:{self.ports['health']}/status")
        get(f"{self.url}/api/services")

    def extras(self) -> dict[str, object]:
        return {"otlp": f"http://{LOOPBACK}:{self.ports['otlp']}"}

    @property
    def _built(self) -> Path:
        return self.state.cache / f"jaeger-{VERSION}" / "jaeger"

    def _executable(self) -> Path:
        found = shutil.which("jaeger")
        return Path(found) if found is not None else self._built


def _build(folder: Path) -> None:
    """Build it in a module of its own, where its exact dependencies are chosen."""
    module = folder / "module"
    module.mkdir()
    (module / "go.mod").write_text("module observe\n")
    for command in (
        ("go", "get", "-tool", f"{PROGRAM}@v{VERSION}"),
        ("go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(folder / "jaeger"), PROGRAM),
    ):
        done = subprocess.run(command, cwd=module, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServiceError(
                f"{' '.join(command)} failed:\n{done.stderr.strip()[-2_000:]}",
                "see whether go is current and reaches its module proxy (go env GOPROXY)",
            )
    shutil.rmtree(module)
