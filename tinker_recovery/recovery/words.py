"""What the events of a recovery say, and their attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinker_recovery.errors import ANSWERED, FaultError, LeaseLost, StatusUnavailable
from tinker_recovery.faults import Fault, Kind, VerdictRule
from tinker_recovery.telemetry import names

_SAID_BY_ERROR = frozenset({Kind.ROLLED_BACK, Kind.GROUP_REWOUND, Kind.LEASE_LOST})
"""What is decided here, for one of several reasons, which the error names."""

_SILENCES = frozenset({Kind.SILENCE, Kind.SAMPLING_SILENCE})


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
    return f"{fault.kind.value} at step {fault.step}: {_why(fault)}"


def _why(fault: Fault) -> str:
    """Why it is one: what is known of this one, else what the table says of its kind."""
    if fault.kind in _SAID_BY_ERROR and isinstance(fault.error, FaultError | LeaseLost):
        return str(fault.error)
    if fault.kind in _SILENCES and fault.silent_s:
        return f"{fault.rule.reason} (silent for {fault.silent_s:.1f} s)"
    return fault.rule.reason


MOST_NAMED = 5
"""Checkpoints that are named before the rest is counted."""

UNANSWERED = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.STATUS_UNREAD})
"""What the service is said not to answer for; of anything else it has said something."""


def lacks(error: BaseException | None) -> bool:
    """Whether the service has answered, and did not list what it had stored."""
    return isinstance(error, StatusUnavailable) and error.status_code == ANSWERED


def waiting(
    silent_s: float, rule: VerdictRule | None, last: Exception | None, *, max_s: float
) -> str:
    """The service is waited for; reported at growing intervals.

    Args:
        silent_s: Seconds since the last step.
        rule: What the last try's error is.
        last: That error.
        max_s: For how long it is waited for.
    """
    kind = None if rule is None else rule.kind
    said = "the service asks to wait"
    if lacks(last):
        said = "the service answers, and lacks what this run has stored"
    elif kind in UNANSWERED:
        said = "the service does not answer"
    elif kind is Kind.UNAUTHORIZED:
        said = "the credential is refused"
    return (
        f"no step for {silent_s:.0f} s; {said}; waiting up to {max_s:g} s (max_wait_s); "
        f"the last try failed: {last}"
    )


def passed_over(by_reason: Mapping[str, Sequence[int | str]]) -> str:
    """Checkpoints that are not restored, by reason: their steps or names; empty for none."""
    return "".join(f"; passed over {_listed(each)}: {why}" for why, each in by_reason.items())


def _listed(named: Sequence[int | str]) -> str:
    *others, last = map(str, named)
    if len(others) >= MOST_NAMED:
        others, last = others[: MOST_NAMED - 1], f"{len(named) - MOST_NAMED + 1} more"
    return f"{', '.join(others)} and {last}" if others else last


def recovered(step: int | None, replayed: int) -> str:
    """A recovered client is handed over."""
    if step is None:
        return "recovered: a client at a step unknown to us is handed over"
    again = "1 step is" if replayed == 1 else f"{replayed} steps are"
    return f"recovered: the loop runs again from step {step}, {again} replayed"
