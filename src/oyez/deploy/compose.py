"""The system for Compose: on one machine, with its broker and its stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oyez.deploy.plan import ADMIN, HOME, Given, Part, Plan
from oyez.deploy.yaml import document
from oyez.endpoint import Endpoint

FILE = "deploy/compose.yaml"
_TMP = "/tmp"  # noqa: S108 - of its own

Value = dict[str, Any]

_PYTHON = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)"
_POSTGRESQL = {
    "environment": {
        "POSTGRES_USER": "oyez",
        "POSTGRES_DB": "oyez",
        "POSTGRES_PASSWORD_FILE": "/run/secrets/postgresql-password",
    },
    "secrets": ["postgresql-password"],
    "volumes": ["postgresql:/var/lib/postgresql/data"],
    # By TCP: while it sets itself up it listens on its socket alone.
    "healthcheck": {"test": "pg_isready --host 127.0.0.1 --username oyez"},
}
_KAFKA = {
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_NODE_ID": "1",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_LISTENERS": "DIRECT://:9092,CONTROLLER://:9093",
    "KAFKA_INTER_BROKER_LISTENER_NAME": "DIRECT",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
    # One node can't lean on its replicas: it flushes every batch before it acknowledges.
    "KAFKA_LOG_FLUSH_INTERVAL_MESSAGES": "1",
    "KAFKA_DEFAULT_REPLICATION_FACTOR": "1",
    "KAFKA_MIN_INSYNC_REPLICAS": "1",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
}
_KAFKA_TOPICS = "/opt/kafka/bin/kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --list"
_NATS_HEALTH = 'wget -qO /dev/null "http://127.0.0.1:8222/healthz?js-enabled-only=true"'
_SERVERS: Mapping[str, tuple[str, Value]] = {
    "kafka": (
        "apache/kafka:4.4.0",
        {
            "environment": _KAFKA,
            "volumes": ["kafka:/var/lib/kafka/data"],
            "healthcheck": {"test": _KAFKA_TOPICS},
        },
    ),
    "nats": (
        "nats:2.15-alpine",
        {
            "command": ["--config", "/etc/nats/oyez.conf"],
            "configs": [{"source": "nats", "target": "/etc/nats/oyez.conf"}],
            "volumes": ["nats:/data"],
            "healthcheck": {"test": _NATS_HEALTH},
        },
    ),
    "amqp": (
        "rabbitmq:3-management",
        {
            "volumes": ["amqp:/var/lib/rabbitmq"],
            "healthcheck": {"test": "rabbitmq-diagnostics --quiet check_port_connectivity"},
        },
    ),
    "redis": (
        "redis:7-alpine",
        {
            "command": ["redis-server", "--appendonly", "yes", "--appendfsync", "always"],
            "volumes": ["redis:/data"],
            "healthcheck": {"test": "redis-cli ping | grep -q PONG"},
        },
    ),
    "postgresql": ("postgres:15-alpine", _POSTGRESQL),
}
_CONFIGS = {
    "nats": 'http: 0.0.0.0:8222\njetstream {\n  store_dir: "/data"\n  sync_interval: always\n}\n'
}


def compose(plan: Plan) -> str:
    """Return the Compose file of a system.

    Services need no order among themselves: each waits for what it needs, so only brokers and
    stores are waited for.
    """
    servers = _servers(plan)
    services = {part.name: _service(plan, part, servers) for part in plan.parts}
    given = {_name(each): each for part in plan.parts for each in _given(part)}
    passwords = ["postgresql-password"] if "postgresql" in _kinds(servers) else []
    volumes = [
        *(["data"] if _shares_file(plan) else []),
        *(f"data-{part.name}" for part in plan.parts if part.file and not _shares_file(plan)),
        *sorted(_kinds(servers)),
    ]
    value: Value = {
        "name": plan.system,
        "services": {**{host: _server(host, kind) for host, kind in servers.items()}, **services},
        "secrets": {name: {"file": f"secrets/{name}"} for name in sorted([*given, *passwords])},
        "configs": {n: {"content": t} for n, t in _CONFIGS.items() if n in _kinds(servers)},
        "volumes": dict.fromkeys(volumes),
    }
    told = [
        "# Each of these files holds one secret. They are not to be committed, and belong to who\n"
        "# reads them: chown 10001, chmod 400.\n"
    ]
    told += [
        f"#   secrets/{name}: {each.url or each.variable or each.key}\n"
        for name, each in sorted(given.items())
    ]
    told += [f"#   secrets/{name}\n" for name in passwords]
    return "".join(told) + document({key: each for key, each in value.items() if each})


def _service(plan: Plan, part: Part, servers: Mapping[str, str]) -> Value:
    environment = dict(part.environment)
    if part.admin:
        environment[part.admin] = f"0.0.0.0:{ADMIN}"
    if part.asks:
        # What the services say of themselves is where they listen: everywhere.
        services = [each for each in plan.parts if each.kind == "service"]
        environment |= {each.admin: f"{each.name}:{ADMIN}" for each in services}
    for given in _given(part):
        if given.variable:
            environment[f"{given.variable}_FILE"] = f"/run/secrets/{_name(given)}"
    volume = "data" if _shares_file(plan) else f"data-{part.name}"
    mounted = part.file or _shares_file(plan)
    folder = f"{HOME}/{plan.data}"
    value: Value = {
        "image": part.image,
        "build": {"context": "..", "dockerfile": f"deploy/{part.name}/Containerfile"},
        "command": [word for word in part.command if word != "--no-migrate"],
        "environment": environment,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": [_TMP, *([] if mounted else [f"{folder}:uid=10001,mode=0700"])],
        "stop_grace_period": f"{part.grace}s",
        "restart": "unless-stopped",
        "mem_limit": part.wants.memory.replace("Mi", "m").replace("Gi", "g"),
        "healthcheck": _health(part),
    }
    if part.replicas.least > 1 and part.kind == "service":
        value["deploy"] = {"replicas": part.replicas.least}
    if mounted:
        value["volumes"] = [f"{volume}:{folder}"]
    if part.kind in ("gateway", "console"):
        value["ports"] = [f"127.0.0.1:{part.port}:{part.port}"]
    secrets = [
        _name(each) if each.variable else {"source": _name(each), "target": f"{folder}/{each.key}"}
        for each in _given(part)
    ]
    if secrets:
        value["secrets"] = secrets
    needed = [host for host in servers if any(peer.host == host for peer in part.peers)]
    if needed:
        value["depends_on"] = {host: {"condition": "service_healthy"} for host in needed}
    return value


def _health(part: Part) -> Value:
    if not part.admin:
        test = f"import socket; socket.create_connection(('127.0.0.1', {part.port}), 2)"
        return {"test": ["CMD", "python3", "-c", test]}
    url = f"http://127.0.0.1:{ADMIN}/readyz"
    return {
        "test": ["CMD", "python3", "-c", _PYTHON, url],
        "interval": "5s",
        "timeout": "3s",
        "start_period": "30s",
    }


def _given(part: Part) -> list[Given]:
    """Return what a part gets from files; who runs a service migrates its store here."""
    files = [each for each in part.given if not each.url.startswith(("embedded:", "sqlite:"))]
    return list({_name(each): each for each in files}.values())


def _name(given: Given) -> str:
    """Return the name of a secret's file."""
    return f"{given.secret}-{given.key}".replace(".", "-")


