"""When a save is due: pure decisions over a plain record of the moment, joined as one likes.

A schedule keeps nothing. Whatever it compares with (the last save, the best metric saved) stands in
the :class:`Moment`, which :class:`~tinker_recovery.checkpoints.ledger.SaveLedger` fills in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.errors import UsageError

Mode = Literal["min", "max"]
"""Whether a smaller or a larger metric is better."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands when the question is asked: right behind an optimizer step.

    Attributes:
        step: Optimizer steps submitted so far.
        now_s: Monotonic seconds.
        last_step: Step of the last save; before the first one, where the attempt began.
        last_s: Monotonic seconds of the last save; before the first one, when the attempt began.
        epoch: Epochs completed, or None if the loop does not say.
        last_epoch: The same at the last save, or when the attempt began.
        metrics: The newest metrics, by name.
        lowest: The lowest finite value of each metric among the saves so far.
        highest: The highest finite value of each metric among the saves so far.
        end: Whether the loop has come to its end.
        evidence: What was measured so far: costs, step times, failures.
    """

    step: int
    now_s: float
    last_step: int = 0
    last_s: float = 0.0
    epoch: int | None = None
    last_epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)
    end: bool = False
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def fresh(self) -> bool:
        """Whether there is anything to save that the last save does not hold."""
        return self.step > self.last_step


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to save, and why, or why not.

    Attributes:
        due: Whether to save now.
        reason: In words, for logs and spans.
    """

    due: bool
    reason: str


class Schedule(Protocol):
    """Decides when to save."""

    def decide(self, moment: Moment) -> Decision:
        """Whether a save is due at this moment. Never due where :attr:`Moment.fresh` is False."""
        ...


def improves(value: float, best: float | None, mode: Mode) -> bool:
    """Whether a metric is better than the best before; a tie, NaN or an infinity is not."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best if mode == "min" else value > best


def _positive(name: str, value: float) -> None:
    # NaN compares false with everything, so this refuses it too.
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name}={value!r}: it has to be above zero and finite")


@dataclass(frozen=True, slots=True)
class EverySteps:
    """Due after every ``n`` optimizer steps, counted from the run's step 0.

    Counting from 0, and not from where an attempt began, keeps the saved steps of a recovered run
    the same as an undisturbed run's. A multiple missed because another save was under way is
    not made up for: saves that take longer than ``n`` steps would follow one another without end.
    """

    n: int

    def __post_init__(self) -> None:
        _positive("n", self.n)

    def due(self, step: int) -> bool:
        """Whether to save right behind the optimizer step that makes ``step`` of them."""
        return step > 0 and step % self.n == 0

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        if moment.fresh and self.due(moment.step):
            return Decision(due=True, reason=f"step {moment.step} is a multiple of {self.n}")
        return Decision(due=False, reason=f"not at a multiple of {self.n} steps")


@dataclass(frozen=True, slots=True)
class EverySeconds:
    """Due once ``seconds`` of monotonic time have passed since the last save."""

    seconds: float

    def __post_init__(self) -> None:
        _positive("seconds", self.seconds)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        passed = moment.now_s - moment.last_s
        due = moment.fresh and passed >= self.seconds
        return Decision(due, f"{passed:.0f} s since the last save, every {self.seconds:g} s")


@dataclass(frozen=True, slots=True)
class EveryEpochs:
    """Due at the boundary of every ``n``-th epoch.

    A boundary passed while another save was under way is made up for at the next step.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _positive("n", self.n)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        if moment.epoch is None:
            return Decision(due=False, reason="the loop reports no epoch")
        due = moment.fresh and moment.epoch // self.n > moment.last_epoch // self.n
        return Decision(
            due,
            f"{moment.epoch} epochs completed, {moment.last_epoch} at the last save, "
            f"every {self.n}",
        )


@dataclass(frozen=True, slots=True)
class OnImprovement:
    """Due when a metric is better than in every save so far; ties, NaN and infinities are not."""

    metric: str
    mode: Mode = "min"

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        value = moment.metrics.get(self.metric)
        if value is None:
            return Decision(due=False, reason=f"the loop reports no metric {self.metric!r}")
        best = (moment.lowest if self.mode == "min" else moment.highest).get(self.metric)
        due = moment.fresh and improves(value, best, self.mode)
        saved = "none saved so far" if best is None else f"best saved {best:g}"
        return Decision(due, f"{self.metric}={value:g}, {saved}, {self.mode} is better")


@dataclass(frozen=True, slots=True)
class AtSteps:
    """Due at the given steps; one passed while another save was under way is made up for."""

    steps: frozenset[int]

    def __init__(self, steps: Sequence[int] | frozenset[int]) -> None:
        object.__setattr__(self, "steps", frozenset(steps))

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        passed = [step for step in self.steps if moment.last_step < step <= moment.step]
        if passed:
            return Decision(due=True, reason=f"step {max(passed)} was asked for")
        return Decision(due=False, reason="no step that was asked for")


@dataclass(frozen=True, slots=True)
class AtEnd:
    """Due when the loop has come to its end, unless its last step is saved already."""

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        if not moment.end:
            return Decision(due=False, reason="not at the end")
        reason = "the loop is at its end" if moment.fresh else "its last step is saved already"
        return Decision(moment.fresh, reason)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Due when any of these is; the first that is gives the reason."""

    schedules: tuple[Schedule, ...]

    def __init__(self, *schedules: Schedule) -> None:
        if not schedules:
            raise UsageError("AnyOf() joins at least one schedule")
        object.__setattr__(self, "schedules", schedules)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        reasons = []
        for schedule in self.schedules:
            decision = schedule.decide(moment)
            if decision.due:
                return decision
            reasons.append(decision.reason)
        return Decision(due=False, reason="; ".join(reasons))
