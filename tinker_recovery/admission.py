"""Which recoveries go ahead, and in what order, when more wait than the policy allows at once.

Decisions without I/O; the places themselves are in ``places``.

A mass failure, a backend that takes many runs with it, is one incident and not hundreds: one
recovery goes ahead as a probe, the others follow once it has succeeded, one more at a time. Until
then a recovery that fails is held against the backend and not against its run, and all of them back
off together.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MASS_RUNS = 10
"""So many runs at least make a mass failure."""

MASS_SHARE = 0.0025
"""And at least this share of all that are watched: of ten thousand runs that fail twice a day, some
seven do so within half a minute with nothing in common."""

OLDEST_EVERY = 4
"""Each so manyth place goes to whoever has waited longest, however urgent the others are."""


@dataclass(slots=True)
class MassFailure:
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


class MassFailures:
    """Tells a mass failure from runs that merely fail.

    Args:
        window_s: Seconds within which they have to be noticed. What a poll tells of comes within
            one interval.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._recent: dict[str, deque[tuple[float, str]]] = {}
        self._in_hand: dict[str, set[str]] = {}
        self._open: dict[str, MassFailure] = {}

    def began(self, run: str, kind: str, *, now: float, watched: int) -> MassFailure | None:
        """A run has failed; returns the mass failure that this makes of it and others, if new.

        Args:
            run: Its name.
            kind: How it failed.
            now: Monotonic seconds.
            watched: How many runs there are.
        """
        self._in_hand.setdefault(kind, set()).add(run)
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
        members = alike & self._in_hand[kind]
        mass = self._open[kind] = MassFailure(kind, members, len(members), recent[0][0])
        recent.clear()
        return mass

    def ended(self, run: str, kind: str, *, recovered: bool) -> MassFailure | None:
        """A run has been dealt with; returns the mass failure that is over with it."""
        self._in_hand.get(kind, set()).discard(run)
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
        """Whether this run is part of a mass failure."""
        mass = self._open.get(kind)
        return mass is not None and run in mass.members

    @property
    def members(self) -> int:
        """How many runs are part of one and not dealt with."""
        return sum(len(mass.members) for mass in self._open.values())


@dataclass(eq=False, slots=True)
class Ticket:
    """One recovery that asks for a place.

    Attributes:
        left: Attempts its run has left.
        detected_at: When its fault was noticed.
        tries: How often it has been tried before.
        order: Its place in the order of asking.
        admitted: Counts admissions; 0 while it waits.
    """

    left: int
    detected_at: float
    tries: int
    order: int = 0
    admitted: int = 0


class Admission:
    """Who goes next: urgent first, nobody forgotten, and carefully during a mass failure.

    Urgent is a run with few attempts left, and of equals the one whose fault is the oldest.

    Args:
        most: The most recoveries at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = most
        self._careful = False
        self._closed = False
        self._waiting: list[Ticket] = []
        self._in_flight: set[Ticket] = set()
        self._asked = itertools.count(1)
        self._admitted = 0
        self._failures = 0
        self._last_success = 0

    @property
    def in_flight(self) -> int:
        """How many recoveries are under way."""
        return len(self._in_flight)

    @property
    def limit(self) -> int:
        """How many may be, for now."""
        return 0 if self._closed else self._limit

    def be_careful(self, *, careful: bool) -> None:
        """A mass failure has begun, or the last one is over."""
        if careful and not self._careful:
            self._limit, self._failures = 1, 0
        if not careful:
            self._limit, self._closed = self._most, False
        self._careful = careful

    def ask(self, ticket: Ticket) -> None:
        """A recovery wants a place."""
        ticket.order = next(self._asked)
        self._waiting.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """It has no use for one any more, whether it had one or not."""
        self._in_flight.discard(ticket)
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def admit(self) -> list[Ticket]:
        """Whose turn it is now."""
        admitted = []
        while self._waiting and self.in_flight < self.limit:
            ticket = min(self._waiting, key=self._rank())
            self._waiting.remove(ticket)
            self._admitted += 1
            ticket.admitted = self._admitted
            self._in_flight.add(ticket)
            admitted.append(ticket)
        return admitted

    def _rank(self) -> Callable[[Ticket], tuple[float, ...]]:
        if self._careful and self._limit == 1:
            # The next probe is one that has not tried: what failed may be that run's own trouble.
            return lambda ticket: (ticket.tries, ticket.order)
        if self._admitted % OLDEST_EVERY == OLDEST_EVERY - 1:
            return lambda ticket: (ticket.order,)
        return lambda ticket: (ticket.left, ticket.detected_at, ticket.order)

    def succeeded(self) -> None:
        """A recovery went well: the service can do it, so one more may try."""
        self._last_success = self._admitted
        self._failures = 0
        self._closed = False
        self._limit = min(self._most, self._limit + 1)

    def failed(self, ticket: Ticket) -> int:
        """A recovery did not; returns how many probes in a row have failed, 0 if it is its own.

        During a mass failure it is the backend's, unless another was admitted later and went well.
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
