"""What every client of the driver is set to, and what its errors mean."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError, KafkaException

from oyez.brokers.kafka.options import KafkaOptions
from oyez.endpoint import Endpoint
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable

_QUIET = 0  # librdkafka writes to standard error itself; what matters comes as an exception


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
