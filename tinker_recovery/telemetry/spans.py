"""Spans of a recovery, on opentelemetry-api alone: without an SDK configured they cost nothing.

One trace per incident: :func:`new_trace` is its root, :func:`phase` each child. What lasts for days
(a run, a segment of training) is no open span, which a crash would lose, but a :func:`mark`: a
short root span whose context is remembered, and which the recoveries link to.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.redaction import redact, redact_value

Attributes = Mapping[str, AttributeValue]

Related = Sequence[tuple[str, SpanContext | None]]
"""Spans to link to, each with what it is (``names.LINK_*``); None and invalid ones are left out."""


_TRY: ContextVar[int | None] = ContextVar("tinker_recovery_try", default=None)


@contextmanager
def trying(number: int) -> Iterator[None]:
    """Every phase inside carries the number of this try at recovering."""
    token = _TRY.set(number)
    try:
        yield
    finally:
        _TRY.reset(token)


def _tracer() -> trace.Tracer:
    return trace.get_tracer(names.SCOPE)


def _links(related: Related) -> list[Link]:
    return [
        Link(where, {names.LINK: what})
        for what, where in related
        if where is not None and where.is_valid
    ]


def fail(span: Span, error: BaseException) -> None:
    """End a span as an error; an exception other than a cancellation is recorded on it."""
    refuse(span, type(error).__qualname__, str(error))
    if not isinstance(error, asyncio.CancelledError):
        record(span, error)


def record(span: Span, error: BaseException, attributes: Attributes | None = None) -> None:
    """Put an exception on a span, without the secrets it may quote."""
    if not span.is_recording():
        return
    told = {
        "exception.message": redact(str(error)),
        "exception.stacktrace": redact("".join(traceback.format_exception(error))),
    }
    span.record_exception(error, {**told, **(attributes or {})})


def refuse(span: Span, error_type: str, reason: str) -> None:
    """End a span as an error that no exception stands for: a candidate that was turned down."""
    span.set_attribute(names.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, redact(reason)))


def caller() -> SpanContext:
    """The span of the user's own that is current here, if there is one; else an invalid context."""
    return trace.get_current_span().get_span_context()


@contextmanager
def phase(name: str, attributes: Attributes | None = None) -> Iterator[Span]:
    """A span around one phase, current while it lasts; errors and cancellation end it as an error.

    The SDK leaves the status of a cancelled span unset, which hides exactly the phases that hung;
    so the status is set here.
    """
    number = _TRY.get()
    if number is not None:
        attributes = {**(attributes or {}), names.TRY: number}
    with _tracer().start_as_current_span(
        name,
        attributes=redact_value(attributes),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            fail(span, error)
            raise


@contextmanager
def new_trace(
    name: str, attributes: Attributes, *, start_ns: int, related: Related = ()
) -> Iterator[Span]:
    """The root span of a trace of its own, started in the past; current while it lasts."""
    span = _tracer().start_span(
        name,
        context=context.Context(),
        attributes=redact_value(attributes),
        start_time=start_ns,
        links=_links(related),
    )
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield span
        except BaseException as error:
            fail(span, error)
            raise


def past_span(name: str, attributes: Attributes, *, start_ns: int, end_ns: int) -> None:
    """A span for something that is already over, under the current one."""
    span = _tracer().start_span(name, attributes=redact_value(attributes), start_time=start_ns)
    span.end(end_time=max(start_ns, end_ns))


def mark(
    name: str, attributes: Attributes, *, related: Related = (), error: BaseException | None = None
) -> SpanContext:
    """A root span as short as can be: something began or ended. Returns what to link to."""
    span = _tracer().start_span(
        name,
        context=context.Context(),
        attributes=redact_value(attributes),
        links=_links(related),
    )
    if error is not None:
        fail(span, error)
    span.end()
    return span.get_span_context()
