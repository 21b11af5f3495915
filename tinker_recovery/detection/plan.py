"""What to ask the service about many runs, and when: pure decisions without requests.

The service lists runs newest first, a hundred to a page. For many runs, pages are cheaper than one
request each; for a few, or for old ones far down a long list, they are not. The list shifts while
its pages are read: a new run pushes the others down, so an entry may be seen twice, and a deleted
one pulls them up, so an entry may be missed. Missed runs are asked for one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

FEW = 8
"""Up to this many runs are asked for one by one, all at once."""

SLACK = 2
"""Pages read beyond those the runs were on last time: new runs push the old ones down."""

RENEW_AFTER = 20
"""Full polls after which the pages are counted afresh."""

JITTER = 0.1
"""Each interval is shortened by a random share of up to this much, never lengthened."""

QUICK_FACTOR = 4
"""How many times more often new runs, and all runs near an incident, are polled."""

RETRY_FACTOR = 30
"""How many times sooner a service that is out of reach is polled again."""

URGENT_S = 1.0
"""The first gap between two questions about a run that cannot wait for the next poll."""

SPREAD_PAGES = 0.2
"""The share of an interval over which the pages of one poll are spread."""

SPREAD_SINGLE = 0.1
"""The share of an interval over which the requests for single runs behind them are spread."""


_OTHER = "not among those that are missing"


@dataclass(frozen=True, slots=True)
class PageCounts:
    """On which pages the watched runs were when the list was last read in full.

    Attributes:
        found: How many of them were first seen on each page.
        unlisted: How many were on no page.
        age: Full polls since then.
    """

    found: Sequence[int]
    unlisted: int
    age: int = 0

    def older(self) -> PageCounts | None:
        """The same one poll later; None once it is too old to be relied on."""
        age = self.age + 1
        return None if age >= RENEW_AFTER else PageCounts(self.found, self.unlisted, age)


def pages_worth_reading(wanted: int, counts: PageCounts | None) -> int:
    """How many pages to read before the remaining runs are asked for one by one; 0 for none.

    Without counts at most as many pages as there are runs, so at worst a poll costs twice one
    request each, and the next one has counts.
    """
    if wanted <= FEW:
        return 0
    if counts is None:
        return wanted
    # Runs added since then are most likely new to the service as well: on the first page.
    new = max(0, wanted - sum(counts.found) - counts.unlisted)
    found = [counts.found[0] + new, *counts.found[1:]] if counts.found else [new]
    seen = [0, *itertools.accumulate(found)]
    return min(range(len(seen)), key=lambda pages: pages - seen[pages])


class UrgentPolls:
    """When to ask about runs that cannot wait for the next poll: at once, then less and less often.

    Args:
        interval_s: The longest gap, which is that between two polls.
    """

    def __init__(self, interval_s: float) -> None:
        self._longest_s = interval_s
        self._next: dict[str, tuple[float, float]] = {}

    def due(self, now: float, urgent: Iterable[str]) -> list[str]:
        """Which of the runs that are urgent now to ask about; forgets those that are not."""
        due = []
        known, self._next = self._next, {}
        for run in urgent:
            at, gap_s = known.get(run, (now, min(URGENT_S, self._longest_s)))
            if now >= at:
                due.append(run)
                at, gap_s = now + gap_s, min(2 * gap_s, self._longest_s)
            self._next[run] = at, gap_s
        return due


class PagePoll:
    """One poll of many runs by pages: which page is next, and which runs are still missing.

    Args:
        wanted: The Tinker run ids to see.
        counts: Where they were last time.
        page: Entries on a page.
        at_most: The most pages to read; None for as many as are worth it.
    """

    def __init__(
        self,
        wanted: Iterable[str],
        counts: PageCounts | None,
        *,
        page: int,
        at_most: int | None = None,
    ) -> None:
        self._missing: dict[str, str | None] = dict.fromkeys(wanted)
        self._wanted = len(self._missing)
        self._page = page
        self._planned = pages_worth_reading(self._wanted, counts)
        self._limit = self._planned + (SLACK if counts is not None and self._planned else 0)
        if at_most is not None:
            self._limit = min(self._limit, at_most)
        self._found: dict[int, int] = {}
        self._asked = 0
        self._total = math.inf
        self._counts = counts

    @property
    def planned(self) -> int:
        """How many requests it is going to take, as far as is known."""
        pages = math.ceil(min(self._planned, self._total / self._page))
        return max(1, pages or self._wanted)

    def next_offset(self) -> int | None:
        """Where the next page begins; None if no further page is worth its request."""
        offset = self._asked * self._page
        if not self._missing or self._asked >= self._limit or offset >= self._total:
            return None
        self._asked += 1
        return offset

    def note_page(self, offset: int, ids: Collection[str], total: int) -> list[str]:
        """Note a page that was read; returns the wanted runs seen on it for the first time."""
        # A list that grows while it is read gets one page longer; an empty page always ends it.
        self._total = max(total, 0 if math.isinf(self._total) else self._total)
        if not ids:
            self._total = min(self._total, offset)
        seen = self._missing.pop
        fresh = [each for each in ids if seen(each, _OTHER) is None]
        self._found[offset // self._page] = len(fresh)
        return fresh

    def missing(self) -> list[str]:
        """The runs that were on no page so far."""
        return list(self._missing)

    def counts(self) -> PageCounts | None:
        """What the next poll may rely on, once this one is over."""
        if self._wanted <= FEW:
            return self._counts
        missing = len(self._missing)
        known = self._counts
        if known is not None:
            expected = self._planned + self._wanted - sum(known.found[: self._planned])
            # If they have moved, the next poll reads as far as it takes to find them again.
            return None if self._asked + missing > 1.5 * expected + FEW else known.older()
        found = [self._found[page] for page in range(self._asked)]
        return PageCounts(found, missing)


class PollSchedule:
    """When to poll next, and which runs.

    A full poll asks for every run; at most an interval lies between two of them. In between, quick
    polls ask only for runs first seen in the last full poll. After a poll that found faults, full
    polls are as frequent as quick ones.

    Args:
        interval_s: Most seconds between two full polls.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._full_at: float | None = None
        self._began = 0.0
        self._quick_polls = 0
        self._incident = False
        self._many = False
        self._known: set[str] = set()
        self._new: set[str] = set()

    def wait_s(self, now: float, random: float, *, out_of_reach: bool) -> float:
        """Seconds until the next poll; ``random`` in [0, 1) decides the jitter."""
        if out_of_reach:
            # When the service comes back, a rollback has to be seen before many steps build on it.
            return self._interval_s / RETRY_FACTOR
        interval_s = self._shortened(self._interval_s * (1.0 - JITTER * random))
        if self._full_at is None:
            return interval_s
        # From start to start, so that a slow service does not lengthen the interval.
        due = self._full_at + (interval_s / QUICK_FACTOR if self._incident else interval_s)
        if self._quick_is_due:
            due = min(due, self._began + interval_s / QUICK_FACTOR)
        return max(self._interval_s / RETRY_FACTOR, due - now)

    def _shortened(self, interval_s: float) -> float:
        # The last run of a spread poll must not wait longer than the interval either, even if the
        # poll before was over sooner or did not include it.
        return interval_s * (1.0 - SPREAD_PAGES - SPREAD_SINGLE) if self._many else interval_s

    @property
    def _quick_is_due(self) -> bool:
        return bool(self._new) and self._quick_polls < QUICK_FACTOR - 1

    def begin(self, now: float, watched: Collection[str]) -> set[str] | None:
        """A poll begins; returns the runs of a quick poll, or None for a full one."""
        self._began = now
        if self._full_at is not None and self._quick_is_due and not self._incident:
            slowest_s = self._shortened(self._interval_s * (1.0 - JITTER))
            new = self._new.intersection(watched)
            if new and now < self._full_at + slowest_s:
                self._quick_polls += 1
                return new
        self._full_at = now
        self._many = len(watched) > FEW
        self._quick_polls = 0
        self._new = set(watched) - self._known
        self._known = set(watched)
        return None

    def end(self, *, faults: int) -> None:
        """A poll is over, and found this many runs at fault."""
        self._incident = faults > 0
