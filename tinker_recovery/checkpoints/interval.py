"""How far apart saves should lie: the interval of Young and Daly, from what the run has measured.

A save costs ``C`` seconds, and a failure, every ``M`` seconds in the mean, costs what was done
since the last save. Saving every ``T`` seconds wastes a share of about ``C/T + T/(2M)``, which is
least at

    T = sqrt(2 C M)

    J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications
    of the ACM 17(9), 1974, pages 530-531.

That holds for ``C`` far below ``M``. With the next terms of the exact cost model, for ``C < 2M``,

    T = sqrt(2 C M) * (1 + sqrt(C / (2M)) / 3 + C / (2M) / 9) - C        and T = M otherwise

    J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    Future Generation Computer Systems 22(3), 2006, pages 303-312.

``T`` is the time spent training between two saves, the save not included. The minimum is flat: an
interval off by a factor of two wastes a quarter more of what is wasted anyway, so rough
measurements do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.checkpoints.schedule import Decision, Moment
from tinker_recovery.errors import UsageError


def young_daly_s(save_s: float, mtbf_s: float) -> float:
    """Seconds of training between two saves that waste the least, after Daly (2006).

    Args:
        save_s: Seconds a save costs; not negative.
        mtbf_s: Mean seconds between two failures; above zero.
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    young = math.sqrt(2 * save_s * mtbf_s)
    return young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


@dataclass(frozen=True, slots=True)
class AutoInterval:
    """Due once as many steps as :meth:`steps` says have passed since the last save.

    The failure rate starts from a prior that counts as much as ``w`` failures seen: after ``t``
    seconds and ``n`` failures the mean time between failures is taken as
    ``(w * prior_mtbf_s + t) / (w + n)``, which is the prior at first and what was seen in the end
    (the mean of a gamma posterior of the rate). Same evidence, same interval: nothing is random.

    Attributes:
        prior_mtbf_s: Mean seconds between two failures, believed before any was seen.
        prior_weight: How many failures that belief is worth.
        prior_save_s: Seconds a save is believed to cost before one was measured. Kept small, so
            that the first save comes early and the measuring begins.
        min_steps: Never closer together than this many steps.
        max_steps: Never further apart than this many steps.
    """

    prior_mtbf_s: float = 12 * 3600.0
    prior_weight: float = 0.5
    prior_save_s: float = 2.0
    min_steps: int = 1
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("prior_mtbf_s", "prior_weight", "prior_save_s", "min_steps"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name}={value!r}: it has to be above zero and finite")
        if self.max_steps < self.min_steps:
            raise UsageError(
                f"max_steps={self.max_steps} is below min_steps={self.min_steps}: it limits the "
                "interval from above, so it has to be at least as large"
            )

    def mtbf_s(self, evidence: Evidence) -> float:
        """Mean seconds between two failures, as believed after this evidence."""
        weight = self.prior_weight
        return (weight * self.prior_mtbf_s + evidence.observed_s) / (weight + evidence.failures)

    def steps(self, evidence: Evidence) -> int:
        """Optimizer steps between two saves, after this evidence."""
        if not evidence.step_s:
            # Nothing timed yet, or steps that take no time: as far apart as is allowed.
            return self.max_steps
        cost_s = self.prior_save_s if evidence.save_s is None else evidence.save_s
        interval_s = young_daly_s(cost_s, self.mtbf_s(evidence))
        # Bounded before it is rounded: steps of next to no time would make it infinite.
        return max(self.min_steps, round(min(self.max_steps, interval_s / evidence.step_s)))

    def decide(self, moment: Moment) -> Decision:
        """See :class:`~tinker_recovery.checkpoints.schedule.Schedule`."""
        if not moment.fresh:
            return Decision(due=False, reason="nothing new since the last save")
        steps = self.steps(moment.evidence)
        passed = moment.step - moment.last_step
        return Decision(
            passed >= steps, f"{passed} steps since the last save, {steps} are worth one now"
        )
