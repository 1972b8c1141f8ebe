"""What a deployed system consists of: its parts, what each needs, and who connects to whom.

Made of the settings and the services' code alone; what is written for Compose, Kubernetes and CI
follows from it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, Literal

import msgspec

from oyez.config import Replicas, ServiceDeploySettings, ServiceSettings
from oyez.config.rules import is_remote
from oyez.endpoint import Endpoint, redact
from oyez.errors import ConfigurationError
from oyez.project import Project
from oyez.service import Service
from oyez.timers import MADE_HERE

ADMIN, HTTP, GATEWAY, CONSOLE, SCALE = 9000, 8000, 8080, 8081, 8082
"""The ports of parts: every admin port, services' HTTP sides, and those of the others."""
USER = 10001
"""The user, and the group, that parts run as."""
HOME = "/app"
"""The folder of ``oyez.toml`` and the code in an image."""
SECRETS = "/run/secrets"
"""The folder of secrets, a file each."""
DRAIN_DELAY = 4.0
"""Seconds for which a part that was told to stop takes requests, unless its settings say."""
RESERVED = ("gateway", "console", "oyez-scale", "oyez")
"""Names of parts that no service may have."""

_EXTRAS = {
    "kafka": "kafka",
    "nats": "nats",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "sns+sqs": "sns_sqs",
    "s3": "s3",
    "postgresql": "postgresql",
}
_PORTS = {
    "kafka": 9092,
    "nats": 4222,
    "amqp": 5672,
    "amqps": 5671,
    "redis": 6379,
    "rediss": 6379,
    "postgresql": 5432,
    "http": 80,
}
_VARIABLE = re.compile(r"\$\$|\$\{([^}]*)\}")
_HIDDEN = ("client_secret", "secrets")


class Peer(msgspec.Struct, frozen=True, order=True):
    """A place that a part connects to. No host stands for any, outside of the cluster."""

    host: str
    port: int


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that a part reads from a file."""

    variable: str
    """The setting that it is, ``OYEZ_…`` or a variable of ``oyez.toml``."""
    secret: str
    """The Secret that holds it."""
    key: str
    url: str = ""
    """For a URL, the URL without its password."""

    @property
    def file(self) -> str:
        """Where the part finds it."""
        return f"{SECRETS}/{self.secret}/{self.key}"


# Names of Secrets, which hold what is secret and are none.
VARIABLES = "oyez-variables"
_SYSTEM, _SCALE, _GATEWAY, _STORE_OF_GATEWAY = "oyez", "oyez-scale", "gateway", "gateway-store"
_TOKEN = Given(variable="OYEZ_TOKEN", secret=_SYSTEM, key="token")
_SCALE_TOKEN = Given(variable="OYEZ_SCALE_TOKEN", secret=_SCALE, key="token")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of process of the deployed system."""

    name: str
    kind: Literal["service", "gateway", "console", "scale"]
    command: tuple[str, ...]
    """The arguments of ``oyez``."""
    image: str
    port: int | None = None
    """Where it serves requests."""
    admin: str = ""
    """The variable of its admin port, if it has one."""
    environment: Mapping[str, str] = {}
    given: tuple[Given, ...] = ()
    migrates: Given | None = None
    """The store as a role that may change tables has it; None where nothing is to be migrated."""
    replicas: Replicas = Replicas(1, 1)
    file: str = ""
    """Why it is one process with a volume: the URL of its SQLite file; empty if it is not."""
    grace: int = 30
    """Seconds in which its drain ends."""
    peers: tuple[Peer, ...] = ()
    """Brokers, stores and others that it connects to."""
    parts: tuple[str, ...] = ()
    """Parts that it sends requests to."""
    asks: bool = False
    """Whether it asks the admin ports of services."""
    publishes: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    """The extras of Oyez that it needs."""
    include: tuple[str, ...] = ()
    """Files and folders of the project in its image."""
    wants: ServiceDeploySettings = ServiceDeploySettings()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a deployed system."""

    system: str
    namespace: str
    partitions: int
    data: str
    """The data folder, relative to the folder of ``oyez.toml``."""
    settings: str
    """The text of ``oyez.toml``."""
    monitor: bool
    parts: tuple[Part, ...]
    broker: str
    """The URL of the system's broker, without a password."""
    left_out: tuple[str, ...] = ()
    """What is not deployed, with the reason."""

    def part(self, name: str) -> Part:
        """Return a part by its name. Raises ConfigurationError that lists the names."""
        for each in self.parts:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in self.parts)
        raise ConfigurationError(f"there is no {name!r} to deploy; there are: {names}")

    def callers(self, name: str) -> list[str]:
        """Return the parts that send requests to a part."""
        return [each.name for each in self.parts if name in each.parts]


