"""One URL for every server: read strictly, told without its secrets."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from oyez.brokers.claim_check import ClaimCheckOptions
from oyez.brokers.claim_check import postgres as large
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.brokers.kafka.options import KafkaOptions
from oyez.brokers.nats.options import NatsOptions
from oyez.brokers.postgres import options as postgres
from oyez.brokers.rabbitmq.options import RabbitMqOptions
from oyez.brokers.redis.options import RedisOptions
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.endpoint import Endpoint, Tls
from oyez.errors import ConfigurationError
from oyez.postgresql import ServerOptions
from oyez.stores.postgres import store


class Options(Tls, frozen=True, kw_only=True):
    partitions: int = 8
    acks: Literal["all", "1"] = "all"
    deadline: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    tls: bool = False


def test_every_part_of_a_url() -> None:
    found = Endpoint("kafka://me:p%40ss@one:1,[::1]:2,three/a%20b?acks=1&tls=true", port=9092)
    assert found.hosts == [("one", 1), ("::1", 2), ("three", 9092)]
    assert (found.scheme, found.user, found.password, found.path) == (
        "kafka", "me", "p@ss", "a b"
    )  # fmt: skip
    assert found.options(Options, partitions=3) == Options(acks="1", tls=True, partitions=3)


def test_a_password_is_never_shown() -> None:
    found = Endpoint("redis://:s3cret@h/0", port=6379)
    assert found.user == ""
    assert found.password == "s3cret"
    assert "s3cret" not in found.url + repr(found) + str(found.error("x"))


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("ack=1", "option 'ack' is unknown; did you mean acks?"),
        ("partitions=3", "option 'partitions' is unknown"),
        ("acks=2", "option acks: invalid enum value"),
        ("deadline=soon", "option deadline: expected `float`"),
        ("deadline=-1", "option deadline: expected `float` > 0"),
        ("tls=perhaps", "option tls: expected `bool`"),
        ("acks=1&acks=all", "option acks is given twice"),
    ],
)
def test_an_option_that_can_not_be_is_named(query: str, told: str) -> None:
    endpoint = Endpoint(f"kafka://u:pw@h?{query}", port=9092)
    with pytest.raises(ConfigurationError) as refused:
        endpoint.options(Options, partitions=8)
    assert told in str(refused.value)
    assert "pw" not in str(refused.value)


KINDS: tuple[type[msgspec.Struct], ...] = (
    KafkaOptions,
    NatsOptions,
    RabbitMqOptions,
    RedisOptions,
    SnsSqsOptions,
    EmbeddedOptions,
    ServerOptions,
    postgres.PostgresOptions,
    store.PostgresOptions,
    large.PostgresOptions,
    ClaimCheckOptions,
)
NUMBERS = [
    pytest.param(kind, field.name, id=f"{kind.__module__.removeprefix('oyez.')}-{field.name}")
    for kind in KINDS
    for field in msgspec.structs.fields(kind)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_a_number_that_can_not_be_is_refused_with_what_can(
    kind: type[msgspec.Struct], name: str
) -> None:
    for value in ("-1", "nan", "inf", "-inf", "1e300", str(10**18), "soon", ""):
        with pytest.raises(ConfigurationError) as refused:
            Endpoint(f"x://h:1?{name}={value}", port=1).options(kind)
        assert f"option {name}: expected a " in str(refused.value)
        assert f"found {value!r}" in str(refused.value)


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_a_default_can_also_be_given(kind: type[msgspec.Struct], name: str) -> None:
    default = getattr(kind(), name)
    found = Endpoint(f"x://h:1?{name}={default}", port=1).options(kind)
    assert getattr(found, name) == default


@pytest.mark.parametrize(
    ("kind", "option", "told"),
    [
        (KafkaOptions, "deadline=0", "a number of seconds from 0.001 to 600, found '0'"),
        (KafkaOptions, "linger=901", "a number of seconds from 0 to 900, found '901'"),
        (KafkaOptions, "batch=0", "a whole number from 1 to 1000000, found '0'"),
        (KafkaOptions, "partitions=4097", "a whole number from 1 to 4096, found '4097'"),
        (NatsOptions, "replicas=0", "a whole number from 1 to 5, found '0'"),
        (RedisOptions, "block=0.0001", "a number of seconds from 0.001 to 86400"),
        (RabbitMqOptions, "max_bytes=0", "a whole number of bytes from 1 to 536870912"),
        (SnsSqsOptions, "retention=0", "a number of seconds above 0, at most 3153600000"),
        (store.PostgresOptions, "connections=1", "a whole number from 2 to 1000000, found '1'"),
    ],
)
def test_bounds_are_told_with_their_unit(
    kind: type[msgspec.Struct], option: str, told: str
) -> None:
    name = option.partition("=")[0]
    with pytest.raises(ConfigurationError) as refused:
        Endpoint(f"x://h:1?{option}", port=1).options(kind)
    assert f"option {name}: expected {told}" in str(refused.value)


def test_zero_leaves_it_to_the_adapter_where_that_means_something() -> None:
    query = "linger=0&replication_factor=0&min_insync_replicas=0"
    assert Endpoint(f"kafka://h?{query}", port=1).options(KafkaOptions) == KafkaOptions()
    assert Endpoint("amqp://h?replicas=0", port=1).options(RabbitMqOptions).replicas == 0


def test_what_the_system_gives_is_bounded_too() -> None:
    with pytest.raises(ConfigurationError, match="option partitions: expected a whole number"):
        Endpoint("kafka://h", port=1).options(KafkaOptions, partitions=0)


@pytest.mark.parametrize("hosts", ["", "h:0", "h:99999", "h h", "h,,g", "h:x"])
def test_a_host_that_can_not_be_is_named(hosts: str) -> None:
    with pytest.raises(ConfigurationError, match="expected HOST:PORT"):
        Endpoint(f"kafka://{hosts}/x", port=9092)


def test_certificates_that_can_not_be_read_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.pem"):
        Tls(cafile="nowhere.pem").context()
