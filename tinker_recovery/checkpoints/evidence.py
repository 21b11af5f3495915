"""What a run has seen so far of step times, save costs and failures: running means, kept pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

STEP_MEMORY = 64
"""How many steps the mean step time looks back on, more or less."""

SAVE_MEMORY = 8
"""How many saves the mean save cost looks back on, more or less."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measurements of one logical run, over all its attempts.

    Means are plain ones at first, and forget exponentially once they have seen enough, so that a
    service that becomes slower is noticed. Each method returns a new object.

    Attributes:
        steps: Optimizer steps seen.
        step_s: Mean seconds of a step; None before the first.
        saves: Saves seen.
        save_s: Mean seconds a save cost; None before the first.
        failures: Faults seen.
        observed_s: Seconds under observation, in which those faults happened.
    """

    steps: int = 0
    step_s: float | None = None
    saves: int = 0
    save_s: float | None = None
    failures: int = 0
    observed_s: float = 0.0

    def stepped(self, seconds: float) -> Evidence:
        """One more step, and the seconds it took; they count as observed.

        Time paused for capacity is better left out: it is neither training nor at risk.
        """
        seconds = max(0.0, seconds)
        mean = _towards(self.step_s, seconds, self.steps + 1, STEP_MEMORY)
        # Written out: this runs at every step, and replace() takes four times as long.
        return Evidence(
            self.steps + 1,
            mean,
            self.saves,
            self.save_s,
            self.failures,
            self.observed_s + seconds,
        )

    def saved(self, seconds: float) -> Evidence:
        """One more save, and the seconds it kept the service from training."""
        mean = _towards(self.save_s, max(0.0, seconds), self.saves + 1, SAVE_MEMORY)
        return replace(self, saves=self.saves + 1, save_s=mean)

    def waited(self, seconds: float) -> Evidence:
        """Time under observation that was no step: saving, recovering."""
        return replace(self, observed_s=self.observed_s + max(0.0, seconds))

    def failed(self) -> Evidence:
        """One more fault."""
        return replace(self, failures=self.failures + 1)


def _towards(mean: float | None, value: float, seen: int, memory: int) -> float:
    return value if mean is None else mean + (value - mean) / min(seen, memory)