def plan(project: Project, *, single: bool = False) -> Plan:
    """Return what is deployed of a project.

    ``single`` is for one machine: files may be shared there. Raises ConfigurationError for services
    that can't be imported, for secrets in ``oyez.toml``, and for replicas that can't share a file.
    """
    for name in RESERVED:
        if name in project.config.services:
            expected = "a name that no other part has"
            raise project.config.error(f"services.{name}", expected, f'"{name}"')
    services, failed = project.services()
    for name, reason in failed.items():
        raise ConfigurationError(f"services.{name} can't be imported: {reason}")
    return _Planner(project, services, single).plan()


class _Planner:
    def __init__(self, project: Project, services: Mapping[str, Service], single: bool) -> None:
        self._project = project
        self._config = project.config
        self._services = services
        self._single = single
        self._deploy = project.config.deploy
        self._images = self._deploy.registry or project.config.system.name
        self._text = self._settings_text()
        self._broker = self._deploy.broker or self._config.system.broker

    def plan(self) -> Plan:
        config = self._config
        self._check_broker()
        parts = [self._service(each) for each in config.services.values()]
        if config.gateway is not None:
            parts.append(self._gateway())
        if config.console is not None:
            parts.append(self._console())
        if any(each.replicas.least < each.replicas.most for each in config.services.values()):
            parts.append(self._scale())
        left_out = [f"bridges.{name}: run `oyez bridge {name}` by hand" for name in config.bridges]
        left_out += [f"companions.{name}: it is for `oyez dev`" for name in config.companions]
        return Plan(
            system=config.system.name,
            namespace=self._deploy.namespace or config.system.name,
            partitions=config.system.partitions,
            data=config.system.data,
            settings=self._text,
            monitor=self._deploy.monitor,
            parts=tuple(parts),
            broker=_bare(self._broker),
            left_out=tuple(left_out),
        )

    def _settings_text(self) -> str:
        """Return the text of oyez.toml. Raises ConfigurationError for a secret in it."""
        config = self._config
        text = config.path.read_text("utf-8-sig")
        for key, value in _leaves(tomllib.loads(text), ""):
            open_secret = any(part in _HIDDEN for part in re.split(r"[.\[]", key))
            if "${" not in value and (open_secret or redact(value) != value):
                raise config.error(
                    key, "a secret as ${NAME}, as the file becomes a part of what is deployed", "it"
                )
        if config.system.data.startswith("/") or ".." in config.system.data.split("/"):
            expected = "a folder below that of oyez.toml, where a volume is mounted"
            raise config.error("system.data", expected, config.system.data)
        return text

    def _check_broker(self) -> None:
        if _file(self._broker) is not None and not (
            self._single and self._broker.startswith("embedded:")
        ):
            key = "deploy.broker" if self._deploy.broker else "system.broker"
            expected = (
                "a broker that is a server, as pods on several machines can't share a file: set "
                "broker in [deploy]"
            )
            raise self._config.error(key, expected, f'"{redact(self._broker)}"')

    def _service(self, settings: ServiceSettings) -> Part:
        name, service = settings.name, self._services[settings.name]
        key = f"OYEZ_SERVICES_{name}".upper().replace("-", "_")
        store, setting = self._store(settings)
        file = _file(store)
        if file is not None and settings.replicas.most > 1:
            raise self._config.error(
                f"services.{name}.replicas",
                "1, as its store is a SQLite file, which pods can't share: set store to "
                f"postgresql://… in [deploy] or [services.{name}.deploy]",
                f"{settings.replicas}",
            )
        self._check_file(file, setting)
        http = service.http is not None and settings.http is not None
        gateway = self._config.gateway
        routed = gateway is not None and any(each.service == name for each in gateway.routes)
        environment = {
            "OYEZ_LOG": "json",
            f"{key}_DRAIN_DELAY": f"{settings.drain_delay or DRAIN_DELAY:g}",
        }
        parts: list[str] = []
        if http:
            environment[f"{key}_HTTP"] = f"0.0.0.0:{HTTP}"
        if http and routed:
            environment["OYEZ_GATEWAY_JWKS"] = f"http://gateway:{GATEWAY}/.well-known/jwks.json"
            parts.append("gateway")
        egress = [_peer(each) for each in settings.deploy.egress]
        parts += [each.host for each in egress if each.host in self._services]
        given = [
            *self._given_broker(settings),
            _TOKEN,
        ]
        stored = Given(variable=f"{key}_STORE", secret=f"{name}-store", key="url", url=store)
        if file is None:
            given.append(stored)
        else:
            environment[f"{key}_STORE"] = store
        if settings.replicas.least < settings.replicas.most:
            given.append(_SCALE_TOKEN)
        broker = self._broker_of(settings)
        program = self._program(settings)
        if program and program != settings.url:
            environment[f"{key}_URL"] = program
        return Part(
            name=name,
            kind="service",
            command=("run", name) if file is not None else ("run", name, "--no-migrate"),
            image=f"{self._images}/{name}",
            port=HTTP if http else None,
            admin=f"{key}_ADMIN",
            environment=environment,
            given=(*given, *self._variables()),
            migrates=None
            if file is not None
            else msgspec.structs.replace(stored, secret=f"{name}-migrate"),
            replicas=settings.replicas,
            file="" if file is None else store,
            grace=_drain(settings.drain_delay, settings.grace, 3 if http else 2),
            peers=_sorted(
                *_peers(broker),
                *_peers(store),
                *_peers(self._config.system.claim_check or ""),
                *(_peers(program) if is_remote(program) else ()),
                *(each for each in egress if each.host not in self._services),
            ),
            parts=tuple(dict.fromkeys(parts)),
            publishes=tuple(sorted(kind.name for kind in service.publishes)),
            handles=tuple(
                sorted(
                    {kind.name for each in service.subscriptions for kind in each.events}
                    - MADE_HERE
                )
            ),
            extras=_extras(broker, store, self._config.system.claim_check or ""),
            include=(*self._folders([name]), *settings.deploy.include),
            wants=settings.deploy,
        )

    def _gateway(self) -> Part:
        config, gateway = self._config, self._config.gateway
        assert gateway is not None
        if self._deploy.gateway_store is not None:
            self._refuse_password(self._deploy.gateway_store, "deploy.gateway_store")
        several = self._deploy.gateway_replicas
        store = self._deploy.gateway_store or _bare(gateway.store)
        file = _file(store) if gateway.uses_store else None
        if file is not None and self._deploy.gateway_replicas > 1 and not self._single:
            raise config.error(
                "deploy.gateway_replicas",
                "1, as gateway.store is a SQLite file, which pods can't share: set gateway_store "
                "to redis://… or postgresql://… in [deploy]",
                f"{self._deploy.gateway_replicas}",
            )
        self._check_file(file, "gateway.store")
        reached = sorted({route.service for route in gateway.routes})
        environment = {
            "OYEZ_LOG": "json",
            "OYEZ_GATEWAY_LISTEN": f"0.0.0.0:{GATEWAY}",
            "OYEZ_GATEWAY_DRAIN_DELAY": f"{gateway.drain_delay or DRAIN_DELAY:g}",
        }
        for name in reached:
            key = f"OYEZ_SERVICES_{name}_ADDRESS".upper().replace("-", "_")
            environment[key] = f"{name}:{HTTP}"
        given = [self._system_broker()]
        peers = [*_peers(self._broker)]
        if gateway.uses_store and file is None:
            given.append(
                Given(variable="OYEZ_GATEWAY_STORE", secret=_STORE_OF_GATEWAY, key="url", url=store)
            )
            peers += _peers(store)
        elif gateway.uses_store:
            environment["OYEZ_GATEWAY_STORE"] = store
        given.append(Given(variable="", secret=_GATEWAY, key="gateway.secret"))
        given.append(Given(variable="", secret=_GATEWAY, key="gateway.key"))
        if gateway.login is not None or gateway.issuers:
            peers.append(Peer("", 443))
        include = [gateway.static] if gateway.static else []
        if gateway.ingest is not None:
            events = (each for s in gateway.ingest.senders.values() for each in s.events)
            include += [each.partition(":")[0].partition(".")[0] for each in events]
        return Part(
            name="gateway",
            kind="gateway",
            command=("gateway",),
            image=f"{self._images}/gateway",
            port=GATEWAY,
            admin="OYEZ_GATEWAY_ADMIN",
            environment=environment,
            given=(*given, *self._variables()),
            replicas=Replicas(1, 1) if file else Replicas(several, several),
            file=store if file else "",
            grace=_drain(gateway.drain_delay, gateway.grace, 2),
            peers=_sorted(*peers),
            parts=tuple(reached),
            extras=_extras(
                self._broker, store if gateway.uses_store else "", login=gateway.login is not None
            ),
            include=self._existing(include),
        )

    def _console(self) -> Part:
        console = self._config.console
        assert console is not None
        login = console.login is not None
        part = self._onlooker("console", "console", ("console",), CONSOLE)
        environment = {**part.environment, "OYEZ_CONSOLE_LISTEN": f"0.0.0.0:{CONSOLE}"}
        peers = _sorted(*part.peers, *([Peer("", 443)] if login else []))
        extras = tuple(sorted({*part.extras, *(["login"] if login else [])}))
        return msgspec.structs.replace(
            part, environment=environment, peers=peers, extras=extras, asks=True
        )

    def _scale(self) -> Part:
        command = ("scale", "serve", "--listen", f"0.0.0.0:{SCALE}")
        part = self._onlooker("oyez-scale", "scale", command, SCALE)
        return msgspec.structs.replace(part, given=(*part.given, _SCALE_TOKEN))

    def _onlooker(
        self, name: str, kind: Literal["console", "scale"], command: tuple[str, ...], port: int
    ) -> Part:
        """Return a part that looks at every service from outside, by broker and stores."""
        given = [self._system_broker(), _TOKEN]
        peers, urls = [*_peers(self._broker)], [self._broker]
        for settings in self._config.services.values():
            store, _ = self._store(settings)
            urls += [store, self._broker_of(settings)]
            peers += [*_peers(self._broker_of(settings))]
            if settings.broker:
                given += self._given_broker(settings)
            if _file(store) is None:
                key = f"OYEZ_SERVICES_{settings.name}_STORE".upper().replace("-", "_")
                secret = f"{settings.name}-store"
                given.append(Given(variable=key, secret=secret, key="url", url=store))
                peers += _peers(store)
        return Part(
            name=name,
            kind=kind,
            command=command,
            image=f"{self._images}/{name}",
            port=port,
            environment={"OYEZ_LOG": "json"},
            given=(*given, *self._variables()),
            grace=15,
            peers=_sorted(*peers),
            extras=_extras(*urls),
            include=self._folders(list(self._config.services)),
        )

    def _store(self, settings: ServiceSettings) -> tuple[str, str]:
        """Return the store of a service where it is deployed, and the setting that names it."""
        own = (settings.deploy.store, f"services.{settings.name}.deploy.store")
        of_all = (self._deploy.store, "deploy.store")
        for store, setting in (own, of_all):
            if store is not None:
                self._refuse_password(store, setting)
                return store.replace("{service}", settings.name), setting
        return _bare(settings.store), f"services.{settings.name}.store"

    def _program(self, settings: ServiceSettings) -> str:
        """Return where the program of a bridged service is; nothing for one with an app."""
        url, key = settings.deploy.url, f"services.{settings.name}.deploy.url"
        if url is None:
            if settings.url is not None and not is_remote(settings.url):
                expected = (
                    "where the program is when it is deployed, as its url is of this machine; for "
                    "a container that you add to the same pod, the same again"
                )
                raise self._config.error(key, expected, "nothing")
            return settings.url or ""
        written = dict(_leaves(tomllib.loads(self._text), ""))
        if written.get(key) != url:
            expected = "a URL without variables, as it stands in the manifests"
            raise self._config.error(key, expected, f'"{written.get(key)}"')
        return url

    def _broker_of(self, settings: ServiceSettings) -> str:
        return _bare(settings.broker or self._broker)

    def _system_broker(self) -> Given:
        if self._deploy.broker is not None:
            self._refuse_password(self._deploy.broker, "deploy.broker")
        url = _bare(self._broker)
        return Given(variable="OYEZ_BROKER", secret=_SYSTEM, key="broker", url=url)

    def _given_broker(self, settings: ServiceSettings) -> list[Given]:
        """Return the system's broker, and the service's own if it has one."""
        given = [self._system_broker()]
        if settings.broker:
            key = f"OYEZ_SERVICES_{settings.name}_BROKER".upper().replace("-", "_")
            secret = f"{settings.name}-broker"
            given.append(Given(variable=key, secret=secret, key="url", url=_bare(settings.broker)))
        return given

    def _refuse_password(self, url: str, key: str) -> None:
        if redact(url) != url:
            expected = "a URL without a password, which comes from a secret"
            raise self._config.error(key, expected, f'"{redact(url)}"')

    def _check_file(self, file: str | None, key: str) -> None:
        data = self._config.system.data.strip("/")
        if file is not None and not file.startswith(f"{data}/"):
            expected = f"a file in the folder {data}, which is the volume"
            raise self._config.error(key, expected, f'"{file}"')

    def _variables(self) -> tuple[Given, ...]:
        """Return the variables that oyez.toml names: every process of the system reads it."""
        text = "\n".join(value for _, value in _leaves(tomllib.loads(self._text), ""))
        names = sorted({match[1] for match in _VARIABLE.finditer(text) if match[1]})
        return tuple(Given(variable=name, secret=VARIABLES, key=name) for name in names)

    def _folders(self, names: list[str]) -> tuple[str, ...]:
        """Return the package or module of each service, and the folder of its migrations."""
        found = []
        for name in names:
            if self._config.services[name].url is not None:
                found.append(self._config.services[name].bridge.contract or "")
                continue
            top = self._config.services[name].app.partition(":")[0].partition(".")[0]
            root = self._config.root
            found.append(top if (root / top).is_dir() else f"{top}.py")
            migrations = self._services[name].migrations
            if migrations and not f"{migrations}".startswith(f"{top}/"):
                found.append(f"{migrations}")
        return self._existing(found)

    def _existing(self, paths: list[str]) -> tuple[str, ...]:
        root = self._config.root
        return tuple(dict.fromkeys(path for path in paths if path and (root / path).exists()))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Return the texts in a value of TOML, each with the way to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{index}]")
    elif isinstance(value, str):
        yield key, value


