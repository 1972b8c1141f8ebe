"""One call of a handler, from a decoded event to the events it returned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from types import CoroutineType
from typing import Any, TypeAlias, cast

from oyez.ambient import Ambient
from oyez.envelope import Envelope
from oyez.errors import HandlerTimeout
from oyez.event import is_event
from oyez.handler import Handler
from oyez.parameters import Context
from oyez.runtime.handlers import Handlers
from oyez.runtime.loop import was_asked_to_end
from oyez.runtime.reports import Reports
from oyez.runtime.retry import describe_error, failure_of
from oyez.signals import HandlerCalled
from oyez.spans import Span, Tracer, here
from oyez.transaction import Transaction

THREADS = 32
"""The limit of plain ``def`` handlers that run concurrently."""
SLICE = 1.0
"""Seconds after which a thread that runs many handlers returns to the event loop in between."""

Ready = Callable[[], Any]
"""A handler's call with all its arguments."""
Later: TypeAlias = "CoroutineType[Any, Any, Sequence[object]]"
"""The rest of a call that waits for something."""


class Call:
    """What is to be known of one call of a handler: for listeners to calls, and as a span."""

    __slots__ = (
        "_ambient",
        "_began",
        "_envelopes",
        "_partition",
        "_span",
        "_stream",
        "_tracer",
        "attempt",
        "ended",
        "error",
        "handler",
        "start",
        "tx",
    )

    def __init__(
        self,
        ambient: Ambient,
        handler: Handler,
        envelopes: Sequence[Envelope],
        tx: Transaction,
        stream: str,
        partition: int,
        *,
        attempt: int = 1,
        tracer: Tracer | None = None,
    ) -> None:
        """``envelopes`` are more than one for a list only. It is a span where there is a tracer."""
        self._ambient = ambient
        self.handler = handler
        self._envelopes = envelopes
        self.tx = tx
        self._stream = stream
        self._partition = partition
        self.attempt = attempt
        self._tracer = tracer
        self._span: Span | None = None
        self.error: BaseException | None = None
        """What the handler raised."""
        self.start = self._began = 0.0
        self.ended = 0.0
        """When it returned or raised, on the monotonic clock."""

    def begin(self) -> None:
        """Start the measurement, and the span."""
        self.start = self._ambient.now()
        self._began = self.ended = self._ambient.monotonic()
        if self._tracer is not None:
            self._span = self._tracer.process(
                self.handler.name,
                self._envelopes,
                self._stream,
                self._partition,
                self.attempt,
                self.start,
            )
            self.tx.record(self._span)

    def end(self, error: BaseException | None = None) -> None:
        """End the measurement; ``error`` is what the handler raised."""
        self.ended = self._ambient.monotonic()
        self.error = error

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, kind: object, error: BaseException | None, stack: object) -> None:
        self.end(error)

    def around(self, ready: Ready, took: list[float] | None) -> Ready:
        """Return the call so wrapped that it starts and ends the measurement itself.

        When it returns, its duration is added to ``took``, if that is given.
        """

        def measured() -> Any:
            with self:
                answer = ready()
            if took is not None:
                took.append(self.ended - self._began)
            return answer

        return measured

    def tell(self, reports: Reports, outcome: str, error: BaseException | None = None) -> None:
        """Tell of the call after its outcome: ``done``, ``retry``, ``dead`` or ``repeated``.

        ``repeated``: it was rolled back, since another one of its batch failed, or it itself, and
        is made again. That is told as a span alone.
        """
        span, self._span = self._span, None
        if span is not None:
            error = error or self.error
            span.end(
                self.start + self.ended - self._began,
                None if error is None else failure_of(error),
                {"oyez.outcome": outcome},
            )
        if reports.calls and outcome != "repeated":
            reports.emit_call(self._signal(outcome, "" if error is None else describe_error(error)))

    def _signal(self, outcome: str, error: str) -> HandlerCalled:
        envelope, own = self._envelopes[0], self.tx.traceparent
        return HandlerCalled(
            service=self.handler.service,
            handler=self.handler.name,
            event_id=envelope.id,
            type=envelope.type,
            events=len(self._envelopes),
            attempt=self.attempt,
            start=self.start,
            seconds=self.ended - self._began,
            outcome=outcome,
            error=error,
            trace_id=own[3:35],
            span_id=own[36:52],
            parent_id=self.tx.parent[36:52],
        )


