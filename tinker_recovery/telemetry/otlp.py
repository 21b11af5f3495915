"""Export over OTLP: one call that sends traces, or metrics, to Jaeger or any collector.

The exporters and the SDK read the OTEL_* variables. Read here is what they leave open (gRPC or
HTTP, whether a signal is off), and what is refused at once: an exporter reports an address that
cannot work minutes later, from its own thread, and logs a header it cannot send, token and all.
"""

from __future__ import annotations

import atexit
import logging
import os
import pkgutil
import re
import threading
from collections.abc import Callable, Mapping
from http import HTTPMethod
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.util.re import parse_env_headers

from tinker_recovery.errors import UsageError
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.redaction import hide_headers

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult

logger = logging.getLogger(names.SCOPE)

Signal = Literal["traces", "metrics"]
Protocol = Literal["grpc", "http/protobuf"]

FLUSH_S = 3.0
"""How long the end of the process waits for the last export, by default."""

_PORTS = {"grpc": 4317, "http/protobuf": 4318}
_CLASSES = {
    "traces": "opentelemetry.exporter.otlp.proto.{}.trace_exporter:OTLPSpanExporter",
    "metrics": "opentelemetry.exporter.otlp.proto.{}.metric_exporter:OTLPMetricExporter",
}
_ADDRESS = re.compile(
    r"(?P<scheme>https?://)?(?P<host>[\w.-]+|\[[\da-fA-F:.]+\])(:(?P<port>\d{1,5}))?"
    r"(?P<path>/[^?#@\s]*?)??/?"
)
# A part of a path that is an id: with a digit, but no version (`v1`), or encoded.
_ID = re.compile(r"/(?!v\d+(?=/|$))[^/]*(?:\d|%)[^/]*")
# A header's name, but for those that gRPC keeps for itself, and its value.
_NAME = re.compile(r"(?!grpc-)[a-z0-9!#$%&'*+.^_`|~-]+(?<!-bin)")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# An entry of OTEL_EXPORTER_OTLP_HEADERS that its parser takes. Any other it logs, with the value.
_ENTRY = re.compile(r"\s*|\s*[^=\s]+\s*=[\x20\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")


class _Exporter:
    """An exporter of the SDK that counts what was not delivered, and may be shut down twice."""

    def __init__(self, exporter: Any, endpoint: str | None, protocol: str) -> None:
        self._exporter = exporter
        self.endpoint = endpoint
        self.protocol = protocol
        self.closed = exporter is None
        self.lost = 0

    def __str__(self) -> str:
        return f"{self.endpoint} ({self.protocol})" if self.endpoint else "nowhere: turned off"

    def __getattr__(self, name: str) -> Any:
        # What else the SDK asks an exporter for, such as the temporality of its metrics.
        return getattr(self._exporter, name)

    def export(self, batch: Any, *arguments: Any, **options: Any) -> Any:
        """Export spans, or one collection of metrics; the SDK does not look at the result."""
        result = None
        try:
            if not self.closed:
                result = self._exporter.export(batch, *arguments, **options)
        finally:
            if result is None or result.name != "SUCCESS":
                self.lost += len(batch) if isinstance(batch, (list, tuple)) else 1
        return result

    def shutdown(self, *arguments: Any, **options: Any) -> None:
        """End its retries; what is exported from now on is lost."""
        if not self.closed:
            self.closed = True
            self._exporter.shutdown(*arguments, **options)