def _bare(url: str) -> str:
    """Return a URL without its user and password, and without options, which may be secret."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        return url
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _file(url: str) -> str | None:
    """Return the file of a URL; None for a server's."""
    scheme, _, rest = url.partition(":")
    return rest if scheme in ("embedded", "sqlite", "memory") else None


def _peers(url: str) -> list[Peer]:
    scheme = url.partition(":")[0]
    if not url or _file(url) is not None or scheme == "folder":
        return []
    if scheme in ("s3", "sns+sqs"):
        return [Peer("", 443)]
    return [Peer(host, port) for host, port in Endpoint(url, port=_PORTS.get(scheme, 443)).hosts]


def _peer(text: str) -> Peer:
    host, _, port = text.rpartition(":")
    return Peer(
        host.strip("[]") if "/" not in host else host.replace("[", "").replace("]", ""), int(port)
    )


def _sorted(*peers: Peer) -> tuple[Peer, ...]:
    return tuple(sorted(set(peers)))


def _extras(*urls: str, login: bool = False) -> tuple[str, ...]:
    found = {_EXTRAS[url.partition(":")[0]] for url in urls if url.partition(":")[0] in _EXTRAS}
    return tuple(sorted(found | ({"login"} if login else set())))


def _drain(delay: float, grace: float, times: int) -> int:
    """Return the whole seconds in which a drain ends, with a margin."""
    return ceil((delay or DRAIN_DELAY) + times * grace + 5)
