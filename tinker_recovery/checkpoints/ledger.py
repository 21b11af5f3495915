"""The saves of an attempt: whether one that is due may be submitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Required, TypedDict, Unpack

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


class Now(TypedDict, total=False):
    """What of a :class:`Moment` is not known from the saves so far."""

    step: Required[int]
    now_s: Required[float]
    epoch: int | None
    metrics: Mapping[str, float]
    end: bool
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class SaveLedger:
    """The saves of one attempt. Frozen: each method returns the ledger after it.

    Only so many saves are in flight, so saves slower than their schedule never queue up; one that
    is due meanwhile is left out. After a failed save the next optimizer step is due, whatever the
    schedule says, and of failures in a row the first, tenth, hundredth and so on should be
    reported.

    Attributes:
        last_step: Step of the last stored save; before the first, the attempt's start step.
        last_s: Monotonic seconds at which that save was submitted, or the attempt started.
        last_epoch: Epochs completed by then.
        lowest: The lowest finite value of each metric among the stored saves.
        highest: The highest one.
        in_flight: The saves in flight, oldest first.
        failures: Saves that failed since the last stored one.
    """

    last_step: int
    last_s: float
    last_epoch: int = 0
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)
    in_flight: tuple[InFlight, ...] = ()
    failures: int = 0

    @property
    def newest_step(self) -> int:
        """Step of the last save, stored or in flight."""
        return self.in_flight[-1].step if self.in_flight else self.last_step

    def under_way(self, step: int) -> InFlight | None:
        """The save of this step that is in flight."""
        return next((each for each in self.in_flight if each.step == step), None)

    def ask(self, schedule: Schedule, *, most: int = 1, **now: Unpack[Now]) -> Decision:
        """Whether to submit a save now, behind this optimizer step.

        Args:
            schedule: What decides.
            most: The most saves in flight at once.
            now: The step, and what is known behind it.
        """
        if self.failures and not self.in_flight and now["step"] > self.last_step:
            return Decision(due=True, reason="the previous save failed")
        decision = schedule.decide(self.moment(**now))
        if decision.due and len(self.in_flight) >= most:
            steps = ", ".join(str(each.step) for each in self.in_flight)
            reason = f"{decision.reason}, but of step {steps} a save is still under way"
            return replace(decision, due=False, reason=reason, left_out=True)
        return decision

    def moment(self, **now: Unpack[Now]) -> Moment:
        """What a schedule decides by; a save in flight counts as if it were stored."""
        last = self
        for each in self.in_flight:
            last = last.stored(each.step)
        return Moment(
            last_step=last.last_step,
            last_s=last.last_s,
            last_epoch=last.last_epoch,
            lowest=last.lowest,
            highest=last.highest,
            **now,
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
            ValueError: That step, or a later one, is being saved already: call :meth:`ask` first.
        """
        if self.in_flight and step <= self.newest_step:
            raise ValueError(
                f"a save of step {step} was submitted while that of step {self.newest_step} is in "
                "flight: ask() first"
            )
        epoch = self.last_epoch if epoch is None else epoch
        saving = InFlight(step, now_s, epoch, dict(metrics or {}))
        return replace(self, in_flight=(*self.in_flight, saving))

    def stored(self, step: int) -> SaveLedger:
        """The save of this step was stored. One that is not in flight changes nothing."""
        saved = self.under_way(step)
        if saved is None:
            return self
        lowest, highest = _extremes(self.lowest, self.highest, saved.metrics)
        left = tuple(each for each in self.in_flight if each.step != step)
        if saved.step < self.last_step:  # its answer came late
            return replace(self, lowest=lowest, highest=highest, in_flight=left)
        return SaveLedger(saved.step, saved.began_s, saved.epoch, lowest, highest, left)

    def failed(self, step: int) -> tuple[SaveLedger, bool]:
        """The save of this step failed; True if that is to be reported."""
        if self.under_way(step) is None:
            return self, False
        failures = self.failures + 1
        left = tuple(each for each in self.in_flight if each.step != step)
        return replace(self, in_flight=left, failures=failures), is_reported(failures)


def is_reported(count: int) -> bool:
    """Whether to report this one of a series: the first, tenth, hundredth and so on."""
    return str(count).strip("0") == "1"


def _extremes(
    lowest: Mapping[str, float], highest: Mapping[str, float], metrics: Mapping[str, float]
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    low = {name: min(value, lowest.get(name, value)) for name, value in finite.items()}
    high = {name: max(value, highest.get(name, value)) for name, value in finite.items()}
    return {**lowest, **low}, {**highest, **high}