def _shares_file(plan: Plan) -> bool:
    """Return whether the parts share the embedded broker's file."""
    return plan.broker.startswith("embedded:")


def _servers(plan: Plan) -> dict[str, str]:
    """Return the hosts of brokers and stores that stand beside the system, each with its kind.

    Those of one name, without a dot, are started here; others are where they are.
    """
    found: dict[str, str] = {}
    for part in plan.parts:
        for given in part.given:
            kind = given.url.partition(":")[0].replace("rediss", "redis").replace("amqps", "amqp")
            if kind in _SERVERS:
                for host, _ in Endpoint(given.url, port=1).hosts:
                    if "." not in host and ":" not in host:
                        found.setdefault(host, kind)
    return found


def _kinds(servers: Mapping[str, str]) -> set[str]:
    return set(servers.values())


def _server(host: str, kind: str) -> Value:
    image, more = _SERVERS[kind]
    value = {"image": image, "restart": "unless-stopped", **more}
    if kind == "kafka":
        addresses = {"KAFKA_ADVERTISED_LISTENERS": f"DIRECT://{host}:9092"}
        value = {**value, "environment": {**more["environment"], **addresses}}
    health = {**value["healthcheck"], "interval": "5s", "timeout": "20s", "retries": 20}
    return {**value, "healthcheck": health}
