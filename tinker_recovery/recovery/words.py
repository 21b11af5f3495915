"""What the events of a recovery say, and their attributes."""

from __future__ import annotations

from tinker_recovery.faults import Fault
from tinker_recovery.telemetry import names


def attributes_of(fault: Fault) -> dict[str, str | int]:
    """A fault, as the attributes of its incident."""
    return {
        names.RUN_ID: fault.run_id,
        names.ATTEMPT: fault.attempt,
        names.FAULT_KIND: fault.kind.value,
        names.FAULT_REASON: fault.rule.reason,
        names.FAULT_DETECTED_BY: fault.detected_by.value,
        names.FAULT_STEP: fault.step,
        names.VERDICT: fault.verdict.value,
    }


def detected(fault: Fault) -> str:
    """A fault is detected."""
    return f"{fault.kind.value} at step {fault.step}: {fault.rule.reason}"


def recovered(step: int | None, replayed: int) -> str:
    """A recovered client is handed over."""
    if step is None:
        return "recovered: a client at a step unknown to us is handed over"
    return f"recovered: the loop runs again from step {step}, {replayed} steps are replayed"
