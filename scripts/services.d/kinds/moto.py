"""Amazon's services as moto imitates them: everything in memory, nothing survives its process."""

from __future__ import annotations

import os
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path

from errors import ServiceError
from process import Command
from server import LOOPBACK, Server, get
from state import ROOT

SERVER = ROOT / "scripts" / "services.d" / "emulated_aws.py"
REGION = "us-east-1"
CREDENTIALS = {"access_key": "testing", "secret_key": "testing", "region": REGION}


class Moto(Server):
    """A moto server from the development environment."""

    durability = "volatile: an emulator, which loses everything when it is killed"

    @property
    def endpoint(self) -> str:
        """The address of its HTTP side."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    @abstractmethod
    def url(self) -> str: ...

    def install(self) -> None:
        self.version()

    def version(self) -> str:
        asked = subprocess.run(
            [_python(), "-c", "import moto, moto.server; print(moto.__version__)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode != 0:
            raise ServiceError(
                f"{_python()} has no moto[server]",
                "run make test TESTS=tests/unit, which prepares the development environment",
            )
        return asked.stdout.strip()

    def prepare(self) -> None:
        """Nothing: all it has is in memory."""

    def command(self) -> Command:
        return Command(
            (_python(), SERVER, "-H", LOOPBACK, "-p", str(self.port)),
            os.environ | {"AWS_DEFAULT_REGION": REGION},
        )

    def ask(self) -> None:
        get(f"{self.endpoint}/moto-api/config")

    def extras(self) -> dict[str, object]:
        return {"endpoint": self.endpoint, **CREDENTIALS}


class SnsSqs(Moto):
    """Topics and queues."""

    name = "sns_sqs"

    @property
    def url(self) -> str:
        return f"sns+sqs://testing:testing@{REGION}?endpoint={self.endpoint}"


class S3(Moto):
    """Buckets."""

    name = "s3"

    @property
    def url(self) -> str:
        return self.endpoint


def _python() -> Path:
    """The development environment's Python; without one the Python that runs this."""
    prepared = ROOT / ".venv" / "bin" / "python"
    return prepared if prepared.exists() else Path(sys.executable)
