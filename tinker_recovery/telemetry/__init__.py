"""What a recovery tells the world: spans, events, logs. Names are in one place, ``names``."""

from tinker_recovery.telemetry.events import EventSink, RecoveryEvent
from tinker_recovery.telemetry.run_trace import RunTrace
from tinker_recovery.telemetry.spans import past_span, phase, refuse, trying

__all__ = [
    "EventSink",
    "RecoveryEvent",
    "RunTrace",
    "past_span",
    "phase",
    "refuse",
    "trying",
]
