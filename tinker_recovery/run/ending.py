"""How a run ended, for the line that says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinker_recovery.service.base import RUN_FINISHED
from tinker_recovery.telemetry.greeting import RunEnd

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.signals import StopSignals
    from tinker_recovery.run.supervised import SupervisedRun
    from tinker_recovery.service.base import CloseStatus


def end_of(run: SupervisedRun, error: BaseException | None) -> RunEnd:
    """How a run ended: well, by an error, or stopped from outside."""
    how = "finished" if error is None else "stopped"
    if isinstance(error, Exception):
        how = f"failed ({type(error).__name__})"
    checkpoint, waiting = _newest(run)
    replayed = sum(each.replayed_steps for each in run.recoveries)
    return RunEnd(
        run.name,
        how,
        step=run.step,
        recoveries=len(run.recoveries),
        replayed=replayed,
        lost_s=run.telemetry.figures.read().lost_s,
        checkpoint=checkpoint,
        waiting=None if error is None else waiting,
        trained=any(each.client.step > each.start_step for each in run.attempts),
    )


def stop_in_words(error: BaseException, signals: StopSignals | None = None) -> str:
    """What stopped a run, as far as is known.

    Args:
        error: What its loop was left by.
        signals: What its process was asked to stop by; None where that is not known.
    """
    if signals is not None and signals.by is not None:
        return f"stopped by {signals.by}"
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return f"stopped by {type(error).__name__}"


def _newest(run: SupervisedRun) -> tuple[str | None, str | None]:
    """The newest checkpoint that the next process restores, by what is known now.

    And a newer one, if that depends on what the service says of the run when it is asked again:
    see :func:`~tinker_recovery.recovery.resume.trusted_limit`.
    """
    current, checkpoints, segments = run.current, run.checkpoints, run.segments
    if current is None or current.faulty:
        return checkpoints.newest_trusted(segments), None
    sound_to = run.journal.sound_step(current)
    newest = checkpoints.newest_trusted(segments, newest_to=sound_to)
    if not run.rollbacks.in_doubt:
        return newest, None
    # Found corrupted, it is trusted up to the last poll before.
    polled_to = min(sound_to, run.rollbacks.polled_step)
    sure = checkpoints.newest_trusted(segments, newest_to=polled_to)
    return sure, None if newest == sure else newest


async def say_the_end(attempt: AttemptScope, error: BaseException | None) -> None:
    """Say at the service and in the journal how a run has ended: at both, or they would differ."""
    status: CloseStatus = "success"
    if error is not None:
        status = "errored" if isinstance(error, Exception) else "interrupted"
    await attempt.close(status, RUN_FINISHED if error is None else type(error).__name__)
    await attempt.run.journal.run_ends(error)
