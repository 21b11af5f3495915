"""Schedules: when a save is due.

A schedule has no state. What it compares with (the last save, the best saved metric) is in the
:class:`Moment`, which :class:`~tinker_recovery.checkpoints.ledger.SaveLedger` fills in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.errors import UsageError

Mode = Literal["min", "max"]
"""Whether a smaller or a larger metric is better."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of a run right behind an optimizer step, when a schedule decides.

    Attributes:
        step: Optimizer steps submitted so far.
        now_s: Monotonic seconds.
        last_step: Step of the last save; before the first, the attempt's start step.
        last_s: Monotonic seconds of the last save; before the first, of the attempt's start.
        epoch: Epochs completed, or None if the loop reports none.
        last_epoch: The same at the last save, or at the attempt's start.
        metrics: The newest metrics, by name.
        lowest: The lowest finite value of each metric among the saves so far.
        highest: The highest one.
        end: Whether the loop has ended.
        evidence: Measured save costs, step times and failures.
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
        """Whether the last save is of an earlier step."""
        return self.step > self.last_step


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to save now, and why, or why not, for logs and spans."""

    due: bool
    reason: str
    stands_in: bool = False
    """Whether it is made in place of a schedule that has nothing to decide by yet."""
    left_out: bool = False
    """Whether it would be due if earlier saves were not still under way."""
    not_before: float = 0
    """The next step at which it can be due, as long as nothing is saved and the loop does not end:
    until then it is not asked again. 0 if that depends on more than the step."""


class Schedule(Protocol):
    """Decides when to save."""

    def decide(self, moment: Moment) -> Decision:
        """Whether a save is due; never unless :attr:`Moment.fresh`."""
        ...


def improves(value: float, best: float | None, mode: Mode) -> bool:
    """Whether a metric is better than the best so far; a tie, NaN or an infinity is not."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best if mode == "min" else value > best


def check_positive(name: str, value: object) -> None:
    """Raise UsageError, naming the setting, unless its value is a number above zero and finite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        positive = value > 0 and math.isfinite(value)
    else:
        positive = False
    if not positive:
        raise UsageError(f"{name}={value!r}: it has to be a number above zero, and finite")


def check_whole(name: str, value: object) -> None:
    """Raise UsageError, naming the setting, unless its value is a whole number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r}: it has to be a whole number, 1 or more")


def check_metric(metric: object, mode: object) -> None:
    """Raise UsageError unless a metric has a name and a known mode."""
    if not isinstance(metric, str) or not metric:
        raise UsageError(f"metric={metric!r}: it has to be a metric's name")
    if mode not in get_args(Mode):
        raise UsageError(f"mode={mode!r}: it has to be 'min' or 'max'")


