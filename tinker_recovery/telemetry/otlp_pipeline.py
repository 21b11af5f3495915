"""Pipelines to a collector, on the OpenTelemetry SDK. Imported only when export is asked for.

The SDK's batch processor waits up to 30 s for its last export when it is shut down, and takes no
deadline for it (``BatchSpanProcessor.shutdown``, opentelemetry-sdk 1.45; issue 4555 of
opentelemetry-python). A thread cannot be started any more once Python exits. So each pipeline has
one from the beginning, parked, which does the waiting, while whoever asked waits with a deadline;
past it the exporter is shut down, which ends its retries.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from tinker_recovery.errors import UsageError
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.otlp_target import Target

logger = logging.getLogger(names.SCOPE)

_DEFAULT_SERVICE = "tinker-recovery"


class Parked:
    """A thread that does what is handed to it, in order, while others wait only so long."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], object], threading.Event] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            try:
                work()
            except Exception:
                logger.exception("the export to a collector failed")
            finally:
                done.set()

    def do(self, work: Callable[[], object], limit_s: float) -> bool:
        """Have it done; whether it was within the limit."""
        done = threading.Event()
        self._work.put((work, done))
        return done.wait(limit_s)

    def end(self, limit_s: float) -> None:
        """End the thread once it has nothing to do."""
        self._work.put(None)
        self._thread.join(limit_s)


class _Delivery(SpanExporter):
    """The exporter, with what it lost counted, and a shutdown that may come twice."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._closed = threading.Event()
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        if not self._closed.is_set():
            result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._exporter.shutdown()


_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_REQUESTS = "pyqwest"
"""Scope of the Tinker SDK's HTTP client. It makes a trace of each request, four a step, which costs
the step several per cent and buries every other trace in a list."""


class _NoLoneRequests(Sampler):
    """Samples as another, but for HTTP requests that belong to nothing."""

    def __init__(self, other: Sampler) -> None:
        self._other = other

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if kind is SpanKind.CLIENT and name in _METHODS:
            parent = trace.get_current_span(parent_context).get_span_context()
            if not parent.is_valid:
                return SamplingResult(Decision.DROP, None, trace_state)
        return self._other.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return f"NoLoneRequests{{{self._other.get_description()}}}"


class SpanPipeline(SpanProcessor):
    """Spans in batches to a collector: a bounded queue whose oldest is dropped, one thread."""

    def __init__(self, exporter: SpanExporter, *, requests: bool) -> None:
        self._requests = requests
        self._delivery = _Delivery(exporter)
        self._batches = BatchSpanProcessor(self._delivery)
        self._parked = Parked("tinker-recovery-spans")
        self._closed = False

    @property
    def lost(self) -> int:
        """Spans the collector did not take."""
        return self._delivery.lost

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is sent before a span has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it. Silent once closed: the provider may be the user's, and live on."""
        if not self._closed and (self._requests or not _is_lone_request(span)):
            self._batches.on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued; whether it was delivered in time."""
        before = self.lost
        in_time = self._closed or self._parked.do(self._batches.force_flush, timeout_millis / 1e3)
        return in_time and self.lost == before

    def close(self, limit_s: float) -> bool:
        """Send what is queued, and end; whether everything was delivered in time."""
        if self._closed:
            return True
        self._closed = True
        before = self._delivery.lost
        in_time = self._parked.do(self._batches.shutdown, limit_s)
        # Ends the exporter's retries, and with them the thread that is still at it.
        self._delivery.shutdown()
        self._parked.end(0.0 if not in_time else 1.0)
        return in_time and self._delivery.lost == before

    def shutdown(self) -> None:
        """By the provider; one of the user's own may be shut down before we are."""
        self.close(30.0)


def _is_lone_request(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return span.parent is None and scope is not None and scope.name == _REQUESTS


class _MetricDelivery(MetricExporter):
    """As :class:`_Delivery`, for metrics."""

    def __init__(self, exporter: MetricExporter) -> None:
        # What the reader asks an exporter for.
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)  # noqa: SLF001 - there is no other way to wrap one
        self._exporter = exporter
        self._closed = threading.Event()
        self.lost = 0

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        result = MetricExportResult.FAILURE
        if not self._closed.is_set():
            result = self._exporter.export(metrics_data, timeout_millis, **kwargs)
        if result is not MetricExportResult.SUCCESS:
            self.lost += 1
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        del kwargs
        if not self._closed.is_set():
            self._closed.set()
            self._exporter.shutdown(timeout_millis)


