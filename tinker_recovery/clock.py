"""Clocks, sleeps and jitter as arguments, so that no test waits for a real backoff."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True)
class Clock:
    """The source of time and jitter.

    Attributes:
        monotonic: Seconds that never decrease; for durations and deadlines.
        wall: Seconds since the epoch; for dates, and to compare across processes.
        sleep: Waits for these seconds; cancellable.
        random: A number in [0, 1), for jitter only.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    random: Callable[[], float] = random.random


SYSTEM_CLOCK = Clock()

LONGEST_INTERVAL_S = 3600.0
"""What lasts is reported at least once an hour."""


def growing_intervals(first_s: float) -> Iterator[float]:
    """Seconds between two reports of something that lasts: each twice the last, up to an hour."""
    interval_s = first_s
    while True:
        yield interval_s
        interval_s = max(interval_s, min(2 * interval_s, LONGEST_INTERVAL_S))


class Reminder:
    """Says when something that lasts is to be reported once more, at growing intervals.

    Args:
        first_s: Seconds of the first interval.
        at_once: Whether the first report is due at once, or after the first interval.
    """

    def __init__(self, first_s: float = 60.0, *, at_once: bool = False) -> None:
        self._intervals = growing_intervals(first_s)
        self._due_s = 0.0 if at_once else next(self._intervals)

    def is_due(self, lasted_s: float) -> bool:
        """Whether to report it now that it has lasted this long; True once for each interval."""
        due = lasted_s >= self._due_s
        while lasted_s >= self._due_s:
            self._due_s += next(self._intervals)
        return due