class Export:
    """An export that was set up; shuts itself down when the process exits.

    Also a context manager, which shuts it down on the way out. The calls block, up to their
    deadline; from a coroutine make them through ``anyio.to_thread.run_sync``.

    Attributes:
        endpoint: Where it goes; None if the environment turned it off.
    """

    def __init__(
        self, signal: Signal, exporter: _Exporter, flush_s: float, source: Any = None
    ) -> None:
        self.endpoint = exporter.endpoint
        self._signal = signal
        self._exporter = exporter
        self._flush_s = flush_s
        self._source = source
        self._ended = exporter.closed
        # The SDK's batch processor waits up to 30 s for its last export, and takes no deadline for
        # it (opentelemetry-sdk 1.45; issue 4555 of opentelemetry-python). So a thread does the
        # waiting. It is there from the beginning, since none can be started once Python exits.
        self._closing = threading.Event()
        self._closer = threading.Thread(target=self._close, name="otlp-export", daemon=True)
        if not self._ended:
            self._closer.start()
            atexit.register(self.shutdown)

    def __repr__(self) -> str:
        return f"<Export of {self._signal} to {self._exporter}>"

    @property
    def lost(self) -> int:
        """Spans, or collections of metrics, that the collector did not take so far."""
        return self._exporter.lost

    def flush(self, deadline_s: float | None = None) -> bool:
        """Send what is waiting; whether it was delivered in time (default: ``flush_s``)."""
        if self._ended:
            return True
        sender = threading.Thread(target=self._source.force_flush, name="otlp-flush", daemon=True)
        return self._delivered(sender, sender.start, deadline_s)

    def shutdown(self, deadline_s: float | None = None) -> bool:
        """Send what is waiting, then end; whether all was delivered in time (default: ``flush_s``).

        What is not delivered by then is given up. Only what this export set up is ended. Once
        shut down, the call does nothing.
        """
        if self._ended:
            return True
        self._ended = True
        atexit.unregister(self.shutdown)
        delivered = self._delivered(self._closer, self._closing.set, deadline_s)
        # Ends the retries, and with them what the thread may still be waiting for.
        self._exporter.shutdown()
        if not delivered:
            logger.warning(
                "the last %s were not all delivered to %s in time: is a collector listening there?",
                self._signal,
                self._exporter,
            )
        return delivered

    def _close(self) -> None:
        self._closing.wait()
        self._source.shutdown()

    def _delivered(
        self, thread: threading.Thread, start: Callable[[], object], deadline_s: float | None
    ) -> bool:
        before = self.lost
        start()
        thread.join(self._flush_s if deadline_s is None else deadline_s)
        return not thread.is_alive() and self.lost == before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def configure_tracing(
    endpoint: str | None = None,
    *,
    protocol: Protocol | None = None,
    service_name: str | None = None,
    headers: Mapping[str, str] | None = None,
    requests: bool = False,
    flush_s: float = FLUSH_S,
) -> Export:
    """Send the traces of this process to a collector over OTLP.

    Call it once, before training. Without arguments the standard variables say everything, each
    also in its ``_TRACES_`` form: OTEL_EXPORTER_OTLP_ENDPOINT, _PROTOCOL, _HEADERS, _TIMEOUT,
    _COMPRESSION, _CERTIFICATE, _INSECURE; OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
    OTEL_TRACES_SAMPLER, OTEL_BSP_*; OTEL_SDK_DISABLED=true and OTEL_TRACES_EXPORTER=none turn it
    off. Arguments come before variables.

    With a tracer provider of the SDK's set already, the exporter is added to that one, whose
    resource and sampler stay as they are. Training never waits for the collector: spans are queued,
    2048 at most, and the oldest dropped while it is down.

    Args:
        endpoint: ``http://HOST:PORT``, or https for TLS; default ``http://localhost:4317``, with
            HTTP 4318. HTTP adds the path ``/v1/traces``.
        protocol: Default gRPC; HTTP where the port is 4318.
        service_name: The name the traces are found under; default ``tinker-recovery``.
        headers: Sent with each export, for credentials; shown nowhere.
        requests: Also trace the HTTP requests of the Tinker SDK that belong to no span of yours.
            They are four a step, each a trace of its own, and cost a step several per cent.
        flush_s: How long the end of the process waits for the last export, in seconds.

    Raises:
        UsageError: An argument or a variable cannot work, the ``[otel]`` extra is not installed, or
            a provider is set that takes no exporter.
    """
    exporter = _exporter("traces", endpoint, protocol, headers, flush_s)
    if exporter.closed:
        return Export("traces", exporter, flush_s)
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - needs the extra

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = TracerProvider(resource=_resource(service_name), shutdown_on_exit=False)
        if not requests:
            # Around the one that OTEL_TRACES_SAMPLER names, before any tracer has it.
            provider.sampler = _without_requests(provider.sampler)
        trace.set_tracer_provider(provider)
    elif not isinstance(provider, TracerProvider):
        raise UsageError(
            f"a tracer provider is set already, {type(provider).__qualname__}, and takes no "
            "further exporter: leave configure_tracing() out, or call it before the other is set"
        )
    elif service_name not in {None, provider.resource.attributes.get("service.name")}:
        logger.warning(
            "a tracer provider was set before configure_tracing(): the traces are those of service "
            "%r, and not of %r",
            provider.resource.attributes.get("service.name"),
            service_name,
        )
    processor = _processor(exporter, requests=requests)
    provider.add_span_processor(processor)
    return Export("traces", exporter, flush_s, processor)


