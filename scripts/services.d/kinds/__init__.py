"""Every kind of server, one file each."""

from server import Server

from kinds.grafana import Grafana
from kinds.jaeger import Jaeger
from kinds.kafka import Kafka
from kinds.moto import S3, SnsSqs
from kinds.nats import Nats
from kinds.pgbouncer import PgBouncer
from kinds.postgresql import PostgreSQL
from kinds.prometheus import Prometheus
from kinds.rabbitmq import RabbitMQ
from kinds.redis import Redis

SERVERS: dict[str, type[Server]] = {
    kind.name: kind for kind in (Kafka, RabbitMQ, PostgreSQL, PgBouncer, Nats, Redis, SnsSqs, S3)
}
"""Those that are meant when none is named: what tests run against, each after those it needs."""
KINDS: dict[str, type[Server]] = SERVERS | {
    kind.name: kind for kind in (Prometheus, Jaeger, Grafana)
}
"""By name; those besides are for `scripts/observe`."""
