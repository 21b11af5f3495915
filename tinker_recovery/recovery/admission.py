"""Which recoveries go ahead, in what order, and how a mass incident is noticed and handled.

Two recoveries at once, and one more with each that succeeds, up to what the policy allows; once
none is left, two again. A mass incident (a backend that takes many runs
with it) is one incident and not hundreds: one recovery goes ahead as a probe, the others follow
once it has succeeded, one more at a time. Until then a recovery that fails is held against the
backend and not against its run, and all of them back off together.

:class:`MassIncidents` and :class:`Admission` decide, without I/O. :class:`Slots` has recoveries
wait for their turn, and :class:`MassReporter` reports a mass incident once instead of run by run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.faults import Fault, Kind
from tinker_recovery.telemetry import EventSink, names, phase

WINDOW_S = 10.0
"""Runs that fail alike within this time, or within one poll, may have failed together."""

MASS_RUNS = 10
"""Least runs in a mass incident."""

MASS_SHARE = 0.0025
"""Least share of all runs in a mass incident: of ten thousand runs that fail twice a day, some
seven do so within half a minute with nothing in common."""

AT_FIRST = 2
"""Recoveries at once before any has succeeded: what a service can take is only seen by trying."""

OLDEST_EVERY = 4
"""Every fourth slot goes to the oldest waiter, however urgent the others are."""


_NOT_THE_BACKENDS = frozenset({Kind.GROUP_REWOUND, Kind.PROCESS_LOST, Kind.STOPPED})
"""By the fault of another run, which is counted; and by the end of a process that had many runs."""


@dataclass(slots=True)
class MassIncident:
    """Many runs that failed alike at about the same time.

    Attributes:
        kind: How they failed.
        members: Those that are not dealt with yet.
        count: How many there were in all.
        recovered: How many are back.
        began_at: When the first of them was noticed.
    """

    kind: str
    members: set[str]
    count: int
    began_at: float
    recovered: int = 0


class MassIncidents:
    """Tells mass incidents from independent failures.

    Args:
        window_s: Seconds within which the faults have to be detected. What polls detect is within
            one interval.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._recent: dict[str, deque[tuple[float, str]]] = {}
        self._in_progress: dict[str, set[str]] = {}
        self._open: dict[str, MassIncident] = {}

    def began(self, run: str, kind: str, *, now: float, watched: int) -> MassIncident | None:
        """A run has failed; returns the mass incident that begins with it, if one does.

        Args:
            run: Its name.
            kind: How it failed.
            now: Monotonic seconds.
            watched: How many runs there are.
        """
        self._in_progress.setdefault(kind, set()).add(run)
        known = self._open.get(kind)
        if known is not None:
            known.count += run not in known.members
            known.members.add(run)
            return None
        recent = self._recent.setdefault(kind, deque())
        recent.append((now, run))
        while recent[0][0] < now - self._window_s:
            recent.popleft()
        alike = {name for _, name in recent}
        if len(alike) < max(MASS_RUNS, MASS_SHARE * watched):
            return None
        members = alike & self._in_progress[kind]
        mass = self._open[kind] = MassIncident(kind, members, len(members), recent[0][0])
        recent.clear()
        return mass

    def ended(self, run: str, kind: str, *, recovered: bool) -> MassIncident | None:
        """A run is recovered or given up; returns the mass incident that it ends, if any."""
        self._in_progress.get(kind, set()).discard(run)
        mass = self._open.get(kind)
        if mass is None or run not in mass.members:
            return None
        mass.members.discard(run)
        mass.recovered += recovered
        if mass.members:
            return None
        del self._open[kind]
        return mass

    def has(self, run: str, kind: str) -> bool:
        """Whether this run is part of a mass incident."""
        mass = self._open.get(kind)
        return mass is not None and run in mass.members

    @property
    def members(self) -> int:
        """Runs in mass incidents that are neither recovered nor given up."""
        return sum(len(mass.members) for mass in self._open.values())


@dataclass(eq=False, slots=True)
class Ticket:
    """One recovery that asks for a slot.

    Attributes:
        left: Attempts its run has left.
        detected_at: When its fault was noticed.
        tries: How often it has been tried before.
        admitted: Counts admissions; 0 while it waits.
    """

    left: int
    detected_at: float
    tries: int
    admitted: int = 0


