"""Export over OTLP: one call that sends traces, or metrics, to Jaeger or any collector."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Protocol, Self

from tinker_recovery.errors import UsageError
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.otlp_target import Signal, Target, is_off, resolve
from tinker_recovery.telemetry.redaction import hide_headers

logger = logging.getLogger(names.SCOPE)

FLUSH_S = 3.0
"""How long the end of the process waits for the last export, by default."""


class Pipeline(Protocol):
    """What carries a signal to a collector."""

    @property
    def lost(self) -> int:
        """What the collector did not take."""
        ...

    def force_flush(self, timeout_millis: int) -> bool:
        """Send what there is; whether it was delivered in time."""
        ...

    def close(self, limit_s: float) -> bool:
        """Send what there is, and end; whether everything was delivered in time."""
        ...


class Export:
    """An export that was set up; shuts itself down when the process exits.

    Also a context manager, which shuts it down on the way out. The calls block, up to their
    deadline; from a coroutine make them through ``anyio.to_thread.run_sync``.
    """

    def __init__(
        self, signal: Signal, target: Target | None, pipeline: Pipeline | None, flush_s: float
    ) -> None:
        self._signal = signal
        self._target = target
        self._pipeline = pipeline
        self._flush_s = flush_s
        if pipeline is not None:
            atexit.register(self.shutdown)

    def __repr__(self) -> str:
        return f"<Export of {self._signal} to {self._target or 'nowhere: turned off'}>"

    @property
    def endpoint(self) -> str | None:
        """Where it goes; None if the environment turned it off."""
        return None if self._target is None else self._target.endpoint

    @property
    def lost(self) -> int:
        """Spans, or collections of metrics, that the collector did not take so far."""
        return 0 if self._pipeline is None else self._pipeline.lost

    def flush(self, deadline_s: float | None = None) -> bool:
        """Send what is waiting; whether it was delivered in time (default: ``flush_s``)."""
        limit_s = self._flush_s if deadline_s is None else deadline_s
        return self._pipeline is None or self._pipeline.force_flush(int(limit_s * 1e3))

    def shutdown(self, deadline_s: float | None = None) -> bool:
        """Send what is waiting, then end; whether all was delivered in time (default: ``flush_s``).

        What is not delivered by then is given up. Only what this export set up is ended. Once
        shut down, the call does nothing.
        """
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return True
        atexit.unregister(self.shutdown)
        limit_s = self._flush_s if deadline_s is None else deadline_s
        delivered = pipeline.close(limit_s)
        if not delivered:
            logger.warning(
                "the last %s were not all delivered to %s within %g s: is a collector listening "
                "there?",
                self._signal,
                self._target,
                limit_s,
            )
        return delivered

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


def configure_tracing(
    endpoint: str | None = None,
    *,
    protocol: Literal["grpc", "http/protobuf"] | None = None,
    service_name: str | None = None,
    headers: Mapping[str, str] | None = None,
    requests: bool = False,
    flush_s: float = FLUSH_S,
) -> Export:
    """Send the traces of this process to a collector over OTLP.

    Call it once, before training. Without arguments the standard variables say everything, each
    also in its ``_TRACES_`` form: OTEL_EXPORTER_OTLP_ENDPOINT, _PROTOCOL, _HEADERS, _TIMEOUT,
    _COMPRESSION, _CERTIFICATE; OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
    OTEL_BSP_*; OTEL_SDK_DISABLED=true and OTEL_TRACES_EXPORTER=none turn it off. Arguments come
    before variables.

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
    target = _target("traces", endpoint, protocol, headers, flush_s)
    if target is None:
        return Export("traces", None, None, flush_s)
    try:
        from tinker_recovery.telemetry import otlp_pipeline  # noqa: PLC0415 - needs the extra

        set_already = otlp_pipeline.service_of_provider()
        pipeline = otlp_pipeline.trace_to(target, service_name, requests=requests)
    except ImportError as error:
        raise _not_installed("configure_tracing", error) from error
    if set_already is not None and service_name not in {None, set_already}:
        logger.warning(
            "a tracer provider was set before configure_tracing(): the traces are those of service "
            "%r, and not of %r",
            set_already,
            service_name,
        )
    return Export("traces", target, pipeline, flush_s)


def configure_metrics(
    endpoint: str | None = None,
    *,
    protocol: Literal["grpc", "http/protobuf"] | None = None,
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
    target = _target("metrics", endpoint, protocol, headers, flush_s)
    if interval_s is not None and not interval_s > 0:
        raise UsageError(f"interval_s={interval_s!r} is not allowed: seconds, more than 0")
    if target is None:
        return Export("metrics", None, None, flush_s)
    try:
        from tinker_recovery.telemetry import otlp_pipeline  # noqa: PLC0415 - needs the extra

        pipeline = otlp_pipeline.measure_to(target, service_name, interval_s)
    except ImportError as error:
        raise _not_installed("configure_metrics", error) from error
    return Export("metrics", target, pipeline, flush_s)


def _target(
    signal: Signal,
    endpoint: str | None,
    protocol: str | None,
    headers: Mapping[str, str] | None,
    flush_s: float,
) -> Target | None:
    if not flush_s >= 0:
        raise UsageError(f"flush_s={flush_s!r} is not allowed: seconds, 0 or more")
    target = resolve(
        signal, endpoint=endpoint, protocol=protocol, headers=headers, environment=os.environ
    )
    if is_off(signal, os.environ):
        logger.info("%s are not exported: the environment turns them off", signal)
        return None
    hide_headers(target.headers)
    return target


def _not_installed(call: str, error: ImportError) -> UsageError:
    return UsageError(
        f'{call}() needs the OpenTelemetry SDK: pip install "tinker-recovery[otel]" ({error})'
    )
