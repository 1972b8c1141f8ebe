"""What AMQP has no question for: where a stream begins and ends, and what is in it by now.

A consumer is attached for a moment. The server hands out what is there in one go, so once the
first message has come, the answer to any later question on that channel comes behind the last one.
Only an empty stream says nothing: it is told by its message count, which lags by five seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pamqp import commands

from oyez.brokers.rabbitmq.amqp import Channel, Link
from oyez.brokers.rabbitmq.topology import Arguments
from oyez.brokers.rabbitmq.wire import offset_of

GLANCE = 0.25
"""Seconds after which a stream that counts no message and says nothing is taken for empty."""
PATIENCE = 6.0
"""The same where a message is known to have been there: longer than the count lags."""
CHUNK = 4_096
"""Messages that are asked for at once: more than what a server writes at once."""


class Glimpse:
    """What one look at a stream showed."""

    def __init__(self) -> None:
        self.first = -1
        """The offset of the first message seen; -1 for none."""
        self.last = -1
        self.count = 0
        self.bodies: list[tuple[int, bytes]] | None = None
        self.tag = 0


async def look(
    link: Link,
    places: Sequence[tuple[str, str | int]],
    *,
    prefetch: int = CHUNK,
    patience: float = GLANCE,
    keep: bool = False,
) -> list[Glimpse]:
    """Look at each queue from an offset on: ``first``, ``last`` or a number.

    With ``keep`` everything up to the end is read, and the bodies are kept. Raises AmqpError.
    """
    glimpses = [Glimpse() for _ in places]
    changed = asyncio.Event()

    def see(consumer: bytes, tag: int, properties: bytes, body: bytes) -> None:
        glimpse = glimpses[int(consumer)]
        offset = offset_of(properties)
        if offset is None:
            offset = -1
        if not glimpse.count:
            glimpse.first = offset
            changed.set()
        glimpse.count += 1
        glimpse.last = offset
        glimpse.tag = tag
        if glimpse.bodies is not None:
            glimpse.bodies.append((offset, body))

    channel = await link.channel()
    try:
        channel.on_delivery = see
        channel.on_end = lambda _: changed.set()
        answers = [channel.asked(commands.Basic.Qos(prefetch_count=prefetch))]
        for number, (queue, offset) in enumerate(places):
            if keep:
                glimpses[number].bodies = []
            arguments: Arguments = {"x-stream-offset": offset}
            answers.append(
                channel.asked(
                    commands.Basic.Consume(
                        queue=queue, consumer_tag=str(number), arguments=arguments
                    )
                )
            )
        for answer in answers:
            await answer
        await _first(channel, places, glimpses, changed, patience)
        while True:
            before = [glimpse.count for glimpse in glimpses]
            await channel.ask(commands.Basic.Qos(prefetch_count=prefetch))
            if not keep or before == [glimpse.count for glimpse in glimpses]:
                return glimpses
            for glimpse in glimpses:
                channel.tell(commands.Basic.Ack(glimpse.tag, multiple=True))
    finally:
        channel.discard()


async def ends(link: Link, known: Sequence[tuple[str, int]]) -> list[int]:
    """Of each queue how many messages it has had, given how many it is known to have had.

    Where nothing was added since, one message is transferred. Raises AmqpError.
    """
    found: dict[int, int] = {}
    old = [index for index, (_, count) in enumerate(known) if count]
    if old:
        # The last message known and, if there is any, the one behind it.
        places = [(known[index][0], known[index][1] - 1) for index in old]
        for index, glimpse in zip(old, await look(link, places, prefetch=2), strict=True):
            count = known[index][1]
            if glimpse.count == 1 and glimpse.first == count - 1:
                found[index] = count
    for patience in (GLANCE, PATIENCE):
        rest = [
            index
            for index, (_, count) in enumerate(known)
            if index not in found and (count > 0) == (patience == PATIENCE)
        ]
        if rest:
            glimpses = await look(
                link, [(known[index][0], "last") for index in rest], patience=patience
            )
            found |= {i: glimpse.last + 1 for i, glimpse in zip(rest, glimpses, strict=True)}
    return [found[index] for index in range(len(known))]


async def starts(link: Link, queues: Sequence[str], ends: Sequence[int]) -> list[int]:
    """Of each queue how many of its first messages are gone. Raises AmqpError."""
    filled = [index for index, end in enumerate(ends) if end]
    found = list(ends)
    if filled:
        glimpses = await look(
            link, [(queues[i], "first") for i in filled], prefetch=1, patience=PATIENCE
        )
        for index, glimpse in zip(filled, glimpses, strict=True):
            found[index] = max(glimpse.first, 0)
    return found


async def _first(
    channel: Channel,
    places: Sequence[tuple[str, str | int]],
    glimpses: Sequence[Glimpse],
    changed: asyncio.Event,
    patience: float,
) -> None:
    """Wait until each queue has shown a message, or is known to have none."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + patience
    while True:
        silent = [i for i, glimpse in enumerate(glimpses) if not glimpse.count]
        if not silent:
            return
        try:
            async with asyncio.timeout(0.05):
                await changed.wait()
            changed.clear()
            if channel.ended is not None:
                raise channel.ended
        except TimeoutError:
            if loop.time() < give_up:
                continue
            # An offset beyond the end is not in a stream, however many messages that has.
            asked = [
                channel.asked(commands.Queue.Declare(queue=queue, passive=True))
                for queue, offset in (places[i] for i in silent)
                if isinstance(offset, str)
            ]
            if not any([getattr(await answer, "message_count", 0) for answer in asked]):
                return
