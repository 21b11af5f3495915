"""How these tests read spans: ours only, by name, by parent, by link."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tinker_recovery.telemetry import names


def ours(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """Our spans without the user's, in the order in which they ended."""
    return [
        span
        for span in exporter.get_finished_spans()
        if span.instrumentation_scope and span.instrumentation_scope.name == names.SCOPE
    ]


def named(spans: Iterable[ReadableSpan], name: str) -> list[ReadableSpan]:
    """Those of this name."""
    return [span for span in spans if span.name == name]


def only(spans: Iterable[ReadableSpan], name: str) -> ReadableSpan:
    """The one of this name."""
    (span,) = named(spans, name)
    return span


def span_id(span: ReadableSpan) -> int:
    """Its id."""
    assert span.context is not None
    return int(span.context.span_id)


def incident(spans: Iterable[ReadableSpan], root: ReadableSpan) -> list[ReadableSpan]:
    """The spans of one trace but its root, in the order in which they ended."""
    assert root.context is not None
    trace_id = root.context.trace_id
    return [
        span
        for span in spans
        if span is not root and span.context and span.context.trace_id == trace_id
    ]


def says(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes."""
    return dict(span.attributes or {})


def events(span: ReadableSpan) -> list[str]:
    """Names of the events on it."""
    return [event.name for event in span.events]


def failed(span: ReadableSpan) -> bool:
    """Whether it ended as an error; if so it has to have an error type."""
    is_error = span.status.status_code is StatusCode.ERROR
    assert is_error == (names.ERROR_TYPE in says(span))
    return is_error


def links(span: ReadableSpan) -> dict[str, int]:
    """The ids of the spans it links to, by their role."""
    return {str((link.attributes or {})[names.LINK]): link.context.span_id for link in span.links}
