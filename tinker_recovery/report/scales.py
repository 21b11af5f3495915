"""From values to coordinates: scales, ticks and thinning. Nothing here knows of HTML."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps the values ``low`` to ``high`` linearly to ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value; one outside is put at the nearer end."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values from low to high, ``about`` as many; at least one if both are finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return []
    if not high > low:
        return [low]
    step = _round_step((high - low) / max(1, about))
    if not step or not math.isfinite(step):
        return [low]
    return _multiples(step, low, high) or [low]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten from low to high, both above 0; fewer if that is many."""
    if not (0 < low <= high < math.inf):
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [
            value
            for power in powers
            for factor in factors
            if low <= (value := factor * 10.0**power) <= high
        ]
        if len(found) <= _MOST_LEVELS:
            return found or [low]
    return found[:: -(-len(found) // _MOST_LEVELS)]


_MOST_LEVELS = 8

_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
_DAY = 86400


def time_ticks(seconds: float, about: int = 6) -> list[float]:
    """Times from 0 to ``seconds`` at round seconds, minutes, hours or days."""
    if not (math.isfinite(seconds) and seconds > 0):
        return [0.0]
    wanted = seconds / max(1, about)
    if wanted <= 1:
        return ticks(0.0, seconds, about)
    if wanted > _TIME_STEPS[-1]:
        step = max(1.0, _round_step(wanted / _DAY)) * _DAY
    else:
        step = float(next(each for each in _TIME_STEPS if each >= wanted))
    return _multiples(step, 0.0, seconds)


def thin(points: Sequence[Point], columns: int) -> list[Point]:
    """At most four points per column that draw the same line: first, last, lowest and highest.

    Args:
        points: With their first coordinates rising.
        columns: At least one.
    """
    if len(points) <= 4 * columns:
        return list(points)
    low, high = points[0][0], points[-1][0]
    scale = Scale(low, high, 0, columns)
    buckets: dict[int, list[Point]] = {}
    for point in points:
        buckets.setdefault(min(columns - 1, int(scale(point[0]))), []).append(point)
    kept = []
    for _, bucket in sorted(buckets.items()):
        chosen = {
            0,
            len(bucket) - 1,
            min(range(len(bucket)), key=lambda place: bucket[place][1]),
            max(range(len(bucket)), key=lambda place: bucket[place][1]),
        }
        kept += [bucket[place] for place in sorted(chosen)]
    return kept


def clip_at(values: Sequence[float]) -> float | None:
    """Where to cut a scale off so that a few spikes do not flatten all the rest; None if nowhere.

    Somewhat above all but the highest fiftieth, if the highest is more than three times as far up.
    """
    ordered = sorted(values)
    low, usual, high = ordered[0], ordered[(len(ordered) - 1) * 49 // 50], ordered[-1]
    # Halved, so that the difference of two huge values is finite.
    if usual <= low or high / 2 - low / 2 <= _FAR * (usual / 2 - low / 2):
        return None
    return usual + (usual - low) * _ABOVE


_FAR, _ABOVE = 3, 0.15


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the indexes 0 to ``count - 1``, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def _round_step(step: float) -> float:
    """The nearest (in proportion) of 1, 2 or 5 times a power of ten."""
    if not sys.float_info.min <= step < math.inf:
        return 0.0
    power = 10.0 ** math.floor(math.log10(step))
    return min(
        (power * each for each in (1, 2, 5, 10)), key=lambda each: abs(math.log(each / step))
    )


def _multiples(step: float, low: float, high: float) -> list[float]:
    # Counted, not added up: a sum drifts, and for huge values it does not grow at all.
    first, last = math.ceil(low / step), math.floor(high / step)
    return [place * step for place in range(first, min(last, first + 100) + 1)]
