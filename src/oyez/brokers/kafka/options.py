"""The options of a Kafka URL, what the driver is set to by them, and what its errors mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from confluent_kafka import KafkaError, KafkaException

from oyez.endpoint import (
    BatchBytes,
    Bytes,
    Count,
    Endpoint,
    Partitions,
    Retention,
    Seconds,
    Some,
    Tls,
    limits,
)
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable

REPLICAS = 3
"""Copies of each record, where there are so many brokers."""
_QUIET = 0  # librdkafka writes to standard error itself; what matters comes as an exception


class KafkaOptions(Tls, frozen=True, kw_only=True):
    """How the Kafka broker behaves. The defaults are the most durable that a cluster can give."""

    partitions: Partitions = 8
    """How many a stream gets that is made by its first record."""
    retention: Retention = 7 * 86_400.0
    """Seconds for which new topics keep a record (``retention.ms``)."""
    batch: Count = 256
    """Records in one batch, at most."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes that one reader holds before it stops fetching; one message set may exceed it."""
    deadline: Annotated[float, limits(0.001, 600.0, "seconds")] = 10.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    poll: Seconds = 1.0
    """Seconds between two looks for new topics, and between two commits of group offsets."""
    replication_factor: Some = 0
    """Replicas of new topics; 0 stands for three, or as many as there are brokers."""
    min_insync_replicas: Some = 0
    """How many of them must have a record before it is confirmed; 0 for two of three or more."""
    max_message_bytes: Bytes = 2 * 1024 * 1024
    """The largest record that new topics take, headers and data together."""
    acks: Literal["all", "1"] = "all"
    """Who must have a record before it is confirmed; 1, the leader alone, can lose records."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """How records are compressed on their way and in the topic."""
    linger: Annotated[float, limits(0.0, 900.0, "seconds")] = 0.0
    """Seconds for which records wait for more to travel with them."""
    tls: bool = False
    """Encrypt, and verify the servers."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How the URL's user and password are shown to the server."""


def client_settings(endpoint: Endpoint, options: KafkaOptions) -> dict[str, Any]:
    """What every client of the driver is set to. Holds the password: never show it.

    Raises ConfigurationError for certificates that can't be read.
    """
    # A connection that died in silence is noticed early enough to try another within a deadline.
    silence = max(1_000, round(options.deadline * 500))
    settings: dict[str, Any] = {
        "bootstrap.servers": ",".join(f"{host}:{port}" for host, port in endpoint.hosts),
        "client.id": "oyez",
        "log_level": _QUIET,
        "log.connection.close": False,
        "allow.auto.create.topics": False,
        "socket.timeout.ms": silence,
        "socket.connection.setup.timeout.ms": silence,
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "retry.backoff.ms": 50,
        "topic.metadata.propagation.max.ms": 5_000,
        "security.protocol": ("sasl_" if endpoint.user is not None else "")
        + ("ssl" if options.tls else "plaintext"),
    }
    if endpoint.user is not None:
        settings |= {
            "sasl.mechanism": options.sasl_mechanism,
            "sasl.username": endpoint.user,
            "sasl.password": endpoint.password or "",
        }
    files = {
        "ssl.ca.location": options.cafile,
        "ssl.certificate.location": options.certfile,
        "ssl.key.location": options.keyfile or options.certfile,
    }
    if options.tls:
        options.context()
        settings |= {name: file for name, file in files.items() if file is not None}
    return settings


def cause(exception: KafkaException) -> KafkaError:
    """What the driver's exception holds."""
    error: KafkaError = exception.args[0]
    return error


def explain(error: KafkaError, endpoint: Endpoint) -> BrokerError:
    """The driver's error as one of ours."""
    if error.code() in _CREDENTIALS:
        return BrokerRefused(
            f"{endpoint.url}: {error.str()}: check the URL's user and password, sasl_mechanism, "
            "tls and cafile"
        )
    if error.code() in _PERMISSION:
        return BrokerRefused(f"{endpoint.url}: {error.str()}: give the user that right (an ACL)")
    if error.code() in _REFUSED:
        return BrokerRefused(f"{endpoint.url}: {error.str()}")
    return BrokerUnavailable(f"{endpoint.url} is out of reach: {error.str()}")


_CREDENTIALS = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
}
_PERMISSION = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_REFUSED = {
    KafkaError._INVALID_ARG,
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_RECORD,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.POLICY_VIOLATION,
    KafkaError.SECURITY_DISABLED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.UNSUPPORTED_VERSION,
}
