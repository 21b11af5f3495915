"""The error of a run that is given up after its recoveries: what went wrong, and what to do."""

from __future__ import annotations

from tinker_recovery.errors import RecoveryExhausted, folded
from tinker_recovery.faults import Fault
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.recoverable import Recoverable
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.contact import unusable_by
from tinker_recovery.telemetry.text import counted


def exhausted(
    run: Recoverable,
    fault: Fault,
    policy: RecoveryPolicy,
    endpoint: Endpoint,
    *,
    patience: bool,
) -> RecoveryExhausted:
    """What to raise.

    Args:
        run: The run.
        fault: Its last fault.
        policy: Its limits.
        endpoint: The service.
        patience: Whether it was the waiting for the service that came to its limit.
    """
    errors = run.budget.errors
    attempts = counted(policy.max_attempts, "recovery attempt")
    spent = (
        f"{policy.max_wait_s:g} s of waiting for the service"
        if patience
        else f"{attempts} without a newer checkpoint in between"
    )
    step = fault.step if fault.failed_step is None else fault.failed_step
    setting = "max_wait_s" if patience else "max_attempts"
    unusable = unusable_by(errors[-1], endpoint) if errors else None
    why = f"{unusable}. Then" if unusable else "Next: once the cause is mended,"
    return RecoveryExhausted(
        f"run {run.name!r} was given up after {spent}; the last fault was "
        f"{fault.kind.value} at step {step}; what went wrong, in order: "
        f"{folded(repr(error) for error in errors)}. {why} run the same command again, which "
        "resumes a run with a name= from its newest checkpoint, or raise "
        f"{setting}; `tinker-recovery show {run.name}` has each of them",
        run=run.name,
        errors=errors,
    )
