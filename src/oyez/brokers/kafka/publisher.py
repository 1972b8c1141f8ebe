"""One idempotent producer: what it is given arrives in order, or nothing behind it does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from oyez.brokers.kafka.options import KafkaOptions
from oyez.brokers.kafka.wire import Outgoing

BATCH_BYTES = 1_000_000
"""The largest message set that is sent, below what Kafka takes by default."""

_GLANCE = 0.1  # seconds of one poll; a report ends it at once
_LINGERS = 10  # polls without a message under way before the thread sleeps; waking costs latency


class Publisher:
    """A producer and the thread that hears what became of its messages.

    Messages never time out in it: whoever gives up on one discards the publisher with all that it
    holds. So a message that was given up is not followed by one that was behind it, and what its
    caller sends again, through the next publisher, keeps its order.
    """

    def __init__(
        self, settings: dict[str, Any], options: KafkaOptions, batch_bytes: int = BATCH_BYTES
    ) -> None:
        """Raises KafkaException for settings that can't work."""
        self.batch_bytes = batch_bytes
        self.discarded = False
        self.trouble: KafkaError | None = None
        """What the producer last complained of."""
        self._loop = asyncio.get_running_loop()
        self._work = threading.Event()
        self._ended = self._loop.create_future()
        producer = Producer(_settings(settings, options, batch_bytes) | {"error_cb": self._hear})
        self._producer = producer
        self._thread = threading.Thread(
            target=self._run, args=(producer,), name="kafka publisher", daemon=True
        )
        self._thread.start()

    def send(self, messages: Sequence[Outgoing]) -> asyncio.Future[KafkaError | None]:
        """Send, in order; the first error, or None once all are as durable as was asked for.

        Raises KafkaException when nothing more can be sent, not even all of these.
        """
        window = _Window(self._loop, len(messages))
        produce, report = self._producer.produce, window.report
        try:
            for topic, value, key, partition, headers in messages:
                produce(topic, value, key, partition, report, None, 0, headers)
        except BufferError as error:
            raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from error
        finally:
            self._work.set()
        return window.settled

    def discard(self) -> None:
        """Give up what is not confirmed yet, and send nothing more; does not wait."""
        self.discarded = True
        self._work.set()

    async def close(self) -> None:
        """Discard, and return when nothing of it runs any more."""
        self.discard()
        await asyncio.shield(self._ended)
        self._thread.join()

    def _run(self, producer: Producer) -> None:
        self._poll(producer)
        producer.purge()
        while self._serve(producer, 0) is None:
            pass
        del self._producer, producer
        _call(self._loop, _settle, self._ended, None)

    def _poll(self, producer: Producer) -> None:
        quiet = 0
        while not self.discarded:
            served = self._serve(producer, _GLANCE)
            if served is None:
                producer.purge()  # nothing will come of what it holds
            quiet = 0 if served is None or served or len(producer) else quiet + 1
            if quiet > _LINGERS:
                self._work.clear()
                if not len(producer) and not self.discarded:
                    self._work.wait()
                quiet = 0

    def _serve(self, producer: Producer, seconds: float) -> int | None:
        """Call what waits for reports; return how many there were, or None for a fatal error.

        The driver raises a fatal error, such as the purge of messages on their way, in the middle
        of the reports; those behind it are left for the next time.
        """
        try:
            return producer.poll(seconds)
        except KafkaException as error:
            self._hear(error.args[0])
            return None

    def _hear(self, error: KafkaError) -> None:
        self.trouble = error


class _Window:
    """Messages that were sent together."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.settled: asyncio.Future[KafkaError | None] = loop.create_future()
        self._loop = loop
        self._left = count
        self._error: KafkaError | None = None

    def report(self, error: KafkaError | None, _: Message) -> None:
        """On the publisher's thread: what became of one message."""
        if error is not None and self._error is None:
            self._error = error
        self._left -= 1
        if not self._left:
            _call(self._loop, _settle, self.settled, self._error)


def _settings(settings: dict[str, Any], options: KafkaOptions, batch_bytes: int) -> dict[str, Any]:
    durable = options.acks == "all"
    return settings | {
        "acks": options.acks,
        "enable.idempotence": durable,
        "enable.gapless.guarantee": durable,
        "max.in.flight.requests.per.connection": 5 if durable else 1,
        "message.timeout.ms": 0,
        "message.max.bytes": 1_000_000_000,
        "batch.size": batch_bytes,
        "queue.buffering.max.messages": 0,
        "queue.buffering.max.kbytes": 2_147_483_647,
        "compression.type": options.compression,
        "linger.ms": options.linger * 1000,
    }


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _call(loop: asyncio.AbstractEventLoop, *call: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(*call)
