"""Events: each goes to the log, to the current span, and to the user's listener."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.redaction import redact, redact_value
from tinker_recovery.telemetry.spans import record

logger = logging.getLogger(names.SCOPE)

_LEVELS: Mapping[str, int] = {
    names.EVENT_DETECTED: logging.WARNING,
    names.EVENT_STARTED: logging.INFO,
    names.EVENT_CHECKPOINT_SELECTED: logging.INFO,
    names.EVENT_CLIENT_CREATED: logging.INFO,
    names.EVENT_COMPLETED: logging.WARNING,
    names.EVENT_FAILED: logging.ERROR,
    names.EVENT_EXHAUSTED: logging.ERROR,
    names.EVENT_GAVE_UP: logging.ERROR,
    names.EVENT_STEP_SKIPPED: logging.WARNING,
    names.EVENT_STALL_WARNING: logging.WARNING,
    names.EVENT_POLL_ERROR: logging.WARNING,
    names.EVENT_CHECKPOINT_BAD: logging.ERROR,
    names.EVENT_CHECKPOINT_SAVED: logging.DEBUG,
    names.EVENT_CHECKPOINT_SAVE_FAILED: logging.WARNING,
}


@dataclass(frozen=True, slots=True)
class RecoveryEvent:
    """Something that happened to a run.

    Attributes:
        name: One of ``telemetry.names.EVENT_*``.
        run: The run's name; empty where it concerns no single run.
        message: The event in words.
        fields: Attributes by their telemetry name; plain values, no secrets.
        time: Seconds since the epoch.
    """

    name: str
    run: str
    message: str
    fields: Mapping[str, AttributeValue] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


class EventSink:
    """Sends each event to the log, the current span and the listener, and never raises."""

    def __init__(self, listener: Callable[[RecoveryEvent], object] | None = None) -> None:
        self._listener = listener

    def emit(
        self, name: str, run: str, message: str, fields: Mapping[str, AttributeValue] | None = None
    ) -> None:
        """Tell of one event. Call it on the event loop's thread."""
        told = {key: redact_value(value) for key, value in (fields or {}).items()}
        event = RecoveryEvent(name, run, redact(message), told)
        logger.log(
            _LEVELS[name],
            "run %s: %s",
            run or "-",
            event.message,
            extra={"event": name, "fields": dict(event.fields)},
        )
        trace.get_current_span().add_event(name, {**event.fields, names.RUN: run})
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("on_event raised for %s; recovery goes on", name)

    def callback_failed(self, name: str, error: BaseException) -> None:
        """A callback of the user's raised: into the log and onto the span, and no further."""
        logger.error("%s raised; recovery goes on", name, exc_info=error)
        record(trace.get_current_span(), error, {names.REASON: f"{name} raised"})
