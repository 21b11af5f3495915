"""Spans of a recovery, on opentelemetry-api alone: without an SDK configured they cost nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from tinker_recovery.telemetry import names

Attributes = Mapping[str, AttributeValue]


def _tracer() -> trace.Tracer:
    return trace.get_tracer(names.SCOPE)


def _close(span: Span, error: BaseException) -> None:
    span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, str(error)))
    if not isinstance(error, asyncio.CancelledError):
        span.record_exception(error)


@contextmanager
def phase(name: str, attributes: Attributes | None = None) -> Iterator[Span]:
    """A span around one phase, current while it lasts; errors and cancellation end it as an error.

    The SDK leaves the status of a cancelled span unset, which hides exactly the phases that hung;
    so the status is set here.
    """
    with _tracer().start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            _close(span, error)
            raise


@contextmanager
def new_trace(name: str, attributes: Attributes, *, start_ns: int) -> Iterator[Span]:
    """The root span of a trace of its own, started in the past: when the fault was detected."""
    span = _tracer().start_span(
        name, context=context.Context(), attributes=attributes, start_time=start_ns
    )
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield span
        except BaseException as error:
            _close(span, error)
            raise


def past_span(name: str, attributes: Attributes, *, start_ns: int, end_ns: int) -> None:
    """A span for something that is already over, under the current one."""
    span = _tracer().start_span(name, attributes=attributes, start_time=start_ns)
    span.end(end_time=end_ns)
