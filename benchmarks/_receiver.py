"""An OTLP receiver on loopback, over gRPC and HTTP, for a real exporter."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass
class Received:
    """What arrived so far.

    Attributes:
        endpoint: Where to send it.
        traces: The requests for traces, as they came.
        metrics: The requests for metrics.
        headers: The headers, or gRPC metadata, of the last request; lower-case names.
        path: The path of the last request over HTTP.
    """

    endpoint: str
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    path: str = ""

    def spans(self) -> list[dict[str, Any]]:
        """Every span, flat, in the order of arrival."""
        return [
            _span(span, scope.scope.name, resource)
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def _value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _span(span: Any, scope: str, resource: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "scope": scope,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "error": span.status.code == span.status.STATUS_CODE_ERROR,
        "attributes": _attributes(span.attributes),
        "events": [event.name for event in span.events],
        "links": {
            _attributes(link.attributes)["tinker_recovery.link"]: link.span_id.hex()
            for link in span.links
        },
        "resource": _attributes(resource.resource.attributes),
    }


class _Traces(TraceServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's own name
        self._received.headers = dict(context.invocation_metadata())
        self._received.traces.append(request)
        return ExportTraceServiceResponse()


class _Metrics(MetricsServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's own name
        self._received.headers = dict(context.invocation_metadata())
        self._received.metrics.append(request)
        return ExportMetricsServiceResponse()


@contextmanager
def grpc_receiver() -> Iterator[Received]:
    """Listens for OTLP over gRPC."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    port = server.add_insecure_port("127.0.0.1:0")
    received = Received(f"http://127.0.0.1:{port}")
    add_TraceServiceServicer_to_server(_Traces(received), server)  # type: ignore[no-untyped-call]  # generated
    add_MetricsServiceServicer_to_server(_Metrics(received), server)  # type: ignore[no-untyped-call]  # generated
    server.start()
    try:
        yield received
    finally:
        server.stop(0).wait()


def _handler(received: Received) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.headers = {name.lower(): value for name, value in self.headers.items()}
            received.path = self.path
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                received.traces.append(ExportTraceServiceRequest.FromString(body))
            elif self.path == "/v1/metrics":
                received.metrics.append(ExportMetricsServiceRequest.FromString(body))
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler


@contextmanager
def http_receiver() -> Iterator[Received]:
    """Listens for OTLP over HTTP."""
    received = Received("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(received))
    received.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


RECEIVERS: dict[str, Callable[[], Any]] = {"grpc": grpc_receiver, "http/protobuf": http_receiver}
