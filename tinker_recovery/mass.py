"""Telling of a mass failure: once when it begins, once when it is over, and not of each run."""

from __future__ import annotations

from collections.abc import Callable

from tinker_recovery.admission import MassFailures
from tinker_recovery.clock import Clock
from tinker_recovery.faults import Fault
from tinker_recovery.places import Places
from tinker_recovery.telemetry import EventSink, names

WINDOW_S = 10.0
"""Runs that fail alike within this time, or within one poll, may have failed together."""


class MassTeller:
    """Follows the faults in hand, tells of mass failures and has recoveries go carefully in them.

    Args:
        places: Where recoveries wait for their turn.
        watched: How many runs there are.
        poll_interval_s: Within which a poll tells of what happened at once.
        events: Where it is told.
        clock: Time.
    """

    def __init__(
        self,
        places: Places,
        *,
        watched: Callable[[], int],
        poll_interval_s: float,
        events: EventSink,
        clock: Clock,
    ) -> None:
        self._places = places
        self._watched = watched
        self._events = events
        self._clock = clock
        self._failures = MassFailures(max(WINDOW_S, poll_interval_s))
        events.hushed.clear()

    def began(self, fault: Fault) -> None:
        """A fault is taken in hand."""
        kind, now, watched = fault.row.kind.value, self._clock.monotonic(), self._watched()
        mass = self._failures.began(fault.run, kind, now=now, watched=watched)
        if mass is not None:
            self._events.emit(
                names.EVENT_MASS_FAILURE,
                "",
                f"{mass.count} of {watched} runs failed alike ({kind}) within "
                f"{now - mass.began_at:.1f} s, which is the backend's doing: one recovery goes "
                "ahead and the others follow when it succeeds; until it is over the log tells of "
                "single runs at level DEBUG, but for those given up",
                {names.RUNS: mass.count, names.FAULT_KIND: kind},
            )
            self._events.hushed |= mass.members
            self._places.be_careful(careful=True)
        elif self._failures.has(fault.run, kind):
            self._events.hushed.add(fault.run)

    def ended(self, fault: Fault, *, recovered: bool) -> None:
        """A fault has been dealt with."""
        kind = fault.row.kind.value
        mass = self._failures.ended(fault.run, kind, recovered=recovered)
        self._events.hushed.discard(fault.run)
        if mass is None:
            return
        self._events.emit(
            names.EVENT_MASS_OVER,
            "",
            f"{mass.recovered} of the {mass.count} runs that failed alike ({kind}) have recovered, "
            f"{self._clock.monotonic() - mass.began_at:.1f} s after the first failed",
            {names.RUNS: mass.count, names.RECOVERIES: mass.recovered, names.FAULT_KIND: kind},
        )
        self._places.be_careful(careful=self._failures.members > 0)