class Told:
    """The calls of one unit of work that are told of: all for listeners, else the recorded ones."""

    __slots__ = ("_ambient", "_calls", "_reports", "_tracer", "wants")

    def __init__(self, ambient: Ambient, reports: Reports, tracer: Tracer | None) -> None:
        self._ambient = ambient
        self._reports = reports
        self._tracer = tracer
        self._calls: list[Call] = []
        self.wants: Callable[[str | None], bool] = _wanted
        """Whether a call with an event of this traceparent is told of; see `Tracer.wants`."""
        if tracer is not None and not reports.calls:
            self.wants = tracer.wants

    def call(
        self,
        handler: Handler,
        envelopes: Sequence[Envelope],
        tx: Transaction,
        stream: str,
        partition: int,
        attempt: int = 1,
    ) -> Call:
        """Return a call that is about to begin and is told of."""
        tracer = self._tracer
        if tracer is not None and not any(tracer.wants(each.traceparent) for each in envelopes):
            tracer = None
        call = Call(
            self._ambient,
            handler,
            envelopes,
            tx,
            stream,
            partition,
            attempt=attempt,
            tracer=tracer,
        )
        self._calls.append(call)
        return call

    def tell(self, outcome: str, error: BaseException | None = None) -> None:
        """Tell of all of them, once; see `Call.tell`."""
        calls, self._calls = self._calls, []
        for call in calls:
            call.tell(self._reports, outcome, error)


def _wanted(_: str | None) -> bool:
    return True


class Calls:
    """The caller of a service's handlers: on the event loop, or on a thread for a plain ``def``."""

    def __init__(self, handlers: Handlers, ambient: Ambient, threads: Executor) -> None:
        self.current: Handler | None = None
        """The handler whose code is running on the event loop."""
        self._handlers = handlers
        self._ambient = ambient
        self._threads = threads

    def ready(
        self, handler: Handler, event: object, tx: Transaction, context: Context | None
    ) -> Ready:
        """Return the call of a handler with all its arguments, for `perform_blocking`."""
        call = self._handlers.call(handler)

        def ready() -> Any:
            here.set(tx)  # in the copy of a context, which ends with the thread's work
            return call(event, tx, context)

        return ready

    async def perform(
        self,
        handler: Handler,
        event: object,
        tx: Transaction,
        context: Context | None,
    ) -> Sequence[object]:
        """Call an ``async def`` or a ``def`` handler; return the events it returned or yielded.

        Raises HandlerTimeout, TypeError for another return value, and what the handler raises.
        """
        if handler.blocking:
            ready = self.ready(handler, event, tx, context)
            return (await self.perform_blocking([(handler, ready)]))[0]
        answer = self.begin(handler, event, tx, context)
        return await answer if isinstance(answer, CoroutineType) else answer

    def begin(
        self, handler: Handler, event: object, tx: Transaction, context: Context | None
    ) -> Sequence[object] | Later:
        """Call an ``async def`` handler; return its events, or their awaitable if it waits.

        Most handlers only queue writes and never wait: they end here, and no timer is set. Raises
        as `perform` does, and so does the awaitable.
        """
        coroutine = self._handlers.call(handler)(event, tx, context)
        if handler.generator:
            coroutine = _collect(coroutine)
        self.current = handler
        outside = here.set(tx)
        try:
            first = coroutine.send(None)
        except StopIteration as stop:
            return events_in(handler, stop.value)
        except asyncio.CancelledError as error:
            raise _stray(error, handler) from error.__cause__
        finally:
            self.current = None
            here.reset(outside)
        return cast(Later, self._finish(handler, coroutine, first, tx))

    async def _finish(
        self,
        handler: Handler,
        coroutine: Coroutine[Any, Any, Any],
        first: object,
        tx: Transaction,
    ) -> Sequence[object]:
        patience = self._ambient.timeout(handler.timeout)
        outside = here.set(tx)
        try:
            async with patience:
                answer = await Begun(coroutine, first, partial(self._mark, handler))
                return events_in(handler, answer)
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise HandlerTimeout(
                f"{handler.service}.{handler.name} did not end within {handler.timeout} s"
            ) from error
        except asyncio.CancelledError as error:
            raise _stray(error, handler) from error.__cause__
        finally:
            here.reset(outside)

    def _mark(self, handler: Handler, runs: bool) -> None:
        self.current = handler if runs else None

    async def perform_blocking(
        self, calls: Sequence[tuple[Handler, Ready]]
    ) -> list[Sequence[object]]:
        """Call ``def`` handlers one after the other on a thread, with few switches of threads.

        Raises as `perform` does.
        """
        results: list[Sequence[object]] = []
        loop = asyncio.get_running_loop()
        while len(results) < len(calls):
            handler = calls[len(results)][0]
            work = partial(_run_slice, self._ambient, calls[len(results) :])
            answer = loop.run_in_executor(self._threads, copy_context().run, work)
            patience = self._ambient.timeout(
                None if handler.timeout is None else handler.timeout + SLICE
            )
            try:
                async with patience:
                    results.extend(await answer)
            except TimeoutError as error:
                if not patience.expired():
                    raise
                raise HandlerTimeout(
                    f"{handler.service}.{handler.name} did not return within {handler.timeout} s; "
                    "its thread can't be stopped"
                ) from error
            except asyncio.CancelledError as error:
                raise _stray(error, handler) from error.__cause__
        return results


