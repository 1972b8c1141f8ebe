"""Every kind of server, one file each."""

from server import Server

from kinds.kafka import Kafka
from kinds.moto import S3, SnsSqs
from kinds.nats import Nats
from kinds.pgbouncer import PgBouncer
from kinds.postgresql import PostgreSQL
from kinds.rabbitmq import RabbitMQ
from kinds.redis import Redis

KINDS: dict[str, type[Server]] = {
    kind.name: kind for kind in (Kafka, RabbitMQ, PostgreSQL, PgBouncer, Nats, Redis, SnsSqs, S3)
}
"""By name, each after those that it needs."""
