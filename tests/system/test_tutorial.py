"""Pages done as they say: their files written, their commands run, their answers compared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from shop import free_ports

DOCS = Path(__file__).parents[2] / "docs"
DEADLINE = 60.0
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?:#|--) (at the (?:beginning|end) of )?((?:\w+/)*\w+\.(?:py|sql))\n")
_FUTURE = "from __future__ import annotations\n"


class Reader:
    """Someone who does what the page says, with `oyez dev` in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = zip(("8080", "8101", "8102"), free_ports(3), strict=True)
        self.ports = {f":{known}": f":{free}" for known, free in ports}
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTEST_PLUGINS": "oyez.testing.plugin",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
            "COLUMNS": "200",
        }
        self.dev: subprocess.Popen[bytes] | None = None
        self.log = folder / "dev.log"

    def write(self, files: dict[str, str]) -> None:
        """Save the files; a running `oyez dev` has started all services with them afterwards."""
        seen = len(self._lines())
        for name, text in files.items():
            (self.folder / name).write_text(text)
        if self.dev is not None and any(name.endswith(".py") for name in files):
            for service in ("greeter", "counter"):
                self._until(partial(self._started, service, seen))

    def command(self, command: str, expected: str) -> None:
        """Run it until its answer is the expected one, as someone would who looks again."""
        if command.startswith("cd "):
            self.folder /= command.removeprefix("cd ")
            return
        if command == "oyez dev":
            self.dev = subprocess.Popen(
                ["oyez", "dev"],
                cwd=self.folder,
                env=self.environment,
                stdout=self.log.open("wb"),
                stderr=subprocess.STDOUT,
            )
            self._until(lambda: _like(expected, self.log.read_text()))
            return
        answers: list[str] = []

        def answered() -> bool:
            done = subprocess.run(
                command,
                shell=True,
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            answers.append(done.stdout + done.stderr)
            return _like(expected, done.stdout)

        self._until(answered, lambda: f"$ {command}\n{answers[-1]}\ninstead of\n{expected}")
        if command.startswith("oyez new"):
            settings = self.folder / command.rpartition(" ")[2] / "oyez.toml"
            settings.write_text(self.on_ports(settings.read_text()))

    def on_ports(self, text: str) -> str:
        """The text with ports that are free on this machine."""
        for known, free in self.ports.items():
            text = text.replace(known, free)
        return text

    def stop(self) -> int:
        """Press Ctrl-C in the terminal of `oyez dev`; its exit code."""
        assert self.dev is not None
        self.dev.send_signal(signal.SIGINT)
        return self.dev.wait(DEADLINE)

    def _started(self, service: str, seen: int) -> bool:
        return any(f" {service} started " in line for line in self._lines()[seen:])

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _until(
        self, condition: Callable[[], bool], explain: Callable[[], str] = lambda: ""
    ) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, explain() or self._lines()[-20:]
            time.sleep(0.1)  # between two looks at a condition with a deadline


def _like(expected: str, found: str) -> bool:
    """Whether they are the same, where ``…`` is anything."""
    parts = (re.escape(part) for part in expected.strip().split("…"))
    lines = "\n".join(line.rstrip() for line in found.strip().splitlines())
    return re.fullmatch(".*".join(parts), lines, re.DOTALL) is not None


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    if made.dev is not None and made.dev.poll() is None:
        made.stop()


@pytest.mark.parametrize("page", ["tutorial", "five-minutes"])
def test_a_page_that_is_followed(reader: Reader, page: str) -> None:
    files: dict[str, str] = {}
    for language, text in _BLOCK.findall((DOCS / f"{page}.md").read_text()):
        if language == "console":
            if files:
                reader.write(files)
                files = {}
            for step in reader.on_ports(text).split("$ ")[1:]:
                reader.command(*step.partition("\n")[::2])
            continue
        named = _FILE.match(text)
        assert named is not None, text
        place, name = named.groups()
        if place is None:
            files[name] = text
            continue
        old = files.get(name) or (reader.folder / name).read_text()
        new = text[named.end() :]
        if place == "at the end of ":
            files[name] = old + new
        else:
            head, _, rest = old.partition(_FUTURE)
            files[name] = f"{head}{_FUTURE}\n{new}{rest}"
    assert reader.stop() == 0
