"""How long to wait before a restart: a pure schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinker_recovery.supervision.checks import number
from tinker_recovery.supervision.errors import SpecError


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with a cap, and jitter that only lengthens.

    Attributes:
        initial_s: Seconds before the first restart; with 0 every restart is immediate.
        max_s: No delay is longer than this, jitter aside.
        factor: Each further delay is longer by this factor; 1 keeps it constant.
        jitter: The largest share of the delay that is added at random.

    Raises:
        SpecError: A field that cannot work; ``initial_s`` above ``max_s``.
    """

    initial_s: float = 0.1
    max_s: float = 5.0
    factor: float = 2.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if number("initial_s", self.initial_s, "0 seconds or more") < 0:
            raise SpecError("initial_s", self.initial_s, "0 seconds or more")
        if number("max_s", self.max_s, "0 seconds or more") < self.initial_s:
            raise SpecError("max_s", self.max_s, f"at least initial_s={self.initial_s:g} s")
        if number("factor", self.factor, "1 or more") < 1:
            raise SpecError("factor", self.factor, "1 or more")
        if not 0 <= number("jitter", self.jitter, "from 0 to 1") <= 1:
            raise SpecError("jitter", self.jitter, "from 0 to 1")

    @classmethod
    def none(cls) -> Backoff:
        """No delays: every restart is immediate, and only the restart limit ends a crash loop."""
        return cls(initial_s=0.0, max_s=0.0, factor=1.0, jitter=0.0)

    def delay_s(self, failures: int, random: float = 0.0) -> float:
        """Seconds before a restart.

        Args:
            failures: Failures in a row before this one; 0 for the first.
            random: A number in [0, 1); 0 adds no jitter.
        """
        if self.initial_s == 0:
            return 0.0
        steps = self._steps_below_cap()
        delay = self.max_s if failures >= steps else self.initial_s * self.factor**failures
        return min(delay, self.max_s) * (1 + self.jitter * random)

    def longest_s(self, restarts: int) -> float:
        """The longest that this many restarts in a row can wait in all, including jitter."""
        if self.initial_s == 0 or restarts == 0:
            return 0.0
        growing = min(restarts, self._steps_below_cap())
        if self.factor == 1:
            total = growing * self.initial_s
        else:
            total = self.initial_s * (self.factor**growing - 1) / (self.factor - 1)
        return (total + (restarts - growing) * self.max_s) * (1 + self.jitter)

    def _steps_below_cap(self) -> int:
        """How many delays there are before ``max_s`` is reached, so that powers stay small."""
        if self.factor == 1 or self.initial_s == self.max_s:
            return 0 if self.initial_s == self.max_s else 2**31
        return math.ceil((math.log(self.max_s) - math.log(self.initial_s)) / math.log(self.factor))
