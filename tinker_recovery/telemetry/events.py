"""Events: each goes to the log, the current span, the user's listener and the streams."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from tinker_recovery.supervision import (
    ChildExited,
    ChildReady,
    ChildRestarted,
    ChildStarted,
    RestartScheduled,
    SupervisionEvent,
)
from tinker_recovery.telemetry import metrics, names
from tinker_recovery.telemetry.record import RecoveryEvent
from tinker_recovery.telemetry.redaction import redact, redact_error, redact_value
from tinker_recovery.telemetry.spans import record
from tinker_recovery.telemetry.stream import Streams

logger = logging.getLogger(names.SCOPE)
tree_logger = logging.getLogger(f"{names.SCOPE}.supervision")

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
    names.EVENT_SAMPLER_RENEWED: logging.WARNING,
    names.EVENT_WAITING: logging.WARNING,
    names.EVENT_SERVICE_BACK: logging.WARNING,
    names.EVENT_POLL_ERROR: logging.WARNING,
    names.EVENT_WEIGHTS_UNKNOWN: logging.WARNING,
    names.EVENT_METADATA_NOT_KEPT: logging.WARNING,
    names.EVENT_OPTIMIZER_NOT_RESTORED: logging.WARNING,
    names.EVENT_CHECKPOINT_BAD: logging.ERROR,
    names.EVENT_CHECKPOINT_SKIPPED: logging.WARNING,
    names.EVENT_MASS_FAILURE: logging.ERROR,
    names.EVENT_MASS_OVER: logging.WARNING,
    names.EVENT_CHECKPOINT_SAVED: logging.DEBUG,
    names.EVENT_CHECKPOINT_SAVE_FAILED: logging.WARNING,
    names.EVENT_CHECKPOINT_DELETED: logging.INFO,
    names.EVENT_CHECKPOINT_DELETE_FAILED: logging.WARNING,
    names.EVENT_CHECKPOINT_RENEWED: logging.INFO,
    names.EVENT_CHECKPOINT_RENEWAL_FAILED: logging.WARNING,
    names.EVENT_RETENTION_FAILED: logging.WARNING,
    names.EVENT_SAMPLER_SAVED: logging.DEBUG,
    names.EVENT_CHECKPOINT_EXPORTED: logging.INFO,
    names.EVENT_CHECKPOINT_PUBLISHED: logging.INFO,
    names.EVENT_PUBLISH_FAILED: logging.WARNING,
    names.EVENT_CONTINUED: logging.INFO,
    names.EVENT_JOB_TRY: logging.INFO,
}


_GIVEN_UP = frozenset({names.EVENT_EXHAUSTED, names.EVENT_GAVE_UP})

# Of the tree's events, those its Reporter does not log itself.
_TREE_LEVELS: Mapping[type[SupervisionEvent], int] = {
    ChildStarted: logging.DEBUG,
    ChildReady: logging.DEBUG,
    ChildExited: logging.DEBUG,
    RestartScheduled: logging.WARNING,
    ChildRestarted: logging.INFO,
}


def of_run(run: str) -> str:
    """How a line about a run begins; one about the service, or about all runs, begins with it."""
    return f"run {run}: " if run else ""


class EventSink:
    """Sends each event to the log, the current span, the listener and the streams; never raises.

    A log record has the event's message, and its attributes by telemetry name as ``extra``.
    """

    def __init__(
        self,
        listener: Callable[[RecoveryEvent], object] | None = None,
        *,
        label_runs: bool = False,
    ) -> None:
        self._listener = listener
        self._label_runs = label_runs
        self.quiet_runs: set[str] = set()
        """Runs whose events are logged at DEBUG, except giving up: one event covers them all."""
        self.streams = Streams()
        """The open streams of events."""

    def emit(
        self,
        name: str,
        run: str,
        message: str,
        fields: Mapping[str, AttributeValue] | None = None,
        *,
        repeated: bool = False,
        unusual: bool = False,
    ) -> None:
        """Send an event of a run. Call it in the event loop's thread.

        One that only repeats what the log has said is logged at DEBUG, and one that is unusual at
        WARNING.
        """
        event = RecoveryEvent(name, run, redact(message), dict(redact_value(fields or {})))
        level = logging.DEBUG if repeated else _LEVELS[name]
        if unusual:
            level = max(level, logging.WARNING)
        if run in self.quiet_runs and name not in _GIVEN_UP:
            level = logging.DEBUG
        logger.log(level, "%s%s", of_run(run), event.message, extra=event.as_attributes())
        trace.get_current_span().add_event(name, {**event.fields, names.RUN: run})
        metrics.count(event, label_run=self._label_runs)
        self.streams.put(event)
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("on_event raised for %s; recovery continues", name)

    def lasts(
        self, name: str, run: str, message: str, fields: Mapping[str, AttributeValue]
    ) -> None:
        """What an event has said goes on: it is counted and logged at DEBUG, and is no event.

        An outage of an hour would be ten thousand of them, in the journal as well.
        """
        event = RecoveryEvent(name, run, redact(message), dict(redact_value(fields)))
        logger.debug("%s%s", of_run(run), event.message, extra=event.as_attributes())
        metrics.count(event, label_run=self._label_runs)

    def tree(self, event: SupervisionEvent) -> None:
        """Send an event of the supervision tree; to be given to it as ``on_event``."""
        errors: dict[str, Any] = {
            field.name: redact_error(value)
            for field in fields_of(event)
            if isinstance(value := getattr(event, field.name), BaseException)
        }
        event = replace(event, **errors) if errors else event
        level = _TREE_LEVELS.get(type(event))
        if level is not None and tree_logger.isEnabledFor(level):
            tree_logger.log(
                level,
                "supervisor %s: child %s (incarnation %d): %s",
                event.supervisor,
                event.child,
                event.incarnation,
                event.name.removeprefix("supervision.").replace(".", " ").replace("_", " "),
                extra=event.as_attributes(),
            )
        self.streams.put(event)

    def callback_failed(self, name: str, error: BaseException) -> None:
        """Log an error that a callback of the user's raised, and record it on the span."""
        logger.error("%s raised; recovery continues", name, exc_info=error)
        record(trace.get_current_span(), error, {names.REASON: f"{name} raised"})
