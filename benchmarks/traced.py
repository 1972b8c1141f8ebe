"""What tracing costs `benchmarks.consume_job`: off, with one trace in a hundred recorded, with all.

The backlog's events are in traces of their own, as their publishers would have put them, and the
spans (a handler's call, an announcement and its publishing, for each event) go by OTLP to a
collector in another process, which reads and forgets them. What the exporter can't send as fast as
it comes is dropped, as OpenTelemetry's processor does; the notes say how much.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from benchmarks.comparison import Aim, Figures, Report, Way, interleave
from benchmarks.consume_job import by_oyez
from benchmarks.embedded_append import make_records
from benchmarks.machine import Surroundings
from benchmarks.servers import NotRunning
from oyez.ports import Record

_OFF, _SOME, _ALL = "off", "1 % recorded", "100 % recorded"
_SPANS = 3
"""Of each event."""
_SINK = """
import asyncio

async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\\r\\n")[0]
            await reader.readexactly(int(length))
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
    except asyncio.IncompleteReadError:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


async def run(here: Surroundings) -> Report:
    """The job with telemetry off, sampled and whole."""
    count = here.pick(2_000, 50_000)
    records = make_records(here, count)
    dropped: list[float] = []
    async with _collector() as url:
        jobs = {
            _OFF: partial(by_oyez, here, _in_traces(here, records, 100)),
            _SOME: partial(_recorded, here, _in_traces(here, records, 100), url, []),
            _ALL: partial(_recorded, here, _in_traces(here, records, 1), url, dropped),
        }
        ways = [Way(name, job) for name, job in jobs.items()]
        rows = await interleave("long backlog", ways, here.pick(2, 9))
    return Report(
        benchmark="traced",
        about="events a second of the job, with its traces recorded; 1 is what it costs off",
        rows=rows,
        notes=[
            f"a backlog of {count:,} events",
            f"with all recorded, {max(dropped):.0%} of the spans were dropped at most: the "
            "exporter's own limits (OTEL_BSP_*)",
        ],
        aims=[
            Aim(
                what="the job with one trace in a hundred recorded, beside none",
                case="long backlog",
                figure="events/s",
                way=_SOME,
                at_most=1.05,
            )
        ],
    )


def _in_traces(here: Surroundings, records: list[Record], every: int) -> list[Record]:
    """The records, each in a trace of its own, of which every so manieth is recorded."""
    bits = here.ambient.bits
    return [
        msgspec.structs.replace(
            record,
            headers={
                **record.headers,
                "traceparent": f"00-{bits(128):032x}-{bits(64):016x}-{number % every == 0:02x}",
            },
        )
        for number, record in enumerate(records)
    ]


async def _recorded(
    here: Surroundings, records: list[Record], url: str, dropped: list[float]
) -> Figures:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

    from oyez.observe.tracing import Tracing, provider_of

    exported = 0

    class Counting(OTLPSpanExporter):
        def export(self, spans: tuple[ReadableSpan, ...]) -> SpanExportResult:  # type: ignore[override]
            nonlocal exported
            exported += len(spans)
            return super().export(spans)

    provider = provider_of(here.ambient, system="bench", service="ledger")
    provider.add_span_processor(BatchSpanProcessor(Counting(endpoint=f"{url}/v1/traces")))
    tracer = Tracing(
        provider, here.ambient, system="bench", service="ledger", broker="embedded", inherits=True
    )
    figures = await by_oyez(here, records, tracer)
    await asyncio.to_thread(provider.shutdown)
    wanted = _SPANS * sum(record.headers["traceparent"].endswith("1") for record in records)
    dropped.append(1.0 - exported / wanted)
    return figures


@asynccontextmanager
async def _collector() -> AsyncIterator[str]:
    """A collector in a process of its own; gives its URL. Raises NotRunning without the extra."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError as error:
        raise NotRunning(f"{error}; pip install 'oyez[otel]'") from error
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SINK, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()
