"""The voice of a supervisor: events to the listener, the worst of them to the log.

Nothing is built for a listener that is not there, and nothing a listener raises goes further.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tinker_recovery.supervision.events import (
    ChildExited,
    ChildReady,
    ChildRestarted,
    ChildStarted,
    Context,
    CrashReport,
    Escalated,
    Listener,
    Outcome,
    RestartScheduled,
    StopTimedOut,
    SupervisionEvent,
)
from tinker_recovery.supervision.life import Life, Record

logger = logging.getLogger("tinker_recovery.supervision")


class Reporter:
    """Speaks for one supervisor."""

    __slots__ = ("_listener", "_now", "_supervisor")

    def __init__(
        self, supervisor: str, listener: Listener | None, now: Callable[[], float]
    ) -> None:
        self._supervisor = supervisor
        self._listener = listener
        self._now = now

    def _tell(self, event: SupervisionEvent) -> None:
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("on_event raised for %s; supervision goes on", event.name)

    def started(self, life: Life) -> None:
        """An incarnation was given its task."""
        if self._listener is not None:
            self._tell(
                ChildStarted(
                    supervisor=self._supervisor,
                    child=life.id,
                    incarnation=life.incarnation,
                    at=self._now(),
                )
            )

    def ready(self, life: Life, *, restarted: bool) -> None:
        """It called ``started()``."""
        if self._listener is not None:
            self._tell(
                ChildReady(
                    supervisor=self._supervisor,
                    child=life.id,
                    incarnation=life.incarnation,
                    at=life.ready_at,
                    startup_s=life.ready_at - life.began_at,
                )
            )
            if restarted:
                self._tell(
                    ChildRestarted(
                        supervisor=self._supervisor,
                        child=life.id,
                        incarnation=life.incarnation,
                        at=life.ready_at,
                        downtime_s=life.ready_at - life.record.down_at,
                    )
                )

    def exited(self, life: Life, outcome: Outcome, error: BaseException | None) -> None:
        """It ended, or was given up."""
        if self._listener is not None:
            now = self._now()
            self._tell(
                ChildExited(
                    supervisor=self._supervisor,
                    child=life.id,
                    incarnation=life.incarnation,
                    at=now,
                    outcome=outcome,
                    error=error,
                    lived_s=now - life.ready_at if life.is_ready else 0.0,
                )
            )

    def crash(self, life: Life, context: Context, reason: BaseException) -> None:
        """A child went wrong."""
        if self._listener is None and not logger.isEnabledFor(logging.ERROR):
            return
        spec = life.record.spec
        report = CrashReport(
            supervisor=self._supervisor,
            child=life.id,
            incarnation=life.incarnation,
            at=self._now(),
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
        self._tell(report)

    def scheduled(self, record: Record, delay_s: float, restarts: Callable[[], int]) -> None:
        """A child will be started again."""
        if self._listener is not None:
            self._tell(
                RestartScheduled(
                    supervisor=self._supervisor,
                    child=record.spec.id,
                    incarnation=record.incarnations,
                    at=self._now(),
                    delay_s=delay_s,
                    failures=record.failures,
                    restarts=restarts(),
                )
            )

    def stop_timed_out(self, life: Life, *, abandoned: bool) -> None:
        """A child did not stop in time."""
        now = self._now()
        event = StopTimedOut(
            supervisor=self._supervisor,
            child=life.id,
            incarnation=life.incarnation,
            at=now,
            waited_s=now - life.stopping_at,
            abandoned=abandoned,
        )
        logger.error(
            "supervisor %s: child %s (incarnation %d) did not stop within %.3g s; %s",
            self._supervisor,
            life.id,
            life.incarnation,
            now - life.stopping_at,
            "it ignores cancellation and is left behind, still running"
            if abandoned
            else "it is cancelled again",
            extra=event.as_attributes(),
        )
        self._tell(event)

    def escalated(self, offender: Record | None, error: BaseException, restarts: int) -> None:
        """The supervisor gave up."""
        event = Escalated(
            supervisor=self._supervisor,
            child="" if offender is None else offender.spec.id,
            incarnation=0 if offender is None else offender.incarnations,
            at=self._now(),
            error=error,
            restarts=restarts,
        )
        logger.error(
            "supervisor %s stops its children and gives up: %s",
            self._supervisor,
            error,
            extra=event.as_attributes(),
        )
        self._tell(event)

    def came_back(self, life: Life, error: BaseException | None) -> None:
        """A child that had been abandoned has ended after all; nothing depends on it any more."""
        logger.warning(
            "supervisor %s: child %s (incarnation %d), abandoned before, has ended: %r",
            self._supervisor,
            life.id,
            life.incarnation,
            error,
        )
