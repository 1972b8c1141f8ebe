"""Apache Kafka as one node of KRaft: broker and controller in one JVM, its jars from Maven."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
import uuid
import xml.etree.ElementTree as ElementTree
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path

import lifecycle
from errors import NotReady, ServiceError
from process import Command
from server import LOOPBACK, Server, program, version_of
from state import State, whole

POM = Path(__file__).with_name("kafka.pom.xml")
TOOLS = {
    "configs": "org.apache.kafka.tools.ConfigCommand",
    "console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "get-offsets": "org.apache.kafka.tools.GetOffsetShell",
    "topics": "org.apache.kafka.tools.TopicCommand",
}
"""Kafka's own commands by the name that its release gives them (without kafka- and .sh)."""

SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
# Clients go where a broker tells them, so one that is to meet a proxy needs a listener that tells
# them the proxy's port.
listeners=DIRECT://{host}:{client},PROXIED://{host}:{proxied},CONTROLLER://{host}:{controller}
advertised.listeners=DIRECT://{host}:{client},PROXIED://{host}:{proxy}
inter.broker.listener.name=DIRECT
controller.listener.names=CONTROLLER
listener.security.protocol.map=DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}

# One node can't lean on its replicas: it flushes every batch before it acknowledges.
log.flush.interval.messages=1
default.replication.factor=1
min.insync.replicas=1
auto.create.topics.enable=false

# After a crash the controller admits the broker again when its old session is over.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
log.cleaner.dedupe.buffer.size=16777216
"""
LOGGING = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c{1})%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


class Kafka(Server):
    """Kafka's current release on the system's Java."""

    name = "kafka"
    durability = "a batch is on disk before its acknowledgement (log.flush.interval.messages=1)"
    port_names = ("client", "controller", "proxied", "proxy")
    patience = 120.0

    @property
    def url(self) -> str:
        return f"kafka://{LOOPBACK}:{self.port}"

    def install(self) -> None:
        program("java", "default-jre-headless")
        with self.state.cached(self._jars.name):
            if not self._jars.exists():
                self._download()
            if not self._classes.exists():
                _rehearse(self.state.cache, self._classes)

    def version(self) -> str:
        version = ElementTree.parse(POM).findtext("{*}version")
        if version is None:
            raise ServiceError(f"{POM} has no version", "restore it")
        return version

    def prepare(self) -> None:
        data = self.folder / "data"
        settings = SETTINGS.format(host=LOOPBACK, data=data, **self.ports)
        (self.folder / "kafka.properties").write_text(settings)
        (self.folder / "log4j2.properties").write_text(LOGGING)
        if not (data / "meta.properties").exists():
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            formatted = self._java(
                "kafka.tools.StorageTool",
                # One word: an identity may begin with a hyphen, and would be taken for an option.
                *("format", f"--cluster-id={cluster}", "--config", "kafka.properties"),
            ).run(self.folder, self.log)
            if formatted != 0:
                raise ServiceError("formatting its storage failed", f"{self.log} says why")

    def command(self) -> Command:
        return self._java("kafka.Kafka", "kafka.properties", heap=512)

    def ask(self) -> None:
        # ApiVersions, which a broker answers only after its controller has let it in.
        client = b"oyez"
        request = struct.pack(f">hhih{len(client)}s", 18, 0, 1, len(client), client)
        with socket.create_connection((LOOPBACK, self.port), 2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.makefile("rb").read(10)
        if len(answer) < 10 or struct.unpack(">ih", answer[4:]) != (1, 0):
            raise NotReady("no answer to ApiVersions")

    def tool(self, name: str, arguments: Sequence[str]) -> int:
        """Run one of TOOLS, or any class by its full name, against this server; the exit code."""
        self.install()
        given = list(arguments)
        if name in TOOLS and "--bootstrap-server" not in given:
            given += ["--bootstrap-server", f"{LOOPBACK}:{self.port}"]
        command = self._java(TOOLS.get(name, name), *given)
        return subprocess.run(command.arguments, env=command.environment, check=False).returncode

    @property
    def _jars(self) -> Path:
        return self.state.cache / f"kafka-{self.version()}"

    @property
    def _classes(self) -> Path:
        java = version_of(program("java", "default-jre-headless"), "-version")
        return self._jars.with_name(f"{self._jars.name}-java-{java}.jsa")

    def _java(self, main: str, *arguments: str, heap: int = 128) -> Command:
        return Command(
            (
                *(program("java", "default-jre-headless"), f"-Xmx{heap}m"),
                *self._sharing(),
                f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
                *("-cp", f"{self._jars}/*", main, *arguments),
            ),
            os.environ,
        )

    def _sharing(self) -> Sequence[str]:
        return (f"-XX:SharedArchiveFile={self._classes}",) if self._classes.exists() else ()

    def _download(self) -> None:
        maven = program("mvn", "maven")
        with whole(self._jars) as jars:
            ran = subprocess.run(
                (
                    *(maven, "--batch-mode", "--quiet", "--file", POM),
                    *("dependency:copy-dependencies", "-DincludeScope=runtime"),
                    f"-DoutputDirectory={jars}",
                ),
                capture_output=True,
                text=True,
                check=False,
            )
            if ran.returncode != 0 or not any(jars.iterdir()):
                raise ServiceError(
                    f"mvn found no jars for {POM.name}:\n{ran.stdout.strip()}",
                    "see whether mvn reaches Maven Central",
                )


class _Rehearsal(Kafka):
    """A broker whose JVM writes down, at its end, the classes that it loaded."""

    def _sharing(self) -> Sequence[str]:
        return (f"-XX:ArchiveClassesAtExit={self.state.path / 'classes.jsa'}",)


def _rehearse(cache: Path, classes: Path) -> None:
    """Start and stop a broker once and keep its classes: it halves the time of every start."""
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        broker = _Rehearsal(State(Path(scratch), cache))
        lifecycle.start(broker)
        lifecycle.down(broker, wipe=True)
        written = Path(scratch) / "classes.jsa"
        if written.exists():
            written.rename(classes)
