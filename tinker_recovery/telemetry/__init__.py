"""What a recovery tells the world: spans, events, logs. Names are in one place, ``names``."""

from tinker_recovery.telemetry.events import EventSink, RecoveryEvent
from tinker_recovery.telemetry.otlp import Export, configure_metrics, configure_tracing
from tinker_recovery.telemetry.redaction import redact
from tinker_recovery.telemetry.run_trace import RunTrace
from tinker_recovery.telemetry.spans import past_span, phase, refuse, trying

__all__ = [
    "EventSink",
    "Export",
    "RecoveryEvent",
    "RunTrace",
    "configure_metrics",
    "configure_tracing",
    "past_span",
    "phase",
    "redact",
    "refuse",
    "trying",
]