class MetricPipeline:
    """Metrics at an interval to a collector; nothing is queued, so nothing can pile up."""

    def __init__(
        self, exporter: MetricExporter, interval_s: float | None, resource: Resource
    ) -> None:
        self._delivery = _MetricDelivery(exporter)
        reader = PeriodicExportingMetricReader(
            self._delivery, export_interval_millis=None if interval_s is None else interval_s * 1e3
        )
        self.provider = MeterProvider(
            metric_readers=[reader], resource=resource, shutdown_on_exit=False
        )
        self._parked = Parked("tinker-recovery-metrics")
        self._closed = False

    @property
    def lost(self) -> int:
        """Collections the collector did not take."""
        return self._delivery.lost

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Collect and send now; whether that was delivered in time."""
        before = self.lost
        in_time = self._closed or self._parked.do(
            lambda: self.provider.force_flush(timeout_millis), timeout_millis / 1e3
        )
        return in_time and self.lost == before

    def close(self, limit_s: float) -> bool:
        """Collect and send once more, and end; whether that was delivered in time."""
        if self._closed:
            return True
        self._closed = True
        before = self._delivery.lost
        in_time = self._parked.do(self.provider.shutdown, limit_s)
        self._delivery.shutdown()
        self._parked.end(0.0 if not in_time else 1.0)
        return in_time and self._delivery.lost == before


def _resource(service_name: str | None) -> Resource:
    """OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, with the name given above both."""
    if service_name is not None:
        return Resource.create({SERVICE_NAME: service_name})
    resource = Resource.create({})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: _DEFAULT_SERVICE}))
    return resource


def trace_to(target: Target, service_name: str | None, *, requests: bool) -> SpanPipeline:
    """Export every span of the process from now on.

    Raises:
        UsageError: A tracer provider that takes no processor is set already.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        ours = TracerProvider(resource=_resource(service_name), shutdown_on_exit=False)
        if not requests:
            # Around the one that OTEL_TRACES_SAMPLER names, before any tracer has it.
            ours.sampler = _NoLoneRequests(ours.sampler)
        pipeline = SpanPipeline(_span_exporter(target), requests=requests)
        ours.add_span_processor(pipeline)
        trace.set_tracer_provider(ours)
        return pipeline
    if not isinstance(provider, TracerProvider):
        raise UsageError(
            f"a tracer provider is set already, {type(provider).__qualname__}, and takes no "
            "further exporter: leave configure_tracing() out, or call it before the other is set"
        )
    pipeline = SpanPipeline(_span_exporter(target), requests=requests)
    provider.add_span_processor(pipeline)
    return pipeline


def service_of_provider() -> str | None:
    """The service name of the provider that is set, if one is."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        return str(provider.resource.attributes.get(SERVICE_NAME, ""))
    return None


def measure_to(
    target: Target, service_name: str | None, interval_s: float | None
) -> MetricPipeline:
    """Export every metric of the process from now on.

    Raises:
        UsageError: A meter provider is set already; the SDK's takes no further reader.
    """
    pipeline = MetricPipeline(_metric_exporter(target), interval_s, _resource(service_name))
    metrics.set_meter_provider(pipeline.provider)
    if metrics.get_meter_provider() is not pipeline.provider:
        pipeline.close(0.0)
        raise UsageError(
            "a meter provider is set already, and takes no further exporter: leave "
            "configure_metrics() out, our metrics go where yours go"
        )
    return pipeline


def _span_exporter(target: Target) -> SpanExporter:
    if target.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - loads grpcio, which takes a while and is not needed for HTTP
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(
            endpoint=target.endpoint, insecure=target.is_plain, headers=dict(target.headers) or None
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - as above
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter(endpoint=target.endpoint, headers=dict(target.headers))


def _metric_exporter(target: Target) -> MetricExporter:
    if target.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # noqa: PLC0415 - as above
            OTLPMetricExporter as GrpcExporter,
        )

        return GrpcExporter(
            endpoint=target.endpoint, insecure=target.is_plain, headers=dict(target.headers) or None
        )
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 - as above
        OTLPMetricExporter as HttpExporter,
    )

    return HttpExporter(endpoint=target.endpoint, headers=dict(target.headers))
