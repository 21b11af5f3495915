"""Which of the losses that a loop reports are written: a sample, and what stands out of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

_STANDS_OUT = 6
"""How many times the usual distance from its level a loss has to be away from that."""
_SEEN = 10
"""Losses before it is known what is usual."""
_SLOW = 0.1


class Point(NamedTuple):
    """What was reported of a step, and when; without a loss if that is none, or not finite."""

    step: int
    time: float
    loss: float | None
    metrics: Mapping[str, float]


class Sampler:
    """Lets one point in so many seconds through; with it, what stood out among those before.

    Args:
        at_once: Points that may come faster than that, so that a short run is kept whole.
    """

    def __init__(self, at_once: int) -> None:
        self._most = float(at_once)
        self._at, self._left = time.monotonic(), self._most
        self._seen = 0
        self._level = self._usual = 0.0
        self._spike: tuple[float, Point] | None = None

    def goes_back(self) -> None:
        """Drop what was held back: what is reported next is of another branch."""
        self._spike = None

    def due(self, point: Point, every_s: float) -> list[Point]:
        """What is to be written, now that this is reported."""
        moment = time.monotonic()
        earned = (moment - self._at) / every_s if every_s else math.inf
        self._left = min(self._most, self._left + earned)
        self._at = moment
        distance = self._distance(point)
        if self._left < 1:
            if distance and (self._spike is None or distance > self._spike[0]):
                self._spike = distance, point
            return []
        self._left -= 1
        spike, self._spike = self._spike, None
        return [point] if spike is None else [spike[1], point]

    def _distance(self, point: Point) -> float:
        """How far its loss is from the level of those before; 0 if no further than is usual."""
        loss = point.loss
        if loss is None:
            return 0.0
        self._seen += 1
        if self._seen == 1:
            self._level = loss
        distance = abs(loss - self._level)
        stands_out = self._seen > _SEEN and distance > _STANDS_OUT * self._usual
        # A spike is not the new level; a step to another one is followed more slowly.
        rate = _SLOW / _STANDS_OUT if stands_out else _SLOW
        self._level += rate * (loss - self._level)
        self._usual += rate * (distance - self._usual)
        return distance if stands_out else 0.0
