"""Outage: what is said while the service does not answer, and when it is back.

One for all runs of a Supervisor: what polls them, and what recovers them, note what they meet here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tinker_recovery.clock import Reminder
from tinker_recovery.telemetry import EventSink, names

REMIND_S = 5.0
"""Seconds until the first report; each further interval is twice the last, up to an hour."""


class Outage:
    """Whether the service answers, as far as it was asked. On the event loop.

    Args:
        events: Gets the reports.
        monotonic: Seconds of a monotonic clock.
        max_wait_s: For how long a run is kept waiting, for the words.
    """

    def __init__(
        self, events: EventSink, monotonic: Callable[[], float], max_wait_s: float = math.inf
    ) -> None:
        self._events = events
        self._monotonic = monotonic
        self._max_wait_s = max_wait_s
        self._began: float | None = None
        self._reminder = Reminder(REMIND_S)

    def begins(self) -> bool:
        """The service did not answer; whether it did before."""
        if self._began is not None:
            return False
        self._began, self._reminder = self._monotonic(), Reminder(REMIND_S)
        return True

    def lasts(self, run: str, silent_s: float | None) -> None:
        """It has not answered once more; reports that when it is time.

        Args:
            run: The run that was asked about; empty if there were several.
            silent_s: For how long its work has made no progress; None if none is open.
        """
        if self._began is None:
            return
        lasted_s = self._monotonic() - self._began
        if self._reminder.is_due(lasted_s):
            self._events.emit(names.EVENT_WAITING, run, self.waiting(lasted_s, silent_s=silent_s))

    def waiting(self, lasted_s: float, *, silent_s: float | None) -> str:
        """What is said of a service that has not answered for so long."""
        said = "the service does not answer"
        if silent_s is None:
            said = f"the service has not answered for {lasted_s:.0f} s"
        else:
            said = f"no step for {max(lasted_s, silent_s):.0f} s; {said}"
        if math.isinf(self._max_wait_s):
            return said
        return f"{said}; waiting up to {self._max_wait_s:g} s (max_wait_s)"

    def over(self, run: str) -> None:
        """The service has answered; says so once, if it did not for as long as is reported."""
        if self._began is None:
            return
        lasted_s, self._began = self._monotonic() - self._began, None
        if lasted_s >= REMIND_S:
            self._events.emit(
                names.EVENT_SERVICE_BACK, run, f"the service is back after {lasted_s:.0f} s"
            )
