"""The schedule and the retention that a CheckpointPolicy asks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import assert_never

from tinker_recovery.checkpoint_policy import CheckpointPolicy
from tinker_recovery.checkpoints.interval import AutoInterval, Plan
from tinker_recovery.checkpoints.retention import (
    KeepAll,
    KeepAny,
    KeepBest,
    KeepEvery,
    KeepIf,
    KeepLast,
    KeepPinned,
    Retention,
)
from tinker_recovery.checkpoints.schedule import (
    AnyOf,
    AtEnd,
    AtSteps,
    EveryEpochs,
    EverySeconds,
    EverySteps,
    Meanwhile,
    Moment,
    OnImprovement,
    Schedule,
    UsersOwn,
)

_MEANWHILE_STEPS: int = CheckpointPolicy.model_fields["save_every"].default
"""Steps between two saves for as long as a strategy has nothing to decide by."""


def schedule_of(policy: CheckpointPolicy) -> Schedule:
    """When this policy saves."""
    schedules: list[Schedule] = [_of_strategy(policy)]
    if policy.save_every_s is not None:
        schedules.append(EverySeconds(policy.save_every_s))
    if policy.save_at_steps:
        schedules.append(AtSteps(policy.save_at_steps))
    if policy.save_at_end:
        schedules.append(AtEnd())
    return schedules[0] if len(schedules) == 1 else AnyOf(*schedules)


def _of_strategy(policy: CheckpointPolicy) -> Schedule:
    if policy.schedule is not None:
        return UsersOwn(policy.schedule, _MEANWHILE_STEPS)
    match policy.strategy:
        case "steps" | "last" | "all":
            return EverySteps(policy.save_every)
        case "epoch":
            return Meanwhile(EveryEpochs(policy.save_every), _MEANWHILE_STEPS)
        case "best":
            improvement = OnImprovement(policy.best_metric, policy.best_mode)
            return Meanwhile(improvement, _MEANWHILE_STEPS, policy.best_metric)
        case "auto":
            return AutoInterval(
                prior_mtbf_s=policy.auto_mtbf_s,
                min_steps=policy.auto_min_steps,
                max_steps=policy.auto_max_steps,
                max_s=policy.auto_max_s,
            )
    assert_never(policy.strategy)


def plan_of(schedule: Schedule, moment: Moment) -> Plan | None:
    """When this schedule saves next, where it finds that out by itself."""
    parts = schedule.schedules if isinstance(schedule, AnyOf) else (schedule,)
    return next((each.plan(moment) for each in parts if isinstance(each, AutoInterval)), None)


def retention_of(policy: CheckpointPolicy, *, pinned: Collection[str] = ()) -> Retention:
    """What this policy keeps, besides the pinned paths."""
    if policy.strategy == "all":
        return KeepAll()
    pins = [KeepPinned(frozenset(pinned))] if pinned else []
    if policy.retention is not None:
        return KeepAny(policy.retention, *pins)
    rules: list[Retention] = []
    keep_last = 1 if policy.strategy == "last" else policy.keep_last
    if keep_last:
        rules.append(KeepLast(keep_last))
    if policy.save_best:
        alone = not keep_last
        rules.append(KeepBest(policy.keep_best, policy.best_metric, policy.best_mode, alone))
    if policy.keep_every is not None:
        rules.append(KeepEvery(policy.keep_every))
    if policy.keep_if is not None:
        rules.append(KeepIf(policy.keep_if))
    return KeepAny(*rules, *pins)


def counts_epochs(policy: CheckpointPolicy) -> bool:
    """Whether this policy saves at the end of epochs, as far as can be seen."""
    return policy.strategy == "epoch" or _has_epochs(policy.schedule)


def _has_epochs(schedule: object) -> bool:
    if isinstance(schedule, Meanwhile):
        return _has_epochs(schedule.schedule)
    if isinstance(schedule, AnyOf):
        return any(_has_epochs(each) for each in schedule.schedules)
    return isinstance(schedule, EveryEpochs)