@dataclass(frozen=True, slots=True)
class EverySteps:
    """Due after every ``n`` optimizer steps, counted from the run's step 0.

    Counting from 0, not from the attempt's start, saves the same steps in a recovered run as in an
    undisturbed one. A multiple missed because too many saves were in flight is skipped: otherwise
    saves slower than ``n`` steps would follow one another without a pause.
    """

    n: int

    def __post_init__(self) -> None:
        check_whole("n", self.n)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        if moment.fresh and moment.step % self.n == 0:
            return Decision(due=True, reason=f"step {moment.step} is a multiple of {self.n}")
        following = (moment.step // self.n + 1) * self.n
        return Decision(
            due=False, reason=f"not at a multiple of {self.n} steps", not_before=following
        )


@dataclass(frozen=True, slots=True)
class EverySeconds:
    """Due once ``seconds`` of monotonic time have passed since the last save."""

    seconds: float

    def __post_init__(self) -> None:
        check_positive("seconds", self.seconds)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        passed = moment.now_s - moment.last_s
        due = moment.fresh and passed >= self.seconds
        return Decision(due, f"{passed:.0f} s since the last save, every {self.seconds:g} s")


@dataclass(frozen=True, slots=True)
class EveryEpochs:
    """Due at the boundary of every ``n``-th epoch.

    A boundary passed while another save was in flight is saved at the next step.
    """

    n: int = 1

    def __post_init__(self) -> None:
        check_whole("n", self.n)

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
    """Due when a metric is better than in every save so far; see :func:`improves`."""

    metric: str
    mode: Mode = "min"

    def __post_init__(self) -> None:
        check_metric(self.metric, self.mode)

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
class Meanwhile:
    """Due every ``n`` steps for as long as another schedule has nothing to decide by.

    That is until a metric is reported, or an epoch has ended: a misspelt name would otherwise mean
    that nothing is ever saved.

    Attributes:
        schedule: The other one.
        n: Steps between two saves until then.
        metric: The metric it needs; None if it needs epochs.
    """

    schedule: Schedule
    n: int
    metric: str | None = None

    def __post_init__(self) -> None:
        check_whole("n", self.n)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        if self.metric is None:
            able = bool(moment.epoch)
            lacks = "no epoch has ended: see that attempt.end_epoch() is called"
        else:
            able = self.metric in moment.metrics or self.metric in moment.lowest
            lacks = f"no metric {self.metric!r} has been reported: see that attempt.report() has it"
        if able:
            return self.schedule.decide(moment)
        meanwhile = EverySteps(self.n).decide(moment)
        return Decision(meanwhile.due, f"{lacks}; {meanwhile.reason}", stands_in=meanwhile.due)


@dataclass(frozen=True, slots=True)
class UsersOwn:
    """A schedule of the user's: what it raises or wrongly returns never ends the loop.

    Attributes:
        schedule: Theirs.
        n: Steps between two saves where it fails.
    """

    schedule: Schedule
    n: int

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        kind = type(self.schedule).__name__
        try:
            decision: object = self.schedule.decide(moment)
        except Exception as error:  # noqa: BLE001 - of the user's own: training continues
            problem = f"{kind} raised {error!r}"
        else:
            if isinstance(decision, Decision):
                # What it copies from a schedule of ours, it may go on to overrule.
                return replace(decision, due=decision.due and moment.fresh, not_before=0)
            problem = f"{kind} returned {decision!r}, which is no Decision"
        meanwhile = EverySteps(self.n).decide(moment)
        return Decision(meanwhile.due, f"{problem}; {meanwhile.reason}", stands_in=meanwhile.due)


@dataclass(frozen=True, slots=True)
class AtSteps:
    """Due at these steps; one passed while another save was in flight is saved at the next step."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        if not isinstance(steps, Iterable):
            raise UsageError(f"steps={steps!r}: it has to be a list of steps")
        steps = frozenset(steps)
        for step in steps:
            check_whole("steps", step)
        object.__setattr__(self, "steps", steps)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        passed = [step for step in self.steps if moment.last_step < step <= moment.step]
        if passed:
            return Decision(due=True, reason=f"step {max(passed)} is in save_at_steps")
        following = min((step for step in self.steps if step > moment.step), default=math.inf)
        return Decision(due=False, reason="no step of save_at_steps", not_before=following)


@dataclass(frozen=True, slots=True)
class AtEnd:
    """Due when the loop has ended, unless its last step is saved already."""

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        if not moment.end:
            return Decision(due=False, reason="not at the end", not_before=math.inf)
        reason = "the loop has ended" if moment.fresh else "the last step is saved already"
        return Decision(moment.fresh, reason)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Due when any of these is, for the reason of the first that is."""

    schedules: tuple[Schedule, ...]

    def __init__(self, *schedules: Schedule) -> None:
        if not schedules:
            raise UsageError("AnyOf() needs at least one schedule")
        object.__setattr__(self, "schedules", schedules)

    def decide(self, moment: Moment) -> Decision:
        """See :class:`Schedule`."""
        reasons, not_before = [], math.inf
        for schedule in self.schedules:
            decision = schedule.decide(moment)
            if decision.due:
                return decision
            reasons.append(decision.reason)
            not_before = min(not_before, decision.not_before)
        return Decision(due=False, reason="; ".join(reasons), not_before=not_before)
