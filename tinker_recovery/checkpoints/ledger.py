"""The saves of an attempt: whether one that is due may be submitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.checkpoints.schedule import Decision, Moment, Schedule


@dataclass(frozen=True, slots=True)
class InFlight:
    """A save that was submitted and has neither been stored nor failed.

    Attributes:
        step: Optimizer steps it contains.
        began_s: Monotonic seconds at its submission.
        epoch: Epochs completed at that moment.
        metrics: Metrics at that moment.
    """

    step: int
    began_s: float
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SaveLedger:
    """The saves of one attempt. Frozen: each method returns the ledger after it.

    At most one save is in flight, so saves slower than their schedule never queue up. After a
    failed save the next optimizer step is due, whatever the schedule says, and of failures in a row
    the first, tenth, hundredth and so on should be reported.

    Attributes:
        last_step: Step of the last stored save; before the first, the attempt's start step.
        last_s: Monotonic seconds at which that save was submitted, or the attempt started.
        last_epoch: Epochs completed by then.
        lowest: The lowest finite value of each metric among the stored saves.
        highest: The highest one.
        in_flight: The save in flight.
        failures: Saves that failed since the last stored one.
    """

    last_step: int
    last_s: float
    last_epoch: int = 0
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)
    in_flight: InFlight | None = None
    failures: int = 0

    def ask(
        self,
        schedule: Schedule,
        *,
        step: int,
        now_s: float,
        epoch: int | None = None,
        metrics: Mapping[str, float] | None = None,
        end: bool = False,
        evidence: Evidence | None = None,
    ) -> Decision:
        """Whether to submit a save now, behind this optimizer step."""
        if self.in_flight is not None:
            return Decision(
                due=False, reason=f"the save of step {self.in_flight.step} is still under way"
            )
        if self.failures and step > self.last_step:
            return Decision(due=True, reason="the previous save failed")
        return schedule.decide(
            Moment(
                step=step,
                now_s=now_s,
                last_step=self.last_step,
                last_s=self.last_s,
                epoch=epoch,
                last_epoch=self.last_epoch,
                metrics=metrics or {},
                lowest=self.lowest,
                highest=self.highest,
                end=end,
                evidence=evidence or Evidence(),
            )
        )

    def began(
        self,
        *,
        step: int,
        now_s: float,
        epoch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> SaveLedger:
        """A save of this step was submitted.

        Raises:
            ValueError: Another one is in flight: call :meth:`ask` first.
        """
        if self.in_flight is not None:
            raise ValueError(
                f"a save of step {step} was submitted while that of step {self.in_flight.step} is "
                "in flight: ask() first"
            )
        epoch = self.last_epoch if epoch is None else epoch
        return replace(self, in_flight=InFlight(step, now_s, epoch, dict(metrics or {})))

    def stored(self, step: int) -> SaveLedger:
        """The save in flight was stored. Any other step changes nothing."""
        saved = self.in_flight
        if saved is None or saved.step != step:
            return self
        lowest, highest = _extremes(self.lowest, self.highest, saved.metrics)
        return SaveLedger(saved.step, saved.began_s, saved.epoch, lowest, highest)

    def failed(self, step: int) -> tuple[SaveLedger, bool]:
        """The save in flight failed; True if that is to be reported."""
        if self.in_flight is None or self.in_flight.step != step:
            return self, False
        failures = self.failures + 1
        reported = str(failures).strip("0") == "1"  # a power of ten
        return replace(self, in_flight=None, failures=failures), reported


def _extremes(
    lowest: Mapping[str, float], highest: Mapping[str, float], metrics: Mapping[str, float]
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    low = {name: min(value, lowest.get(name, value)) for name, value in finite.items()}
    high = {name: max(value, highest.get(name, value)) for name, value in finite.items()}
    return {**lowest, **low}, {**highest, **high}
