"""NATS with JetStream, built from its module: Debian's is years older."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from errors import Missing, NotReady, ServiceError
from process import Command
from server import LOOPBACK, Server, version_of
from state import whole

VERSION = "2.15.2"
MODULE = f"github.com/nats-io/nats-server/v2@v{VERSION}"


class Nats(Server):
    """nats-server with JetStream on disk."""

    name = "nats"
    durability = "a message is on disk before its acknowledgement (sync_interval: always)"
    port_names = ("client", "monitoring")

    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"

    def install(self) -> None:
        if shutil.which("go") is None:
            self._executable()
            return
        with self.state.cached(f"nats-{VERSION}") as kept:
            if not kept.exists():
                with whole(kept) as bin_:
                    built = subprocess.run(
                        ["go", "install", MODULE],
                        env=os.environ | {"GOBIN": str(bin_)},
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    if built.returncode != 0:
                        raise ServiceError(
                            f"go install {MODULE} failed:\n{built.stderr.strip()}",
                            "see whether go reaches its module proxy (go env GOPROXY)",
                        )

    def version(self) -> str:
        return version_of(self._executable())

    def prepare(self) -> None:
        (self.folder / "nats.conf").write_text(
            f"listen: {LOOPBACK}:{self.port}\n"
            f"http: {LOOPBACK}:{self.ports['monitoring']}\n"
            "server_name: oyez\n"
            "jetstream {\n"
            f'  store_dir: "{self.folder}"\n'
            "  sync_interval: always\n"
            "}\n"
        )

    def command(self) -> Command:
        return Command((self._executable(), "-c", "nats.conf"), os.environ)

    def ask(self) -> None:
        with (
            socket.create_connection((LOOPBACK, self.port), 2) as connection,
            connection.makefile("rb") as answers,
        ):
            answers.readline()
            connection.sendall(
                b'CONNECT {"verbose":false}\r\nSUB answer 1\r\n'
                b"PUB $JS.API.INFO answer 0\r\n\r\nPING\r\n"
            )
            # JetStream answers from another thread than the one that answers the ping.
            while not (line := answers.readline()).startswith(b"MSG answer"):
                if not line or line.startswith(b"-ERR"):
                    raise NotReady(line.decode(errors="replace").strip() or "it hung up")
            if b'"error"' in (account := answers.readline()):
                raise NotReady(account.decode(errors="replace").strip())

    def extras(self) -> dict[str, object]:
        return {"monitoring_url": f"http://{LOOPBACK}:{self.ports['monitoring']}"}

    def _executable(self) -> Path:
        built = self.state.cache / f"nats-{VERSION}" / "nats-server"
        found = str(built) if built.exists() else shutil.which("nats-server")
        if found is None:
            raise Missing("nats-server, and go to build it", "nats-server")
        return Path(found)
