"""Which checkpoints are on the current branch of a run's lineage.

A logical run is a chain of segments, one for each Tinker run it has lived in. Each records where it
branched off, and so what a recovery abandoned: after a rollback from step 1660 to 1615, the old
segment's checkpoint of step 1640 is not on the branch any more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tinker_recovery.checkpoints.record import CheckpointRecord, run_id_of


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a logical run that one attempt trained in one Tinker run.

    Attributes:
        run_id: The Tinker run id.
        attempt: Id of the attempt.
        start_step: Optimizer steps in the weights it started with.
        parent: Path of the checkpoint it started from; None if it started without one.
    """

    run_id: str
    attempt: str
    start_step: int
    parent: str | None


def on_branch(segments: Sequence[Segment]) -> list[tuple[Segment, float]]:
    """The newest segment and those it descends from, newest first, each with its last valid step.

    That is infinite for the newest, and for an older one the step at which the next branched off.
    """
    by_run = {segment.run_id: segment for segment in segments}
    chain: list[tuple[Segment, float]] = []
    seen: set[int] = set()
    current = segments[-1] if segments else None
    limit = math.inf
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        chain.append((current, limit))
        limit = min(limit, current.start_step)
        current = by_run.get(run_id_of(current.parent)) if current.parent else None
    return chain


def eligible(
    segment: Segment, limit: float, listed: Iterable[CheckpointRecord]
) -> list[CheckpointRecord]:
    """The checkpoints of a segment that a run may be recovered from, the most steps first.

    Args:
        segment: One of :func:`on_branch`.
        limit: Its last valid step.
        listed: What the service lists for its Tinker run.
    """
    own = [
        record
        for record in listed
        if record.attempt == segment.attempt and segment.start_step <= record.step <= limit
    ]
    # Of one step the newer: the weights are the same, and it has what the loop has set since.
    return sorted(own, key=lambda record: (record.step, record.time, record.path), reverse=True)


_STEP_IN_NAME = re.compile(r"/weights/step-([0-9]+)-")


def segments_of(records: Iterable[CheckpointRecord]) -> list[Segment]:
    """The segments of one lineage, oldest first, from its checkpoints alone (no journal).

    An attempt that saved nothing is missing, so the newest segment may be out of date: the run may
    have been rolled back since. An attempt's start step is that of its parent checkpoint; if that
    is gone, the step in its name; failing that, the first step the attempt saved.

    Args:
        records: Checkpoints of one lineage, in any order.
    """
    by_path = {record.path: record for record in records}
    of: dict[tuple[str, str], list[CheckpointRecord]] = {}
    for record in by_path.values():
        of.setdefault((record.run_id, record.attempt), []).append(record)
    found: list[tuple[datetime, Segment]] = []
    for (run_id, attempt), own in of.items():
        first = min(own, key=lambda record: (record.time, record.path))
        start = _start_step(first.parent, by_path)
        if start is None:
            start = min(record.step for record in own)
        found.append((first.time, Segment(run_id, attempt, start, first.parent)))
    return [segment for _, segment in sorted(found, key=lambda each: (each[0], each[1].attempt))]


def _start_step(parent: str | None, by_path: Mapping[str, CheckpointRecord]) -> int | None:
    if parent is None:
        return 0
    if parent in by_path:
        return by_path[parent].step
    named = _STEP_IN_NAME.search(parent)
    return None if named is None else int(named[1])


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a checkpoint in a lineage.

    Attributes:
        where: ``"branch"``: the run may be recovered from it. ``"abandoned"``: an attempt of the
            run made it, and a recovery went back further. ``"unknown"``: no known attempt made it.
        order: Among positions on the branch, larger in newer segments.
        reason: Why it is not on the branch, for people; empty if it is.
    """

    where: Literal["branch", "abandoned", "unknown"]
    order: int = 0
    reason: str = ""


class Branch:
    """The current branch of a run.

    Args:
        segments: Every Tinker run the run has lived in, oldest first.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = on_branch(segments)
        """Those that the newest descends from, newest first; see :func:`on_branch`."""
        self._limits = {
            (segment.run_id, segment.attempt): (segment, limit, -age)
            for age, (segment, limit) in enumerate(self.segments)
        }
        self._known = {(segment.run_id, segment.attempt) for segment in segments}
        self.parent = segments[-1].parent if segments else None
        """The checkpoint the newest attempt started from."""

    def position(self, record: CheckpointRecord) -> Position:
        """The position of a checkpoint."""
        key = record.run_id, record.attempt
        if key not in self._known:
            return Position(
                "unknown",
                reason=f"attempt {record.attempt} of Tinker run {record.run_id} is not part of the "
                "run's known history",
            )
        if key not in self._limits:
            return Position(
                "abandoned", reason=f"the run went back to before Tinker run {record.run_id} began"
            )
        segment, limit, order = self._limits[key]
        if record.step > limit:
            return Position("abandoned", reason=f"the run went back to step {limit:.0f}")
        if record.step < segment.start_step:
            return Position(
                "unknown",
                reason=f"its step is {record.step}, and its attempt began at {segment.start_step}",
            )
        return Position("branch", order)
