"""What `oyez gateway export envoy` writes, held against Envoy's own schema and its rules."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from oyez.config import load
from oyez.gateway.export import export

HERE = Path(__file__).parent / "envoy"
SETTINGS = """
[system]
name = "shop"
[services.orders]
app = "a:b"
http = "127.0.0.1:9001"
[gateway]
listen = "127.0.0.1:9000"
trusted_proxies = ["10.0.0.0/8", "fd00::/8"]
[gateway.issuers.login]
issuer = "https://login.example.com"
audience = ["shop"]
jwks = "https://login.example.com/keys"
[gateway.issuers.staff]
issuer = "https://staff.example.com"
audience = ["shop"]
jwks = "staff.json"
[gateway.limits.all]
rate = "5/min"
by = "route"
[[gateway.routes]]
path = "/"
service = "orders"
access = "public"
[[gateway.routes]]
path = "/orders"
service = "orders"
access = "user"
methods = ["GET", "POST"]
limits = ["all"]
concurrency = 5
[[gateway.routes]]
path = "/orders/live"
service = "orders"
access = "public"
stream = true
[[gateway.routes]]
path = "/closed"
service = "orders"
"""


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that holds a file against the schema; where it can't be built, skip."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    command = ["go", "mod", "download"]
    try:
        done = subprocess.run(
            command, cwd=HERE, capture_output=True, text=True, timeout=200, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("go can't download Envoy's schema: no answer within 200 s")
    if done.returncode:
        pytest.skip(f"go can't download Envoy's schema: {done.stderr.strip()[-300:]}")
    program = tmp_path_factory.mktemp("envoy") / "schema"
    subprocess.run(["go", "build", "-o", f"{program}", "."], cwd=HERE, timeout=500, check=True)
    return program


def judged(schema: Path, folder: Path, tree: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = folder / "envoy.json"
    file.write_text(json.dumps(tree))
    return subprocess.run([schema, file], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.timeout(800)
def test_the_file_fits_envoys_schema(schema: Path, tmp_path: Path) -> None:
    (tmp_path / "oyez.toml").write_text(SETTINGS)
    text = export(load(tmp_path / "oyez.toml", {}), "envoy").text
    tree = json.loads("".join(line for line in text.splitlines(True) if line[:1] != "#"))
    done = judged(schema, tmp_path, tree)
    assert done.returncode == 0, done.stderr
    for name in ("HttpConnectionManager", "JwtAuthentication", "PerRouteConfig", "LocalRateLimit"):
        assert name in done.stdout
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    manager["typed_config"]["stat_prefix"] = ""
    assert "StatPrefix" in judged(schema, tmp_path, tree).stderr