class Admission:
    """Decides which recovery gets the next slot.

    The run with the fewest attempts left goes first, and of equals the one with the oldest fault;
    every fourth slot goes to the oldest waiter. During a mass incident, one at a time at first.

    Args:
        most: The most recoveries at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = self._at_first = min(AT_FIRST, most)
        self._careful = False
        self._closed = False
        self._waiting: list[Ticket] = []
        """In the order of asking, so that of equals the first to ask is the first found."""
        self._in_flight: set[Ticket] = set()
        self._admitted = 0
        self._failures = 0
        self._last_success = 0

    @property
    def in_flight(self) -> int:
        """How many recoveries are under way."""
        return len(self._in_flight)

    @property
    def limit(self) -> int:
        """How many may be under way now."""
        return 0 if self._closed else self._limit

    def be_careful(self, *, careful: bool) -> None:
        """Probe with one recovery at a time; or again let :data:`AT_FIRST` go, or more."""
        if careful and not self._careful:
            self._limit, self._failures = 1, 0
        if not careful:
            self._limit, self._closed = max(self._limit, self._at_first), False
        self._careful = careful

    def ask(self, ticket: Ticket) -> None:
        """A recovery wants a slot."""
        self._waiting.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """It needs no slot any more, whether it had one or not."""
        self._in_flight.discard(ticket)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        if not (self._careful or self._in_flight or self._waiting):
            self._limit = self._at_first

    def admit(self) -> list[Ticket]:
        """Admit whoever fits now; returns them."""
        admitted = []
        while self._waiting and self.in_flight < self.limit:
            ticket = self._next()
            self._waiting.remove(ticket)
            self._admitted += 1
            ticket.admitted = self._admitted
            self._in_flight.add(ticket)
            admitted.append(ticket)
        return admitted

    def _next(self) -> Ticket:
        if self._careful and self._limit == 1:
            # The next probe is one that has not tried: what failed may be that run's own trouble.
            return min(self._waiting, key=lambda ticket: ticket.tries)
        if self._admitted % OLDEST_EVERY == OLDEST_EVERY - 1:
            return self._waiting[0]
        return min(self._waiting, key=lambda ticket: (ticket.left, ticket.detected_at))

    def succeeded(self) -> None:
        """A recovery went well: the service can do it, so one more may try."""
        self._last_success = self._admitted
        self._failures = 0
        self._closed = False
        self._limit = min(self._most, self._limit + 1)

    def failed(self, ticket: Ticket) -> int:
        """A recovery did not; returns how many probes in a row have failed, 0 if it is its own.

        During a mass incident it is the backend's, unless another was admitted later and went well.
        """
        if not self._careful or self._last_success >= ticket.admitted:
            return 0
        if not self._closed:  # else it began together with the one that closed it
            self._failures += 1
        self._closed, self._limit = True, 1
        return self._failures

    def reopen(self) -> None:
        """All have backed off for long enough."""
        self._closed = False


class Slot:
    """A slot that one try of a recovery waits for: ``async with slot:``.

    Cancelling the wait gives it up.

    Attributes:
        backend_blamed: Whether the try failed, and the backend is to blame for it.
    """

    def __init__(self, slots: Slots, ticket: Ticket) -> None:
        self._slots = slots
        self.ticket = ticket
        self.admitted = anyio.Event()
        self.backend_blamed = False

    async def __aenter__(self) -> Self:
        self._slots.ask(self)
        if not self.admitted.is_set():
            try:
                with phase(names.SPAN_QUEUE, {names.TRY: self.ticket.tries}):
                    await self.admitted.wait()
            except BaseException:
                self._slots.leave(self)
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._slots.leave(self)

    def succeeded(self) -> None:
        """The try went well."""
        self._slots.succeeded()

    def failed(self) -> None:
        """The service could not do it; another time it may."""
        self.backend_blamed = self._slots.failed(self.ticket)


class Slots:
    """The slots for recoveries; what is asked of it, other than :meth:`serve`, never awaits.

    Args:
        most: The most recoveries at once.
        backoff_s: Seconds that everybody backs off for after so many probes failed in a row.
        sleep: Waits that long.
    """

    def __init__(
        self,
        most: int,
        *,
        backoff_s: Callable[[int], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._backoff_s = backoff_s
        self._sleep = sleep
        self._admission = Admission(most)
        self._asking: dict[Ticket, Slot] = {}
        self._closed = anyio.Event()
        self._closed_for_s = 0.0

    def slot(self, *, left: int, detected_at: float, tries: int) -> Slot:
        """A slot to wait for; see :class:`Ticket`."""
        return Slot(self, Ticket(left, detected_at, tries))

    def ask(self, slot: Slot) -> None:
        """A slot is wanted."""
        self._asking[slot.ticket] = slot
        self._admission.ask(slot.ticket)
        self._admit()

    def leave(self, slot: Slot) -> None:
        """A slot is free again, or not wanted any more."""
        self._asking.pop(slot.ticket, None)
        self._admission.leave(slot.ticket)
        self._admit()

    def succeeded(self) -> None:
        """A try went well."""
        self._admission.succeeded()
        self._admit()

    def failed(self, ticket: Ticket) -> bool:
        """A try failed; whether the backend is to blame, and everybody backs off."""
        failures = self._admission.failed(ticket)
        if failures:
            self._closed_for_s = self._backoff_s(failures)
            self._closed.set()
        return failures > 0

    def be_careful(self, *, careful: bool) -> None:
        """See :meth:`Admission.be_careful`."""
        self._admission.be_careful(careful=careful)
        self._admit()

    def _admit(self) -> None:
        for ticket in self._admission.admit():
            self._asking.pop(ticket).admitted.set()

    async def serve(self) -> None:
        """Admit recoveries again after each common backoff, until cancelled."""
        while True:
            await self._closed.wait()
            self._closed = anyio.Event()
            await self._sleep(self._closed_for_s)
            self._admission.reopen()
            self._admit()


class MassReporter:
    """Follows the faults being recovered, reports mass incidents, and slows recoveries in them."""

    def __init__(
        self,
        slots: Slots,
        *,
        watched: Callable[[], int],
        poll_interval_s: float,
        events: EventSink,
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._watched = watched
        self._events = events
        self._clock = clock
        self._failures = MassIncidents(max(WINDOW_S, poll_interval_s))
        events.quiet_runs.clear()

    def began(self, fault: Fault) -> None:
        """A recovery from a fault begins."""
        if fault.kind in _NOT_THE_BACKENDS:
            return
        kind, now, watched = fault.kind.value, self._clock.monotonic(), self._watched()
        mass = self._failures.began(fault.run, kind, now=now, watched=watched)
        if mass is not None:
            self._events.emit(
                names.EVENT_MASS_FAILURE,
                "",
                f"{mass.count} of {watched} runs failed alike ({kind}) within "
                f"{now - mass.began_at:.1f} s, so the backend has failed: one recovery goes "
                "ahead and the others follow when it succeeds; until then single runs are logged "
                "at level DEBUG, except those given up",
                {names.RUNS: mass.count, names.FAULT_KIND: kind},
            )
            self._events.quiet_runs |= mass.members
            self._slots.be_careful(careful=True)
        elif self._failures.has(fault.run, kind):
            self._events.quiet_runs.add(fault.run)

    def ended(self, fault: Fault, *, recovered: bool) -> None:
        """The recovery from a fault is over."""
        kind = fault.kind.value
        mass = self._failures.ended(fault.run, kind, recovered=recovered)
        self._events.quiet_runs.discard(fault.run)
        if mass is None:
            return
        self._events.emit(
            names.EVENT_MASS_OVER,
            "",
            f"{mass.recovered} of the {mass.count} runs that failed alike ({kind}) have recovered, "
            f"{self._clock.monotonic() - mass.began_at:.1f} s after the first failed",
            {names.RUNS: mass.count, names.RECOVERIES: mass.recovered, names.FAULT_KIND: kind},
        )
        self._slots.be_careful(careful=self._failures.members > 0)
