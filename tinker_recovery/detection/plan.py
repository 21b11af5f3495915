"""What to ask of the service about many runs, and when: pure decisions, no request is made here.

The service lists runs newest first, a hundred to a page. For many runs the pages are cheaper than
one question each; for a few, or for old ones far down a long list, they are not. Runs move between
pages while these are read: a new one pushes all others down, so an entry may be seen twice, and one
that is deleted pulls them up, so an entry may be missed. What was missed is asked for by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

FEW = 8
"""Up to so many runs are asked for one by one, all at once."""

SLACK = 2
"""Pages read beyond those in which the runs were last time: new runs push the old ones down."""

RENEW_AFTER = 20
"""Looks after which the whole list is read again, as far as that pays."""

JITTER = 0.1
"""Each interval is shortened by a random share of up to this much, never lengthened."""

BRISK = 4
"""How many times sooner runs are looked at that are new, or near an incident."""

SOONER = 30
"""How many times sooner a service that is out of reach is asked again."""

SPREAD = 0.2
"""The share of an interval that the pages of one look are spread over."""

SPREAD_REST = 0.1
"""And what is asked for one by one behind them."""


@dataclass(frozen=True, slots=True)
class Census:
    """Where the watched runs were when the list was last read.

    Attributes:
        found: How many of them were first seen on each page.
        unlisted: How many were on none.
        age: Looks since then.
    """

    found: Sequence[int] = ()
    unlisted: int = 0
    age: int = 0

    def older(self) -> Census | None:
        """The same one look later; None once it is too old to be relied on."""
        age = self.age + 1
        return None if age >= RENEW_AFTER else Census(self.found, self.unlisted, age)


def pages_worth_reading(wanted: int, census: Census | None) -> int:
    """How many pages to read before the rest is asked for one by one; 0 for none.

    With no census at most as many as there are runs, so a look at worst costs twice one question
    each, and the next one knows better.
    """
    if wanted <= FEW:
        return 0
    if census is None:
        return wanted
    # What came since then is new to us, and most likely to the service: on the first page.
    new = max(0, wanted - sum(census.found) - census.unlisted)
    found = [census.found[0] + new, *census.found[1:]] if census.found else [new]
    seen = [0, *itertools.accumulate(found)]
    return min(range(len(seen)), key=lambda pages: pages + wanted - seen[pages])


class Sweep:
    """One look at many runs: which page is next, and who is still missing in the end.

    Args:
        wanted: The Tinker run ids to see.
        census: Where they were last time.
        page: Entries on a page.
        at_most: The most pages to read; None for as many as pay.
    """

    def __init__(
        self,
        wanted: Iterable[str],
        census: Census | None,
        *,
        page: int,
        at_most: int | None = None,
    ) -> None:
        self._missing = dict.fromkeys(wanted)
        self._wanted = len(self._missing)
        self._page = page
        self._planned = pages_worth_reading(self._wanted, census)
        self._limit = self._planned + (SLACK if census is not None and self._planned else 0)
        if at_most is not None:
            self._limit = min(self._limit, at_most)
        self._found: dict[int, int] = {}
        self._asked = 0
        self._total = math.inf
        self._census = census

    @property
    def planned(self) -> int:
        """How many requests it is going to take, as far as is known."""
        pages = min(self._planned, math.ceil(min(self._total, 1e9) / self._page))
        return max(1, pages or self._wanted)

    def next_offset(self) -> int | None:
        """Where the next page begins; None if no further page is worth its request."""
        offset = self._asked * self._page
        if not self._missing or self._asked >= self._limit or offset >= self._total:
            return None
        self._asked += 1
        return offset

    def note_page(self, offset: int, ids: Sequence[str], total: int) -> list[str]:
        """A page was read; returns the wanted ones on it that are seen for the first time."""
        # A list that grows while it is read gets one page longer; an empty page ends it anyhow.
        self._total = max(total, 0 if math.isinf(self._total) else self._total)
        if not ids:
            self._total = min(self._total, offset)
        fresh = [each for each in dict.fromkeys(ids) if each in self._missing]
        for each in fresh:
            del self._missing[each]
        self._found[offset // self._page] = len(fresh)
        return fresh

    def missing(self) -> list[str]:
        """Who has been on no page so far."""
        return list(self._missing)

    def census(self) -> Census | None:
        """What the next look may rely on, once this one is over."""
        if self._wanted <= FEW:
            return self._census
        missing = len(self._missing)
        known = self._census
        if known is not None:
            expected = self._planned + self._wanted - sum(known.found[: self._planned])
            # They have moved: the next look reads as far as it takes to find them again.
            return None if self._asked + missing > 1.5 * expected + FEW else known.older()
        found = [self._found.get(page, 0) for page in range(self._asked)]
        return Census(found, missing)


class Pace:
    """When to look next, and at whom.

    Every run is looked at once in each interval at the latest. Those first seen in the last full
    look, and all of them near an incident, are looked at sooner; nobody is later because of it.

    Args:
        interval_s: Seconds between two looks at all runs.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._full_at: float | None = None
        self._began = 0.0
        self._brisk_looks = 0
        self._incident = False
        self._many = False
        self._known: set[str] = set()
        self._new: set[str] = set()

    def wait_s(self, now: float, random: float, *, out_of_reach: bool) -> float:
        """Seconds until the next look, where ``random`` in [0, 1) decides the jitter."""
        if out_of_reach:
            # What a service holds when it comes back has to be looked at before much is built on
            # it.
            return self._interval_s / SOONER
        whole_s = self._interval_s * (1.0 - JITTER * random)
        if self._many:
            # Whoever comes last in a look that is spread must not be later than the interval, and
            # that also where the look before was over sooner, or did not know of it.
            whole_s *= 1.0 - SPREAD - SPREAD_REST
        if self._full_at is None:
            return whole_s
        # From beginning to beginning, so that a slow service does not stretch the interval.
        due = self._full_at + (whole_s / BRISK if self._incident else whole_s)
        if self._is_brisk:
            due = min(due, self._began + whole_s / BRISK)
        return max(self._interval_s / SOONER, due - now)

    @property
    def _is_brisk(self) -> bool:
        return bool(self._new) and self._brisk_looks < BRISK - 1

    def begin(self, now: float, watched: Collection[str]) -> set[str] | None:
        """A look begins; returns whom to look at, or None for everybody."""
        self._began = now
        if self._full_at is not None and self._is_brisk and not self._incident:
            slowest_s = self._interval_s * (1.0 - JITTER)
            if self._many:
                slowest_s *= 1.0 - SPREAD - SPREAD_REST
            new = self._new.intersection(watched)
            if new and now < self._full_at + slowest_s:
                self._brisk_looks += 1
                return new
        self._full_at = now
        self._many = len(watched) > FEW
        self._brisk_looks = 0
        self._new = set(watched) - self._known
        self._known = set(watched)
        return None

    def end(self, *, faults: int) -> None:
        """A look is over, and so many runs were found at fault."""
        self._incident = faults > 0
