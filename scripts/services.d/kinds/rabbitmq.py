"""RabbitMQ as a node of its own, with streams and the management plugin."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from errors import Missing
from process import Command, Process
from server import LOOPBACK, Server, get, program

DEBIAN = Path("/usr/lib/rabbitmq/lib")
"""Upstream's scripts live here; those in sbin insist on root or the system's own account."""
PLUGINS = ("rabbitmq_management", "rabbitmq_stream")


class RabbitMQ(Server):
    """Debian's rabbitmq-server."""

    name = "rabbitmq"
    durability = "queues: on disk before the confirm; streams: flushed by the system, later"
    port_names = ("client", "stream", "management", "distribution", "epmd")
    patience = 120.0

    @property
    def url(self) -> str:
        return f"amqp://oyez:{self.password}@{LOOPBACK}:{self.port}/"

    def install(self) -> None:
        self._home()
        program("epmd", "erlang-base")

    def version(self) -> str:
        return self._home().name.rpartition("-")[2]

    def prepare(self) -> None:
        (self.folder / "plugins").write_text(f"[{','.join(PLUGINS)}].\n")
        settings = self.folder / "rabbitmq.conf"
        settings.touch(0o600)
        settings.write_text(
            f"listeners.tcp.1 = {LOOPBACK}:{self.port}\n"
            f"stream.listeners.tcp.1 = {LOOPBACK}:{self.ports['stream']}\n"
            f"stream.advertised_host = {LOOPBACK}\n"
            f"stream.advertised_port = {self.ports['stream']}\n"
            f"management.tcp.ip = {LOOPBACK}\n"
            f"management.tcp.port = {self.ports['management']}\n"
            "default_user = oyez\n"
            f"default_pass = {self.password}\n"
            "disk_free_limit.absolute = 256MB\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
        )
        self._start_epmd()

    def command(self) -> Command:
        identity = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]
        return Command(
            (self._home() / "sbin" / "rabbitmq-server",),
            self._epmd_environment()
            | {
                "HOME": str(self.folder),
                "RABBITMQ_CONF_ENV_FILE": os.devnull,
                "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
                "RABBITMQ_DIST_PORT": str(self.ports["distribution"]),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
                "RABBITMQ_LOG_BASE": str(self.folder),
                "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
                "RABBITMQ_NODENAME": f"oyez-{identity}@localhost",
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                    "-kernel inet_dist_use_interface {127,0,0,1}"
                ),
                # Its script then becomes the server instead of waiting for it as a child.
                "RUNNING_UNDER_SYSTEMD": "true",
            },
        )

    def ask(self) -> None:
        for port in ("client", "stream"):
            self._check(f"port-listener/{self.ports[port]}")
        self._check("virtual-hosts")

    def extras(self) -> dict[str, object]:
        return {
            "stream_port": self.ports["stream"],
            "management_url": f"http://{LOOPBACK}:{self.ports['management']}",
        }

    def companions(self) -> Sequence[Process]:
        epmd = Process.recorded(self.folder / "epmd.pid")
        return () if epmd is None else (epmd,)

    def _home(self) -> Path:
        found = sorted(DEBIAN.glob("rabbitmq_server-*"))
        if not found:
            raise Missing("rabbitmq-server", "rabbitmq-server")
        return found[-1]

    def _epmd_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self.ports["epmd"]),
        }

    def _start_epmd(self) -> None:
        """Start the name server of Erlang's nodes, one for this node alone."""
        if Process.recorded(self.folder / "epmd.pid") is None:
            epmd = Command((program("epmd", "erlang-base"),), self._epmd_environment())
            epmd.start(self.folder, self.log).record(self.folder / "epmd.pid")

    def _check(self, what: str) -> None:
        secret = base64.b64encode(f"oyez:{self.password}".encode()).decode()
        get(
            f"http://{LOOPBACK}:{self.ports['management']}/api/health/checks/{what}",
            {"Authorization": f"Basic {secret}"},
        )
