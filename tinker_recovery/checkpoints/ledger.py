"""Which saves are under way, done, or owed: the gate between "due" and "submitted"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.checkpoints.record import CheckpointRecord
from tinker_recovery.checkpoints.schedule import Decision, Moment, Schedule


@dataclass(frozen=True, slots=True)
class InFlight:
    """A save that was submitted and is neither stored nor failed.

    Attributes:
        step: Optimizer steps it contains.
        began_s: Monotonic seconds of its submission.
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

    At most one save is in flight, so saves slower than their schedule never pile up. A failed save
    is owed: it is due again at the next optimizer step, whatever the schedule says, and only the
    first failure of a row is worth a report.

    Attributes:
        last_step: Step of the last save stored; before the first, where the attempt began.
        last_s: Monotonic seconds at which that save was submitted; before it, of the beginning.
        last_epoch: Epochs completed at that moment.
        lowest: The lowest finite value of each metric among the saves stored.
        highest: The highest one.
        in_flight: The save under way.
        failures: Saves that failed one after the other.
    """

    last_step: int
    last_s: float
    last_epoch: int = 0
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)
    in_flight: InFlight | None = None
    failures: int = 0

    @classmethod
    def resumed(
        cls, step: int, now_s: float, *, epoch: int = 0, saved: Iterable[CheckpointRecord] = ()
    ) -> Self:
        """The ledger of an attempt that begins.

        Args:
            step: Optimizer steps in the weights it starts with.
            now_s: Monotonic seconds.
            epoch: Epochs completed in them.
            saved: Checkpoints on its branch, so that "better than every save" goes on counting
                where the last attempt stopped.
        """
        lowest: Mapping[str, float] = {}
        highest: Mapping[str, float] = {}
        for record in saved:
            lowest, highest = _extremes(lowest, highest, record.metrics)
        return cls(step, now_s, epoch, lowest, highest)

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
        """Whether to submit a save now, behind this optimizer step. Changes nothing."""
        if self.in_flight is not None:
            return Decision(
                due=False, reason=f"the save of step {self.in_flight.step} is still under way"
            )
        if self.failures and step > self.last_step:
            return Decision(due=True, reason="the save before it failed")
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
            ValueError: Another one is in flight; :meth:`ask` says so first.
        """
        if self.in_flight is not None:
            raise ValueError(
                f"a save of step {step} was submitted while that of step {self.in_flight.step} is "
                "in flight: ask() first"
            )
        epoch = self.last_epoch if epoch is None else epoch
        return replace(self, in_flight=InFlight(step, now_s, epoch, dict(metrics or {})))

    def stored(self, step: int) -> SaveLedger:
        """The save in flight is stored. Word of any other step changes nothing."""
        saved = self.in_flight
        if saved is None or saved.step != step:
            return self
        lowest, highest = _extremes(self.lowest, self.highest, saved.metrics)
        return SaveLedger(saved.step, saved.began_s, saved.epoch, lowest, highest)

    def failed(self, step: int) -> tuple[SaveLedger, bool]:
        """The save in flight failed; the bool says whether to report it (the first of a row)."""
        if self.in_flight is None or self.in_flight.step != step:
            return self, False
        return replace(self, in_flight=None, failures=self.failures + 1), self.failures == 0


def _extremes(
    lowest: Mapping[str, float], highest: Mapping[str, float], metrics: Mapping[str, float]
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    low = {name: min(value, lowest.get(name, value)) for name, value in finite.items()}
    high = {name: max(value, highest.get(name, value)) for name, value in finite.items()}
    return {**lowest, **low}, {**highest, **high}