def configure_metrics(
    endpoint: str | None = None,
    *,
    protocol: Protocol | None = None,
    service_name: str | None = None,
    headers: Mapping[str, str] | None = None,
    interval_s: float | None = None,
    flush_s: float = FLUSH_S,
) -> Export:
    """Send the metrics of this process to a collector over OTLP.

    As :func:`configure_tracing`, with the ``_METRICS_`` variables. Jaeger takes no metrics; an
    OpenTelemetry Collector or Prometheus does.

    Args:
        endpoint: As there.
        protocol: As there.
        service_name: As there.
        headers: As there.
        interval_s: Seconds between two exports; default OTEL_METRIC_EXPORT_INTERVAL, or 60.
        flush_s: As there.

    Raises:
        UsageError: As there; or a meter provider is set already, since the SDK's takes no further
            exporter.
    """
    if interval_s is not None and not interval_s > 0:
        raise UsageError(f"interval_s={interval_s!r} is not allowed: seconds, more than 0")
    exporter = _exporter("metrics", endpoint, protocol, headers, flush_s)
    if exporter.closed:
        return Export("metrics", exporter, flush_s)
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - needs the extra
    from opentelemetry.sdk.metrics import export as sdk  # noqa: PLC0415 - as above

    interval_ms = None if interval_s is None else interval_s * 1e3
    reader = sdk.PeriodicExportingMetricReader(
        exporter,  # type: ignore[arg-type]  # not one by its class: it passes on what it is not
        export_interval_millis=interval_ms,
    )
    provider = MeterProvider([reader], _resource(service_name), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    if metrics.get_meter_provider() is not provider:
        exporter.shutdown()
        provider.shutdown()
        raise UsageError(
            "a meter provider is set already, and takes no further exporter: leave "
            "configure_metrics() out, our metrics go where yours go"
        )
    return Export("metrics", exporter, flush_s, provider)


def _exporter(
    signal: Signal,
    endpoint: str | None,
    protocol: str | None,
    headers: Mapping[str, str] | None,
    flush_s: float,
) -> _Exporter:
    """The SDK's exporter, as arguments and variables say; a closed one if these turn it off."""
    if not flush_s >= 0:
        raise UsageError(f"flush_s={flush_s!r} is not allowed: seconds, 0 or more")
    address, chosen = _target(signal, endpoint, protocol)
    options: dict[str, Any] = {"endpoint": address, "headers": _headers(signal, headers or {})}
    if chosen == "grpc" and endpoint is not None:
        options["insecure"] = address.startswith("http://")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() == "none":
        logger.info("%s are not exported: the environment turns them off", signal)
        return _Exporter(None, None, chosen)
    try:
        # The one that is needed, and no other: grpcio takes a while to load.
        make = pkgutil.resolve_name(_CLASSES[signal].format(chosen.partition("/")[0]))
    except ImportError as error:
        raise UsageError(
            f"exporting {signal} needs the OpenTelemetry SDK: pip install "
            f'"tinker-recovery[otel]" ({error})'
        ) from error
    return _Exporter(make(**options), address, chosen)


def _given(signal: Signal, name: str, argument: str | None = None) -> tuple[str, str]:
    """What it is called, and the argument, or else the first of its variables that is not empty."""
    if argument is not None:
        return name, argument
    for each in (f"OTEL_EXPORTER_OTLP_{signal}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := os.environ.get(each.upper(), "").strip():
            return each.upper(), value
    return name, ""


def _target(signal: Signal, endpoint: str | None, protocol: str | None) -> tuple[str, str]:
    """The address to send to, and the protocol to speak there."""
    origin, address = _given(signal, "endpoint", endpoint)
    named, chosen = _given(signal, "protocol", protocol)
    if protocol is None and not chosen:
        # A collector's HTTP port does not understand gRPC, and the other way round.
        chosen = "http/protobuf" if re.search(r":4318(/|$)|/v1/\w+$", address) else "grpc"
    if chosen not in _PORTS:
        raise UsageError(f"{named}={chosen!r} is not allowed: one of {' and '.join(_PORTS)}")
    if endpoint is None and not address:
        address = f"http://localhost:{_PORTS[chosen]}"
    is_grpc = chosen == "grpc"
    found = _ADDRESS.fullmatch(address)
    if (
        found is None
        or int(found["port"] or 0) >= 2**16
        or (is_grpc and found["path"])
        # Without a scheme, OTEL_EXPORTER_OTLP_INSECURE says whether a variable's gRPC is plain.
        or not (found["scheme"] or (is_grpc and endpoint is None))
    ):
        # Exporters log their address, so there is no place for a secret in it.
        shown = "" if re.search("[@?#]", address) else f"={address!r}"
        raise UsageError(
            f"{origin}{shown} is not allowed: http://HOST:PORT, or https:// for TLS; with gRPC no "
            "path; no user, query or fragment, since credentials go into headers"
        )
    if is_grpc:
        return f"{found['scheme'] or ''}{found['host']}:{found['port'] or _PORTS[chosen]}", chosen
    if signal.upper() in origin or (found["path"] or "").endswith(f"/v1/{signal}"):
        return address, chosen
    return f"{address.rstrip('/')}/v1/{signal}", chosen


def _headers(signal: Signal, arguments: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment and those of the call. No value is shown, and no name that is none.

    An exporter logs what it cannot send.
    """
    variable, text = _given(signal, "headers")
    if not all(_ENTRY.fullmatch(entry) for entry in text.split(",")):
        raise UsageError(
            f"{variable} is not allowed: NAME=VALUE, values URL-encoded, and a comma between two"
        )
    headers = dict(parse_env_headers(text, liberal=True))
    headers |= {name.strip().lower(): value.strip() for name, value in arguments.items()}
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise UsageError(
                "a header's name is not allowed: letters, digits, - and _, not grpc-... or ...-bin"
            )
        if not _VALUE.fullmatch(value):
            raise UsageError(
                f"the value of header {name!r} is not allowed: printable ASCII on one line"
            )
    hide_headers(headers)
    return headers


def _resource(service_name: str | None) -> Resource:
    """What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say, the name given above both."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - needs the extra

    resource = Resource.create({} if service_name is None else {SERVICE_NAME: service_name})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: "tinker-recovery"}))
    return resource


