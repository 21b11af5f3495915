"""The tree of a run: its segments, where each started, and how much of it the run has kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tinker_recovery.checkpoints import run_id_unchecked
from tinker_recovery.journal.reading import AttemptView, CheckpointView, RunView

_SLACK_S = 0.001
"""A fault and the end of the attempt it ends are recorded with one reading of the clock."""


@dataclass(frozen=True, slots=True)
class TreeSegment:
    """One attempt as a branch of the tree.

    Attributes:
        number: The attempt's.
        run_id: The Tinker run id.
        start_step: The step it started at.
        end_step: The last step it is known to have reached.
        kept_to: Its steps up to here are in the run's weights: ``start_step`` if none are,
            ``end_step`` if all are.
        parent: Number of the attempt whose checkpoint it started from; None if unknown or none.
        origin: Path of that checkpoint; None if it started without one.
        outcome: How it ended; None while it runs.
        checkpoints: Those saved in it, by step.
        started: Seconds since the epoch.
        ended: The same; if its end was not recorded, its last sign of life.
    """

    number: int
    run_id: str
    start_step: int
    end_step: int
    kept_to: int
    parent: int | None
    origin: str | None
    outcome: str | None
    checkpoints: tuple[CheckpointView, ...]
    started: float
    ended: float

    def keeps(self, checkpoint: CheckpointView) -> bool:
        """Whether the run's weights descend from this checkpoint of the segment."""
        return checkpoint.step <= self.kept_to and self.kept_to > self.start_step


def lineage(run: RunView) -> tuple[TreeSegment, ...]:
    """The segments of a run with its history, in the order of their attempts."""
    numbers = {each.run_id: each.number for each in run.attempts}
    segments = [_segment(run, attempt, numbers) for attempt in run.attempts]
    return branches(segments)


def branches(segments: Sequence[TreeSegment]) -> tuple[TreeSegment, ...]:
    """The same, each with ``kept_to`` set.

    The run keeps its newest segment, and each ancestor up to the step at which the next started.
    """
    if not segments:
        return ()
    known = {each.number: each for each in segments}
    kept: dict[int, int] = {}
    current: TreeSegment | None = segments[-1]
    limit = segments[-1].end_step
    while current is not None and current.number not in kept:
        kept[current.number] = max(current.start_step, min(current.end_step, limit))
        limit = min(limit, current.start_step)
        current = None if current.parent is None else known.get(current.parent)
    return tuple(replace(each, kept_to=kept.get(each.number, each.start_step)) for each in segments)


def _segment(run: RunView, attempt: AttemptView, numbers: Mapping[str, int]) -> TreeSegment:
    own = tuple(each for each in run.checkpoints if run_id_unchecked(each.path) == attempt.run_id)
    later = [each.started for each in run.attempts if each.number > attempt.number]
    until = attempt.ended if attempt.ended is not None else min([run.updated, *later])
    parent = None
    if attempt.parent is not None:
        parent = numbers.get(run_id_unchecked(attempt.parent))
        # An attempt descends from earlier ones only.
        parent = parent if parent is not None and parent < attempt.number else None
    end = _end_step(run, attempt, own, until)
    return TreeSegment(
        number=attempt.number,
        run_id=attempt.run_id,
        start_step=attempt.start_step,
        end_step=end,
        kept_to=end,
        parent=parent,
        origin=attempt.parent,
        outcome=attempt.outcome,
        checkpoints=own,
        started=attempt.started,
        ended=max(attempt.started, until),
    )


def _end_step(
    run: RunView, attempt: AttemptView, own: Sequence[CheckpointView], until: float
) -> int:
    """The last step an attempt is known to have reached."""
    reached = [attempt.start_step, *(each.step for each in own)]
    if attempt is run.attempts[-1]:
        reached.append(run.step)
    # The loop reports the step it has just done, counted from 0.
    reported = (*run.progress, *run.discarded)
    reached += [each.step + 1 for each in reported if attempt.started <= each.time <= until]
    # That a process was killed, its successor finds out after its attempt, and before the next.
    after = (each.started for each in run.attempts if each.number > attempt.number)
    following = min(after, default=math.inf)
    reached += [
        each.step
        for each in run.incidents
        if attempt.started < each.started
        and (each.started <= until + _SLACK_S or each.started < following)
    ]
    return max(reached)