def events_in(handler: Handler, answer: object) -> Sequence[object]:
    """Return the return value of a handler as a sequence of events."""
    if answer is None:
        return ()
    if is_event(type(answer)):
        return (answer,)
    if isinstance(answer, Iterable) and not isinstance(answer, str | bytes | dict):
        found = [item for item in answer if item is not None]
        if all(is_event(type(item)) for item in found):
            return found
    raise TypeError(
        f"{handler.service}.{handler.name} returned {type(answer).__name__}: expected an event, "
        "several events or None"
    )


def clocked(ready: Ready, clock: Callable[[], float], took: list[float]) -> Ready:
    """Return the call so wrapped that it adds its duration to ``took`` when it returns."""

    def call() -> Any:
        began = clock()
        answer = ready()
        took.append(clock() - began)
        return answer

    return call


def _run_slice(ambient: Ambient, calls: Sequence[tuple[Handler, Ready]]) -> list[Sequence[object]]:
    end = ambient.monotonic() + SLICE
    results: list[Sequence[object]] = []
    for handler, ready in calls:
        results.append(events_in(handler, ready()))
        if ambient.monotonic() >= end:
            break
    return results


async def _collect(generator: Any) -> list[object]:
    return [item async for item in generator]


def _stray(error: asyncio.CancelledError, handler: Handler) -> BaseException:
    """The error itself, or what stands for it where nobody cancelled the handler.

    A handler that awaits something cancelled elsewhere has failed; taken for a cancellation of its
    task, the error would end the lane for good.
    """
    if was_asked_to_end():
        return error
    return RuntimeError(
        f"{handler.service}.{handler.name} waited for something that was cancelled: "
        "catch asyncio.CancelledError there if that is expected"
    )


class Begun:
    """An awaitable of a started coroutine and the future it first waited for."""

    __slots__ = ("_coroutine", "_first", "_mark")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        first: object,
        mark: Callable[[bool], None] = lambda runs: None,
    ) -> None:
        """``mark`` is called with True before, and with False after, each step of its code."""
        self._coroutine = coroutine
        self._first = first
        self._mark = mark

    def __await__(self) -> Generator[object, Any, object]:
        waiting = self._first
        while True:
            try:
                sent = yield waiting
            except BaseException as error:  # noqa: BLE001 - passed on to the coroutine
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, sent)
            self._mark(True)
            try:
                waiting = step()
            except StopIteration as stop:
                return stop.value
            finally:
                self._mark(False)
