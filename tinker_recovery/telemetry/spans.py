"""Spans of a recovery, on opentelemetry-api alone: without an SDK configured they cost nothing.

One trace per incident: :func:`new_trace` is its root, :func:`phase` each child. What lasts for days
(a run) is not an open span, which a crash would lose, but a :func:`mark`: a short root span whose
context is kept for the recoveries to link to. A segment is one that is open while it trains,
:func:`open_root`: of one that a crash loses, the start of its run and its recovery are there.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.redaction import redact, redact_value

Attributes = Mapping[str, AttributeValue]

Related = Sequence[tuple[str, SpanContext | None]]
"""Spans to link to, each with its role (``names.LINK_*``); None and invalid ones are left out."""

_TRY: ContextVar[int | None] = ContextVar("tinker_recovery_try", default=None)


@contextmanager
def trying(number: int) -> Iterator[None]:
    """Every phase inside has the number of this attempt to recover."""
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
    """Record an exception on a span, with the secrets in it redacted."""
    if not span.is_recording():
        return
    redacted = {
        "exception.message": redact(str(error)),
        "exception.stacktrace": redact("".join(traceback.format_exception(error))),
    }
    span.record_exception(error, {**redacted, **(attributes or {})})


def refuse(span: Span, error_type: str, reason: str) -> None:
    """End a span as an error without an exception, as for a rejected checkpoint."""
    span.set_attribute(names.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, redact(reason)))


def caller() -> SpanContext:
    """The user's current span, if there is one; else an invalid context."""
    return trace.get_current_span().get_span_context()


@contextmanager
def _current(span: Span) -> Iterator[Span]:
    # The SDK leaves the status of a cancelled span unset, which would hide the phases that hung.
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield span
        except BaseException as error:
            fail(span, error)
            raise


def phase(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """A span of one phase, current while it lasts; an error or cancellation ends it as an error."""
    number = _TRY.get()
    if number is not None:
        attributes = {**(attributes or {}), names.TRY: number}
    return _current(_tracer().start_span(name, attributes=redact_value(attributes)))


def new_trace(
    name: str, attributes: Attributes, *, start_ns: int, related: Related = ()
) -> AbstractContextManager[Span]:
    """The root span of a new trace, with a start in the past; current while it lasts."""
    return _current(
        _tracer().start_span(
            name,
            context=context.Context(),
            attributes=redact_value(attributes),
            start_time=start_ns,
            links=_links(related),
        )
    )


def past_span(name: str, attributes: Attributes, *, start_ns: int, end_ns: int) -> None:
    """A child of the current span for something that is already over."""
    span = _tracer().start_span(name, attributes=redact_value(attributes), start_time=start_ns)
    span.end(end_time=max(start_ns, end_ns))


def open_root(name: str, attributes: Attributes, *, related: Related = ()) -> Span:
    """A root span that begins now, to be ended by the caller; it is current nowhere."""
    return _tracer().start_span(
        name,
        context=context.Context(),
        attributes=redact_value(attributes),
        links=_links(related),
    )


def mark(
    name: str, attributes: Attributes, *, related: Related = (), error: BaseException | None = None
) -> SpanContext:
    """A root span of no duration: something began or ended. Returns its context to link to."""
    span = open_root(name, attributes, related=related)
    if error is not None:
        fail(span, error)
    span.end()
    return span.get_span_context()
