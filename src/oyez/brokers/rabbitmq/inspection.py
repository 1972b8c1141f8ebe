"""What is wrong with how a RabbitMQ server is set up: asked over AMQP and, where given, over HTTP.

AMQP tells of a queue's arguments only by refusing others. Alarms, policies and the servers of a
cluster are known to the management plugin alone.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from oyez.brokers.rabbitmq.amqp import ACCESS_REFUSED, AmqpError, Link
from oyez.brokers.rabbitmq.topology import Arguments, alike, declare
from oyez.endpoint import Endpoint
from oyez.errors import BrokerRefused
from oyez.ports import Finding

_SECONDS = {"Y": 31_536_000, "M": 2_592_000, "D": 86_400, "h": 3_600, "m": 60, "s": 1}
_AGE = re.compile(r"(\d+)([YMDhms])")
_DIFFERENCE = re.compile(r"inequivalent arg '([\w-]+)'.*(?:current is )(.*)")
_DROPS = ("x-max-length-bytes", "x-max-length", "x-expires", "x-message-ttl", "x-delivery-limit")
"""Arguments that delete messages."""
_AT_ONCE = 64
"""Queues that are compared in one go; where one differs, these are compared one by one."""
_PLAN = msgspec.json.Decoder(list[dict[str, Any]]).decode


async def inspect_queues(
    link: Link, expected: Mapping[str, Arguments], endpoint: Endpoint
) -> Sequence[Finding]:
    """Compare every queue with what it should be; one that is missing is made. Raises AmqpError."""
    findings: list[Finding] = []
    names = iter(expected)
    try:
        while some := list(islice(names, _AT_ONCE)):
            if not await alike(link, {queue: expected[queue] for queue in some}):
                for queue in some:
                    findings += await _differences(link, queue, expected[queue])
    except AmqpError as error:
        if error.code != ACCESS_REFUSED:
            raise
        user, vhost = endpoint.user or "guest", endpoint.path or "/"
        remedy = f"rabbitmqctl set_permissions -p '{vhost}' '{user}' '.*' '.*' '.*'"
        return [Finding(grave=True, what=f"user {user}: {error}", remedy=remedy)]
    return findings


async def inspect_server(
    management: str, endpoint: Endpoint, expected: Mapping[str, Arguments], replicas: int
) -> Sequence[Finding]:
    """What the management plugin knows besides."""
    vhost = endpoint.path or "/"
    try:
        nodes = await asyncio.to_thread(_get, management, "/api/nodes", endpoint)
        policies = await asyncio.to_thread(
            _get, management, f"/api/policies/{quote(vhost, safe='')}", endpoint
        )
    except (OSError, http.client.HTTPException, msgspec.MsgspecError, ValueError) as error:
        return [
            Finding(
                grave=False,
                what=f"the management plugin at {urlsplit(management).netloc} can't be asked: "
                f"{error or type(error).__name__}",
                remedy="rabbitmq-plugins enable rabbitmq_management, and give the user its tag: "
                f"rabbitmqctl set_user_tags '{endpoint.user or 'guest'}' monitoring",
            )
        ]
    return [*_alarms(nodes), *_cluster(nodes, replicas), *_policies(policies, vhost, expected)]


async def _differences(link: Link, queue: str, arguments: Arguments) -> Sequence[Finding]:
    try:
        text = await declare(link, queue, arguments)
    except BrokerRefused as error:
        what, _, remedy = str(error).partition(": move ")
        return [Finding(grave=True, what=what, remedy=f"move {remedy}")]
    found = _DIFFERENCE.search(text)
    return [] if found is None else list(_compare(queue, found[1], found[2], arguments))


def _compare(queue: str, name: str, current: str, arguments: Arguments) -> Iterator[Finding]:
    wanted = arguments.get(name)
    age = _AGE.search(current)
    if name == "x-max-age" and age is not None:
        kept = int(age[1]) * _SECONDS[age[2]]
        if f"{kept}s" != wanted and kept < int(str(wanted)[:-1]):
            yield Finding(
                grave=True,
                what=f"queue {queue} keeps records for {age[0]}, shorter than the {wanted} wanted",
                remedy=f"rabbitmqctl set_policy oyez-retention '^{re.escape(queue)}$' "
                f'\'{{"max-age":"{wanted}"}}\' --apply-to streams',
            )
    elif name in _DROPS and "none" not in current:
        yield Finding(
            grave=True,
            what=f"queue {queue} has {name} {current}, by which it drops records unread",
            remedy=f"read it to its end and delete it: rabbitmqctl delete_queue '{queue}'",
        )
    elif name == "x-max-age":
        yield Finding(
            grave=False,
            what=f"queue {queue} has no x-max-age: it grows for ever",
            remedy=f"rabbitmqctl set_policy oyez-retention '^{re.escape(queue)}$' "
            f'\'{{"max-age":"{wanted}"}}\' --apply-to streams',
        )


def _alarms(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for node in nodes:
        for field, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
            if node.get(field):
                yield Finding(
                    grave=False,
                    what=f"{node.get('name')} is short of {what}: nobody can publish",
                    remedy=f"free {what} there; rabbitmq-diagnostics alarms tells more",
                )
        if node.get("running") is False:
            yield Finding(
                grave=False,
                what=f"{node.get('name')} does not run",
                remedy="start it: with most servers of a cluster down nothing is confirmed",
            )


def _cluster(nodes: Sequence[Mapping[str, Any]], replicas: int) -> Iterator[Finding]:
    if replicas > len(nodes):
        yield Finding(
            grave=True,
            what=f"{replicas} replicas are wanted and the cluster has {len(nodes)} servers",
            remedy=f"add servers (rabbitmqctl join_cluster), or set replicas={len(nodes)}",
        )


def _policies(
    policies: Sequence[Mapping[str, Any]], vhost: str, expected: Mapping[str, Arguments]
) -> Iterator[Finding]:
    for policy in policies:
        queues = _matching(str(policy.get("pattern", "")), expected)
        definition = policy.get("definition")
        if not queues or not isinstance(definition, dict):
            continue
        for key, value in definition.items():
            wanted = expected[queues[0]].get(f"x-{key}")
            grave = key in {name[2:] for name in _DROPS} and wanted is None
            age = _AGE.fullmatch(str(value)) if key == "max-age" else None
            if age is not None and isinstance(wanted, str):
                grave = int(age[1]) * _SECONDS[age[2]] < int(wanted[:-1])
            if grave or key.startswith("ha-"):
                yield Finding(
                    grave=grave,
                    what=f"policy {policy.get('name')} gives {queues[0]} {key} {value}"
                    + (", by which it drops records unread" if grave else ", which has no effect"),
                    remedy=f"rabbitmqctl clear_policy -p '{vhost}' '{policy.get('name')}'",
                )


def _matching(pattern: str, names: Mapping[str, Arguments]) -> list[str]:
    try:
        found = re.compile(pattern)
    except re.error:
        return []
    return [name for name in names if found.search(name)]


def _get(management: str, path: str, endpoint: Endpoint) -> list[dict[str, Any]]:
    parts = urlsplit(management)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    user, password = endpoint.user or "guest", endpoint.password or "guest"
    proof = base64.b64encode(f"{user}:{password}".encode()).decode()
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=3.0)
    try:
        connection.request("GET", path, headers={"Authorization": f"Basic {proof}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status} {answer.reason}")
        return _PLAN(answer.read())
    finally:
        connection.close()
