"""What a recovery tells the world: spans, metrics, events, logs.

Every name is in one place, :mod:`~tinker_recovery.telemetry.names`, and no secret is in any of it:
see :mod:`~tinker_recovery.telemetry.redaction`, and :func:`hide` for secrets of your own.

- **Traces** and **metrics** go to whatever OpenTelemetry SDK the program has configured;
  :func:`configure_tracing` and :func:`configure_metrics` configure one.
- **Events** are :class:`RecoveryEvent` records, and the supervision tree's
  :class:`~tinker_recovery.supervision.SupervisionEvent`: ``Supervisor(on_event=...)``, or
  ``supervisor.events()`` as an async stream.
- **Logs**: each event is one record of the logger ``tinker_recovery``, or
  ``tinker_recovery.supervision``, with a message for people, and the attributes for machines as
  ``extra``: ``event.name``, ``tinker_recovery.run.name``, ``tinker_recovery.fault.kind`` and so on.
  A JSON formatter that prints what it does not know, or OpenTelemetry's logging handler, has them
  all; ``record.__dict__["tinker_recovery.run.name"]`` is one. Every key has a dot in it, so none is
  an attribute that ``logging`` itself uses.
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
