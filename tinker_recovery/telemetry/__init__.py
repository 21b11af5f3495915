"""Telemetry: the spans, metrics, events and logs of runs and recoveries.

Every room above may call it; it imports only ``supervision``. The names of spans,
events and attributes are in :mod:`~tinker_recovery.telemetry.names`, those of metrics in
:mod:`~tinker_recovery.telemetry.metrics`. Secrets are redacted everywhere: see
:mod:`~tinker_recovery.telemetry.redaction`, and :func:`hide` for secrets of your own.

- **Traces** and **metrics** go to whatever OpenTelemetry SDK the program has configured;
  :func:`configure_tracing` and :func:`configure_metrics` configure one. Without any, a Supervisor
  does so where OTEL_EXPORTER_OTLP_ENDPOINT is set, also in its ``_TRACES_`` or ``_METRICS_`` form;
  TINKER_RECOVERY_OTEL=0 turns that off.
- **Events** are :class:`RecoveryEvent` records, and the supervision tree's
  :class:`~tinker_recovery.supervision.SupervisionEvent`: ``Supervisor(on_event=...)``, or
  ``supervisor.events()`` as an async stream.
- **Logs**: each event is one record of the logger ``tinker_recovery``, or
  ``tinker_recovery.supervision``, with a message for people, and the attributes for machines as
  ``extra``: ``event.name``, ``tinker_recovery.run.name``, ``tinker_recovery.fault.kind`` and so on.
  JSON formatters that print unknown attributes, and OpenTelemetry's logging handler, include them;
  ``record.__dict__["tinker_recovery.run.name"]`` is one. Every key contains a dot, so none clashes
  with an attribute that ``logging`` itself uses.
"""

from tinker_recovery.telemetry.events import EventSink
from tinker_recovery.telemetry.otlp import Export, configure_metrics, configure_tracing
from tinker_recovery.telemetry.record import RecoveryEvent, from_json_line, json_line
from tinker_recovery.telemetry.redaction import hide, redact
from tinker_recovery.telemetry.run_telemetry import RunTelemetry
from tinker_recovery.telemetry.spans import past_span, phase, refuse, trying
from tinker_recovery.telemetry.stream import Event, EventsDropped, EventStream

__all__ = [
    "Event",
    "EventSink",
    "EventStream",
    "EventsDropped",
    "Export",
    "RecoveryEvent",
    "RunTelemetry",
    "configure_metrics",
    "configure_tracing",
    "from_json_line",
    "hide",
    "json_line",
    "past_span",
    "phase",
    "redact",
    "refuse",
    "trying",
]
