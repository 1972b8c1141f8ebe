"""An example that is slowly fed, in processes of its own, for the tests of its page."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trial import free_address

ROOT = Path(__file__).resolve().parents[2]
UP = 60.0


@contextmanager
def showing(name: str, folder: Path, live: int, *http: str, **settings: str) -> Iterator[str]:
    """The address of the page of an example that plays ``live`` events; ``http`` are its sides."""
    left = shutil.ignore_patterns(".oyez", "__pycache__", "out", "keys.toml", "tests", "trials")
    copy = Path(shutil.copytree(ROOT / "examples" / name, folder / name, ignore=left))
    path = [str(ROOT / "scripts" / "example.d"), os.environ.get("PYTHONPATH", "")]
    there = {f"OYEZ_SERVICES_{each.upper()}_HTTP": free_address() for each in http}
    there |= {"OYEZ_GATEWAY_LISTEN": free_address(), "PYTHONPATH": os.pathsep.join(path)}
    said = folder / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "run.py", "--live", str(live)],
            cwd=copy,
            env={**os.environ, **there, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + UP
        while not (found := re.search(r"the page: (\S+)", said.read_text())):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.1)
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
