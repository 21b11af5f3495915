"""What a recovery tells the world: spans, events, logs. Names are in one place, ``names``."""

from tinker_recovery.telemetry.events import EventSink, RecoveryEvent
from tinker_recovery.telemetry.spans import new_trace, past_span, phase

__all__ = ["EventSink", "RecoveryEvent", "new_trace", "past_span", "phase"]