def _without_requests(other: Sampler) -> Sampler:
    """Samples as another does, but drops HTTP requests that belong to no span.

    The Tinker SDK's client makes a trace of each request, four a step, which costs the step several
    per cent and buries every other trace in a list.
    """
    from opentelemetry.sdk.trace import sampling  # noqa: PLC0415 - needs the extra

    class NoLoneRequests(sampling.Sampler):
        def should_sample(
            self,
            parent_context: Any,
            trace_id: int,
            name: str,
            kind: trace.SpanKind | None = None,
            *arguments: Any,
            **options: Any,
        ) -> SamplingResult:
            if kind is trace.SpanKind.CLIENT and name in HTTPMethod.__members__:
                parent = trace.get_current_span(parent_context).get_span_context()
                if not parent.is_valid:
                    return sampling.SamplingResult(sampling.Decision.DROP)
            return other.should_sample(parent_context, trace_id, name, kind, *arguments, **options)

        def get_description(self) -> str:
            return f"NoLoneRequests{{{other.get_description()}}}"

    return NoLoneRequests()


def request_name(method: str, url: str) -> str:
    """A name for the span of a request that tells it from others, ids in its path left out."""
    path = urlsplit(url).path
    return f"{method} {_ID.sub('/{id}', path)}" if path else method


def _processor(exporter: _Exporter, *, requests: bool) -> BatchSpanProcessor:
    """The SDK's, without those of such requests that were sampled all the same.

    Silent once the export is shut down: the provider may be the user's, and live on.
    """
    from opentelemetry.sdk.trace import export as sdk  # noqa: PLC0415 - needs the extra

    class Batches(sdk.BatchSpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            scope = span.instrumentation_scope
            if scope is not None and scope.name == "pyqwest":
                # It calls every request POST. Its address is there from the beginning.
                url = (span.attributes or {}).get("url.full")
                span.update_name(request_name(span.name, str(url or "")))
            super().on_start(span, parent_context)

        def on_end(self, span: ReadableSpan) -> None:
            scope = span.instrumentation_scope
            is_lone_request = span.parent is None and scope is not None and scope.name == "pyqwest"
            if not exporter.closed and (requests or not is_lone_request):
                super().on_end(span)

    return Batches(exporter)  # type: ignore[arg-type]  # as above
