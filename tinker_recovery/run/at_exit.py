"""What a run is given up with when its Supervisor ends before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinker_recovery.errors import RecoveryLost, RunFailed

if TYPE_CHECKING:
    from tinker_recovery.faults import Fault
    from tinker_recovery.run.supervised import SupervisedRun


def unseen_fault(run: SupervisedRun) -> Fault | None:
    """The fault that the loop's owner has not come back for."""
    current = run.current
    if current is None:
        return None
    if run.incident is not None:
        return run.incident if current.entered else None
    return run.recoveries[-1].fault if run.recoveries and not current.entered else None


def failure_at_exit(run: SupervisedRun, unseen: Fault | None) -> BaseException | None:
    """The error of a run whose Supervisor ends; None if nothing was wrong with it."""
    if unseen is not None:
        return RecoveryLost(
            f"run {run.name!r} has a fault that came to light after its loop had been left "
            "(break or return inside `async with attempt:`), so its last steps may not have "
            "been applied: let the loop end by itself, or use supervisor.run(train)",
            run=run.name,
            errors=[unseen.as_error()],
        )
    if run.failure is None and run.incident is not None:
        return RunFailed(
            f"the supervisor ended while run {run.name!r} was being recovered",
            run=run.name,
            errors=[run.incident.as_error()],
        )
    return run.failure
