"""What a stream is made of on the server: an exchange, and a queue a partition bound to it.

``STREAM.P`` is the queue of partition P (``STREAM.P@GROUP`` where each consumer group has its own),
bound to the direct exchange ``STREAM`` under the routing key P.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pamqp import commands
from pamqp.base import Frame

from oyez.brokers.rabbitmq.amqp import NOT_FOUND, PRECONDITION_FAILED, AmqpError, Link
from oyez.errors import BrokerRefused

Arguments = dict[str, Any]
SETTLING = 1.0
"""Seconds before what was just made is used: a quorum queue, or the first stream of a server.

RabbitMQ writes down which files belong to such a group of servers up to half a second later. Killed
before, it comes back with a quorum queue that is empty and never finds a leader, or with a
coordinator that knows no stream: what was confirmed is lost (measured on 3.10.8; 4.x reads alike).
"""
LONGEST = 200
"""Bytes of a stream's name, at most; AMQP has 255 for the name of a queue."""


def queue_name(stream: str, partition: int, group: str = "") -> str:
    """The queue of a partition, or of a group's share in it."""
    return f"{stream}.{partition}@{group}" if group else f"{stream}.{partition}"


def check_name(stream: str) -> None:
    """Raise BrokerRefused for a name that RabbitMQ has no room for."""
    if not 0 < len(stream.encode()) <= LONGEST or stream.startswith("amq."):
        raise BrokerRefused(
            f"stream {stream[:40]!r}: expected 1 to {LONGEST} bytes that do not begin with amq."
        )


async def declare(link: Link, queue: str, arguments: Arguments) -> str:
    """Make a queue unless it is there; how an existing one differs, empty when it does not.

    Raises BrokerRefused when it is of another type, AmqpError.
    """
    channel = await link.channel()
    try:
        await channel.ask(_queue(queue, arguments))
    except AmqpError as error:
        text = str(error)
        if error.code != PRECONDITION_FAILED or "inequivalent" not in text:
            raise
        if "x-queue-type" in text or "'durable'" in text or "'auto_delete'" in text:
            kind = arguments["x-queue-type"]
            raise BrokerRefused(
                f"queue {queue} exists but is not a durable {kind} queue ({text}): move what it "
                f"holds elsewhere and delete it: rabbitmqctl delete_queue '{queue}'"
            ) from error
        return text
    finally:
        channel.discard()
    return ""


async def alike(link: Link, queues: Mapping[str, Arguments]) -> bool:
    """Make the queues that are missing; false if one of them differs, and nobody knows which.

    Raises AmqpError for what is not about their arguments.
    """
    try:
        await _ask_all(link, [_queue(queue, arguments) for queue, arguments in queues.items()])
    except AmqpError as error:
        if error.code != PRECONDITION_FAILED:
            raise
        return False
    return True


async def make(
    link: Link, stream: str, queues: Sequence[tuple[int, str]], arguments: Arguments
) -> None:
    """Make the exchange and bind each partition's queue to it; what is there is left as it is.

    Raises BrokerRefused when a queue or the exchange is of another type, AmqpError.
    """
    try:
        await _ask_all(link, _everything(stream, queues, arguments))
        return
    except AmqpError as error:
        if error.code != PRECONDITION_FAILED:
            raise
        if "exchange" in str(error):
            raise BrokerRefused(
                f"exchange {stream} exists but is not a durable direct exchange ({error}): "
                "use another name for the stream, or delete the exchange"
            ) from error
    # Something differs: one by one, since each refusal ends the channel.
    for _, queue in queues:
        await declare(link, queue, arguments)
    await _ask_all(link, _everything(stream, queues, None))


async def count(link: Link, stream: str) -> int:
    """How many partitions have a queue already, from 0 on. Raises AmqpError."""
    found = 0
    channel = await link.channel()
    try:
        while True:
            await channel.ask(commands.Queue.Declare(queue=queue_name(stream, found), passive=True))
            found += 1
    except AmqpError as error:
        if error.code != NOT_FOUND or error.starting:
            raise
        return found
    finally:
        channel.discard()


async def message_counts(link: Link, queues: Sequence[str]) -> list[int]:
    """How many messages wait in each queue. Raises AmqpError."""
    channel = await link.channel()
    try:
        asked = [channel.asked(commands.Queue.Declare(queue=q, passive=True)) for q in queues]
        return [getattr(await answer, "message_count", 0) or 0 for answer in asked]
    finally:
        channel.discard()


def _everything(
    stream: str, queues: Sequence[tuple[int, str]], arguments: Arguments | None
) -> list[Frame]:
    methods: list[Frame] = [
        commands.Exchange.Declare(exchange=stream, exchange_type="direct", durable=True)
    ]
    for partition, queue in queues:
        if arguments is not None:
            methods.append(_queue(queue, arguments))
        methods.append(
            commands.Queue.Bind(queue=queue, exchange=stream, routing_key=str(partition))
        )
    return methods


def _queue(queue: str, arguments: Arguments) -> Frame:
    return commands.Queue.Declare(queue=queue, durable=True, arguments=arguments)


async def _ask_all(link: Link, methods: Sequence[Frame]) -> None:
    channel = await link.channel()
    try:
        answers = [channel.asked(method) for method in methods]
        for answer in answers:
            await answer
    finally:
        channel.discard()
