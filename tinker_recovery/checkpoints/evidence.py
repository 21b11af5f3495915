"""Running means of a run's step times and save costs, and its count of faults."""

from __future__ import annotations

from dataclasses import dataclass, replace

STEP_MEMORY = 64
"""Roughly how many steps the mean step time covers."""

SAVE_MEMORY = 8
"""Roughly how many saves the mean save cost covers."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measurements of one logical run, over all its attempts. Methods return a new object.

    Plain means at first, exponential ones once they cover enough, so that they follow a service
    that becomes slower.

    Attributes:
        steps: Optimizer steps measured.
        step_s: Mean seconds of a step; None before the first.
        saves: Saves measured.
        save_s: Mean seconds a save costs; None before the first.
        failures: Faults so far.
        observed_s: Seconds in which those faults happened.
    """

    steps: int = 0
    step_s: float | None = None
    saves: int = 0
    save_s: float | None = None
    failures: int = 0
    observed_s: float = 0.0

    def stepped(self, seconds: float) -> Evidence:
        """Add a step that took these seconds; pauses for capacity should be left out."""
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
        """Add a save that kept the service from training for these seconds."""
        mean = _towards(self.save_s, max(0.0, seconds), self.saves + 1, SAVE_MEMORY)
        return replace(self, saves=self.saves + 1, save_s=mean)

    def waited(self, seconds: float) -> Evidence:
        """Add observed time in which no step ran: saving, recovering."""
        return replace(self, observed_s=self.observed_s + max(0.0, seconds))

    def failed(self) -> Evidence:
        """Add a fault."""
        return replace(self, failures=self.failures + 1)


def _towards(mean: float | None, value: float, seen: int, memory: int) -> float:
    return value if mean is None else mean + (value - mean) / min(seen, memory)
