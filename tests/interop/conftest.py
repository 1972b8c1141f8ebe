"""Node with the packages of ``node/``, which npm installs once; without them tests are skipped."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from npm import installed
from wires import Node

FOLDER = Path(__file__).parent / "node"
DEADLINE = 60.0
OLDEST = 20
"""Of Node's versions, the oldest that the CloudEvents SDK runs on."""


@pytest.fixture(scope="session")
def node_packages() -> Path:
    """The folder with the installed packages."""
    folder = installed(FOLDER)
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.strip().lstrip("v").split(".")[0]) < OLDEST:
        pytest.skip(f"node is {version.stdout.strip()}; the CloudEvents SDK needs {OLDEST}")
    return folder


@pytest.fixture(scope="session")
def node(node_packages: Path) -> Node:
    """Run a script with a job on its standard input; what it answers, as JSON."""

    async def run(job: Any, script: Path = node_packages / "events.mjs") -> Any:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "node", str(script), stdin=pipe, stdout=pipe, stderr=pipe
        )
        try:
            async with asyncio.timeout(DEADLINE):
                said, error = await process.communicate(json.dumps(job).encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode == 0, error.decode()
        return json.loads(said)

    return run
