"""A collector for a test: it receives spans by OTLP over HTTP, as protobuf, and keeps them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Received:
    """One span, ids in hexadecimal; ``parent`` is empty for a root."""

    service: str
    namespace: str
    name: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, object]
    error: str
    seconds: float


class Collector:
    """What has been received so far."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.bytes: list[bytes] = []
        """The requests, as they came."""
        self.url = ""

    def take(self, body: bytes) -> None:
        """Keep the spans of a request."""
        self.bytes.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for each in request.resource_spans:
            resource = {a.key: a.value.string_value for a in each.resource.attributes}
            for scope in each.scope_spans:
                for span in scope.spans:
                    attributes = {
                        a.key: getattr(a.value, str(a.value.WhichOneof("value")))
                        for a in span.attributes
                    }
                    self.spans.append(
                        Received(
                            resource["service.name"],
                            resource["service.namespace"],
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            attributes,
                            span.status.message,
                            (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                        )
                    )


def check_one_trace(spans: list[Received]) -> None:
    """Fail unless these spans are one tree: one trace, one root, every parent among them."""
    assert len({each.trace for each in spans}) == 1, {each.trace for each in spans}
    own = {each.span for each in spans}
    assert len(own) == len(spans)
    roots = [each for each in spans if not each.parent]
    assert len(roots) == 1, roots
    orphans = [each for each in spans if each.parent and each.parent not in own]
    assert orphans == []


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens on a free port."""
    collector, lock = Collector(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            known = self.path == "/v1/traces"
            if known:
                with lock:
                    collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if known else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
