"""What the loop reports of a step, on its way to the journal and to trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope


def note_metrics(attempt: AttemptScope, metrics: Mapping[str, float]) -> None:
    """Pass on what the loop reports; from the loop's own thread."""
    run = attempt.run
    run.metrics = dict(metrics)
    # It is about the step whose results the loop has just seen.
    step = max(attempt.start_step, attempt.client.reported_step)
    run.journal.metrics(step, metrics)
    run.collaborators.outlets.reported(
        run.name,
        step,
        metrics,
        attempt=attempt.number,
        start_step=attempt.start_step,
        recoveries=len(run.recoveries),
    )
