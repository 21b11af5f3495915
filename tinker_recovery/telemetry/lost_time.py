"""Lost time: one definition of it, for a run's last line, its report and its goodput.

Lost is the time in which a run made no progress because something was wrong, and what the steps
took that had to be done again. The first is a set of spans: from the last progress before a fault
until the loop is handed a client again; and where an outage ended without a fault, from the last
progress before until the next. Of a process that was killed the last progress is what the journal
has of it. An orderly stop, and the time until the same command goes on, are not lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_recovery.telemetry.figures import AttemptFigures

Stretch = tuple[float, float]
"""From when until when, in seconds of one clock."""


def lost(away: Iterable[Stretch], attempts: Sequence[AttemptFigures]) -> float:
    """Seconds that a run has lost.

    Args:
        away: When it made no progress: before and during recoveries, and in outages.
        attempts: Its attempts, whose ``busy_s`` has none of that.
    """
    replaying_s = sum(each.busy_s - each.useful_s for each in attempts if each.done)
    return length(union(away)) + replaying_s


def union(spans: Iterable[Stretch], end: float = math.inf) -> list[Stretch]:
    """The same times without overlaps, none after ``end``."""
    joined: list[Stretch] = []
    for began, ended in sorted((min(a, end), min(max(a, b), end)) for a, b in spans):
        if joined and began <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], ended)
        else:
            joined.append((began, ended))
    return joined


def within(spans: Iterable[Stretch], began: float, ended: float) -> list[Stretch]:
    """The parts of spans from ``began`` to ``ended``, without overlaps."""
    clipped = ((max(a, began), min(b, ended)) for a, b in spans)
    return union(each for each in clipped if each[0] < each[1])


def without(began: float, ended: float, spans: Iterable[Stretch]) -> list[Stretch]:
    """What is left of a time without these spans."""
    left = []
    for a, b in within(spans, began, ended):
        left.append((began, a))
        began = b
    return [each for each in [*left, (began, ended)] if each[0] < each[1]]


def length(spans: Iterable[Stretch]) -> float:
    """Seconds in spans that do not overlap."""
    return sum(ended - began for began, ended in spans)
