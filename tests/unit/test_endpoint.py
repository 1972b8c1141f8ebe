"""One URL for every server: read strictly, told without its secrets."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from oyez.endpoint import Endpoint, Tls
from oyez.errors import ConfigurationError


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


@pytest.mark.parametrize("hosts", ["", "h:0", "h:99999", "h h", "h,,g", "h:x"])
def test_a_host_that_can_not_be_is_named(hosts: str) -> None:
    with pytest.raises(ConfigurationError, match="expected HOST:PORT"):
        Endpoint(f"kafka://{hosts}/x", port=9092)


def test_certificates_that_can_not_be_read_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.pem"):
        Tls(cafile="nowhere.pem").context()
