"""The tree of a run: its segments, what each began from, and how much of each is still in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tinker_recovery.journal.reading import AttemptView, CheckpointView, RunView

_SCHEME = "tinker://"


@dataclass(frozen=True, slots=True)
class TreeSegment:
    """One attempt as a branch of the tree.

    Attributes:
        number: The attempt's.
        run_id: The Tinker run id.
        start_step: Where it begins.
        end_step: How far it got, as far as is known.
        kept_to: Up to here its steps are in the run's weights; ``start_step`` if it was abandoned
            whole, ``end_step`` if nothing of it was.
        parent: Number of the attempt whose checkpoint it began from; None if it began afresh.
        origin: Path of that checkpoint.
        outcome: How it ended; None while it goes on.
        checkpoints: Those saved in it, by step.
        started: Seconds since the epoch.
        ended: The same; of an attempt whose end nobody saw, its last sign of life.
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
        """Whether the run's weights still descend from a checkpoint of this segment."""
        return checkpoint.step <= self.kept_to and self.kept_to > self.start_step


def run_id_of(path: str) -> str:
    """The Tinker run that a checkpoint's path belongs to."""
    return path.removeprefix(_SCHEME).split("/", 1)[0]


def lineage(run: RunView) -> tuple[TreeSegment, ...]:
    """The segments of a run with its history, in the order of their attempts."""
    numbers = {each.run_id: each.number for each in run.attempts}
    segments = [_segment(run, attempt, numbers) for attempt in run.attempts]
    return branches(segments)


def branches(segments: Sequence[TreeSegment]) -> tuple[TreeSegment, ...]:
    """The same, each cut where the run turned away from it.

    What the run has are the newest segment, and of each ancestor what lies before the step at
    which its child began. Whatever begins afresh has no ancestors.
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
    own = tuple(each for each in run.checkpoints if run_id_of(each.path) == attempt.run_id)
    later = [each.started for each in run.attempts if each.number > attempt.number]
    until = attempt.ended if attempt.ended is not None else min([run.updated, *later])
    parent = None
    if attempt.parent is not None:
        parent = numbers.get(run_id_of(attempt.parent))
        # An attempt goes back to what was there before it.
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
    """The last step an attempt is known to have come to."""
    reached = [attempt.start_step, *(each.step for each in own)]
    if attempt is run.attempts[-1]:
        reached.append(run.step)
    # The loop reports the step it has just done, counted from 0.
    reached += [each.step + 1 for each in run.progress if attempt.started <= each.time <= until]
    reached += [
        each.step for each in run.incidents if attempt.started < each.started <= until + _SLACK_S
    ]
    return max(reached)


_SLACK_S = 0.001
"""The fault that ends an attempt and the attempt's end are told with one reading of the clock."""
