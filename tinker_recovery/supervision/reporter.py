"""Reports what a supervisor does: events to the listener, the serious ones to the log as well.

Events are built only if there is a listener or a log record to carry them. What a listener raises
is logged and goes no further.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypedDict

from tinker_recovery.supervision.events import (
    ChildExited,
    ChildReady,
    ChildRestarted,
    ChildStarted,
    Context,
    CrashReport,
    Escalated,
    Outcome,
    RestartScheduled,
    StopTimedOut,
    SupervisionEvent,
)
from tinker_recovery.supervision.life import Life, Record
from tinker_recovery.supervision.settings import Settings

logger = logging.getLogger("tinker_recovery.supervision")


class _Subject(TypedDict):
    """The fields that every event has."""

    supervisor: str
    child: str
    incarnation: int
    at: float


class Reporter:
    """Reports for one supervisor."""

    __slots__ = ("_listener", "_now", "_supervisor")

    def __init__(self, settings: Settings) -> None:
        self._supervisor = settings.name
        self._listener = settings.on_event
        self._now = settings.monotonic

    def _emit(self, event: SupervisionEvent) -> None:
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("on_event raised for %s; supervision continues", event.name)

    def _subject(self, child: str, incarnation: int, at: float | None = None) -> _Subject:
        return {
            "supervisor": self._supervisor,
            "child": child,
            "incarnation": incarnation,
            "at": self._now() if at is None else at,
        }

    def started(self, life: Life) -> None:
        """An incarnation got its task."""
        if self._listener is not None:
            self._emit(ChildStarted(**self._subject(life.id, life.incarnation)))

    def ready(self, life: Life, *, restarted: bool) -> None:
        """It called ``started()``."""
        if self._listener is None:
            return
        subject = self._subject(life.id, life.incarnation, life.ready_at)
        self._emit(ChildReady(**subject, startup_s=life.ready_at - life.began_at))
        if restarted:
            self._emit(ChildRestarted(**subject, downtime_s=life.ready_at - life.record.down_at))

    def slow_start(self, life: Life, waited_s: float) -> None:
        """A child has not called ``started()`` for long."""
        deadline_s = life.record.spec.start_timeout_s
        logger.warning(
            "supervisor %s: child %s (incarnation %d) has not called started() for %.3g s, and "
            "whatever is started behind it waits; %s",
            self._supervisor,
            life.id,
            life.incarnation,
            waited_s,
            "it has no start_timeout_s, so that may last for ever"
            if deadline_s is None
            else f"after {deadline_s:g} s (start_timeout_s) its start has failed",
        )

    def exited(self, life: Life, outcome: Outcome, error: BaseException | None) -> None:
        """It ended, or was abandoned."""
        if self._listener is not None:
            subject = self._subject(life.id, life.incarnation)
            lived_s = subject["at"] - life.ready_at if life.is_ready else 0.0
            self._emit(ChildExited(**subject, outcome=outcome, error=error, lived_s=lived_s))

    def crash(self, life: Life, context: Context, reason: BaseException) -> None:
        """A child failed."""
        if self._listener is None and not logger.isEnabledFor(logging.ERROR):
            return
        spec = life.record.spec
        report = CrashReport(
            **self._subject(life.id, life.incarnation),
            context=context,
            reason=reason,
            restart=spec.restart,
            shutdown=spec.shutdown,
            type=spec.type,
        )
        logger.error(
            "supervisor %s: child %s (incarnation %d), %s: %r",
            self._supervisor,
            life.id,
            life.incarnation,
            context.replace("_", " "),
            reason,
            exc_info=reason,
            extra=report.as_attributes(),
        )
        self._emit(report)

    def scheduled(self, record: Record, delay_s: float, restarts: Callable[[Record], int]) -> None:
        """A child will be started again."""
        if self._listener is not None:
            self._emit(
                RestartScheduled(
                    **self._subject(record.spec.id, record.incarnations),
                    delay_s=delay_s,
                    failures=record.failures,
                    restarts=restarts(record),
                )
            )

    def stop_timed_out(self, life: Life, *, abandoned: bool) -> None:
        """A child did not stop in time."""
        subject = self._subject(life.id, life.incarnation)
        waited_s = subject["at"] - life.stopping_at
        event = StopTimedOut(**subject, waited_s=waited_s, abandoned=abandoned)
        logger.error(
            "supervisor %s: child %s (incarnation %d) did not stop within %.3g s; %s",
            self._supervisor,
            life.id,
            life.incarnation,
            waited_s,
            "it ignores cancellation and is abandoned, still running"
            if abandoned
            else "it is cancelled again",
            extra=event.as_attributes(),
        )
        self._emit(event)

    def escalated(self, offender: Record | None, error: BaseException, restarts: int) -> None:
        """The supervisor gave up."""
        child, incarnation = (
            ("", 0) if offender is None else (offender.spec.id, offender.incarnations)
        )
        event = Escalated(**self._subject(child, incarnation), error=error, restarts=restarts)
        logger.error(
            "supervisor %s stops its children and gives up: %s",
            self._supervisor,
            error,
            extra=event.as_attributes(),
        )
        self._emit(event)

    def abandoned_ended(self, life: Life, error: BaseException | None) -> None:
        """A child that had been abandoned has ended after all; nothing depends on it any more."""
        logger.warning(
            "supervisor %s: child %s (incarnation %d), abandoned before, has ended: %r",
            self._supervisor,
            life.id,
            life.incarnation,
            error,
        )
