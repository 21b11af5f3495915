"""How long a run may do no step before that is worth saying: by the pace of its own steps."""

from __future__ import annotations

import math
from typing import Literal

STALLED_S, FIRST_STEP_S, USUAL_STEPS = 300.0, 1800.0, 5
"""A run is shown as stalled after so long without a step, or so many of its usual steps if that is
longer; before an attempt's first step, whose length nobody knows, after the second one.
"""

QUIET_S, QUIET_STEPS = 30.0, 3
"""Before that, the time without a step is shown beside its state from here on."""


def usual_step_s(step: int, updated: float, newest: tuple[int, float] | None) -> float | None:
    """Seconds of a step, on average; None before the first of the newest attempt.

    Args:
        step: Steps done.
        updated: When the last was, in seconds since the epoch.
        newest: The step at which the newest attempt began, and when.
    """
    start_step, started = newest or (step, updated)
    return None if step <= start_step else (updated - started) / (step - start_step)


def stalled_after_s(step_s: float | None) -> float:
    """How long a run with steps of this length does none before it counts as stalled."""
    return FIRST_STEP_S if step_s is None else max(STALLED_S, USUAL_STEPS * step_s)


def state_of_training(
    step: int,
    updated: float,
    newest: tuple[int, float] | None,
    *,
    held_since: float,
    now: float,
) -> Literal["training", "resuming", "stalled"]:
    """How a run is shown that is in training, and whose process lives.

    Args:
        step: As for :func:`usual_step_s`, like the next two.
        updated: When the last was.
        newest: The newest attempt.
        held_since: When its process took the run.
        now: The time; all of them in seconds since the epoch.
    """
    # An attempt of the last process says nothing of what this one does.
    resuming = newest is not None and newest[1] < held_since
    step_s = None if resuming else usual_step_s(step, updated, newest)
    if now - max(updated, held_since) > stalled_after_s(step_s):
        return "stalled"
    return "resuming" if resuming else "training"


def quiet_after_s(step_s: float | None) -> float:
    """How long it does none before that is more than usual; never so before its first."""
    return math.inf if step_s is None else max(QUIET_S, QUIET_STEPS * step_s)
