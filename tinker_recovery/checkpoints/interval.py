"""How far apart saves should be: the interval of Young and Daly, from the run's measurements.

A save costs ``C`` seconds. A failure, every ``M`` seconds on average, costs the work since the last
save. Saving every ``T`` seconds wastes a share of about ``C/T + T/(2M)``, which is least at

    T = sqrt(2 C M)

    J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications
    of the ACM 17(9), 1974, pages 530-531.

That holds for ``C`` far below ``M``. With the next terms of the exact cost model, for ``C < 2M``,

    T = sqrt(2 C M) * (1 + sqrt(C / (2M)) / 3 + C / (2M) / 9) - C        and T = M otherwise

    J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    Future Generation Computer Systems 22(3), 2006, pages 303-312.

``T`` is the time spent training between two saves, without the save. The minimum is flat: at half
or twice the interval the waste is a quarter larger, so rough measurements are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.checkpoints.schedule import Decision, Moment, check_positive, check_whole
from tinker_recovery.errors import UsageError
from tinker_recovery.telemetry.text import counted


def young_daly_s(save_s: float, mtbf_s: float) -> float:
    """Seconds of training between two saves that waste the least time, after Daly (2006).

    Args:
        save_s: Seconds a save costs; at least 0.
        mtbf_s: Mean seconds between two failures; above 0.
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    young = math.sqrt(2 * save_s * mtbf_s)
    return young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


@dataclass(frozen=True, slots=True)
class Plan:
    """When a run saves next.

    Attributes:
        step: The step, as things stand; None as long as it depends on the clock alone.
        words: That, and why then, for people.
    """

    step: int | None
    words: str


@dataclass(frozen=True, slots=True)
class AutoInterval:
    """Due :meth:`steps` optimizer steps after the last save, and after ``max_s`` at the latest.

    Until a step was timed, it is due by the clock.

    The failure rate starts from a prior that weighs as much as ``w`` observed failures: after ``t``
    seconds and ``n`` failures the mean time between failures is ``(w * prior_mtbf_s + t) / (w +
    n)``, the prior at first and the observation in the end (the rate has a gamma posterior).

    Attributes:
        prior_mtbf_s: Mean seconds between two failures, assumed before any happened.
        prior_weight: How many failures that assumption weighs.
        prior_save_s: Seconds a save costs, assumed before one was measured. Small, so that the
            first save, and with it the measuring, comes early.
        min_steps: Least steps between two saves.
        max_steps: Most steps between two saves.
        max_s: Most seconds between two saves: what a fault may cost, however rare faults are.
    """

    prior_mtbf_s: float = 12 * 3600.0
    prior_weight: float = 0.5
    prior_save_s: float = 2.0
    min_steps: int = 1
    max_steps: int = 10_000
    max_s: float = 1800.0

    def __post_init__(self) -> None:
        for name in ("prior_mtbf_s", "prior_weight", "prior_save_s", "max_s"):
            check_positive(name, getattr(self, name))
        check_whole("min_steps", self.min_steps)
        check_whole("max_steps", self.max_steps)
        if self.max_steps < self.min_steps:
            raise UsageError(
                f"max_steps={self.max_steps} is below min_steps={self.min_steps}: it has to be at "
                "least as large"
            )

    def mtbf_s(self, evidence: Evidence) -> float:
        """Mean seconds between two failures, estimated from this evidence."""
        weight = self.prior_weight
        return (weight * self.prior_mtbf_s + evidence.observed_s) / (weight + evidence.failures)

    def interval_s(self, evidence: Evidence) -> float:
        """Seconds of training between two saves, given this evidence."""
        return min(self.max_s, young_daly_s(self._save_s(evidence), self.mtbf_s(evidence)))

    def steps(self, evidence: Evidence) -> int:
        """Optimizer steps between two saves, given this evidence; the most if no step was timed."""
        if not evidence.step_s:
            return self.max_steps
        # Bounded before it is rounded: for very short steps it may be infinite.
        steps = min(self.max_steps, self.interval_s(evidence) / evidence.step_s)
        return max(self.min_steps, round(steps))

    def decide(self, moment: Moment) -> Decision:
        """See :class:`~tinker_recovery.checkpoints.schedule.Schedule`."""
        if not moment.fresh:
            return Decision(due=False, reason="nothing new since the last save")
        steps = self.steps(moment.evidence)
        passed, passed_s = moment.step - moment.last_step, moment.now_s - moment.last_s
        if passed >= self.min_steps:
            limit_s = self.max_s if moment.evidence.step_s else self.interval_s(moment.evidence)
            if passed_s >= limit_s:
                reason = f"{passed_s:.0f} s since the last save, due after {limit_s:.0f} s"
                return Decision(due=True, reason=reason)
        reason = f"{counted(passed, 'step')} since the last save, due after {steps}"
        return Decision(passed >= steps, reason)

    def plan(self, moment: Moment) -> Plan:
        """When it saves next, and why then."""
        evidence = moment.evidence
        steps, step = self.steps(evidence), None
        if evidence.step_s:
            step = moment.last_step + steps
            when = f"next save {step}, every {'step' if steps == 1 else f'{steps} steps'}"
        else:
            when = f"next save after {self.interval_s(evidence):.0f} s"
        guessed = "" if evidence.saves else " by a first guess"
        return Plan(
            step,
            f"{when}: a save costs {in_words(self._save_s(evidence))}{guessed}, a fault is "
            f"expected each {in_words(self.mtbf_s(evidence))}",
        )

    def _save_s(self, evidence: Evidence) -> float:
        return self.prior_save_s if evidence.save_s is None else evidence.save_s


def in_words(seconds: float) -> str:
    """A duration with two digits, in the unit that people would take."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"
