"""Which checkpoints lie on the branch a run is on: a pure decision over its lineage.

A logical run is a chain of segments, one for each Tinker run id it has lived in. Each segment says
where it branched off, so what a later recovery abandoned can be told from what it built on: after
rolling back from step 1660 to 1615, the old segment's checkpoint 1640 belongs to no one.
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
    """One stretch of a logical run: what one attempt trained under one Tinker run id.

    Attributes:
        run_id: The Tinker run id.
        attempt: Id of the attempt.
        start_step: Optimizer steps contained in the weights it started with.
        parent: Path of the checkpoint it started from, or None if it began afresh.
    """

    run_id: str
    attempt: str
    start_step: int
    parent: str | None


def on_branch(segments: Sequence[Segment]) -> list[tuple[Segment, float]]:
    """The segments the newest one descends from, newest first, each with its last valid step.

    The newest has no limit (infinity); an older one counts only up to the step at which the next
    one branched off.
    """
    by_run = {segment.run_id: segment for segment in segments}
    chain: list[tuple[Segment, float]] = []
    current = segments[-1] if segments else None
    limit = math.inf
    while current is not None and all(current is not known for known, _ in chain):
        chain.append((current, limit))
        limit = min(limit, current.start_step)
        current = by_run.get(run_id_of(current.parent)) if current.parent else None
    return chain


def eligible(
    segment: Segment, limit: float, listed: Iterable[CheckpointRecord]
) -> list[CheckpointRecord]:
    """The checkpoints of one segment a run may go back to, the most steps first.

    Args:
        segment: One of :func:`on_branch`.
        limit: Its last valid step.
        listed: What the service lists for its Tinker run; other attempts' and abandoned ones are
            passed over.
    """
    own = [
        record
        for record in listed
        if record.attempt == segment.attempt and segment.start_step <= record.step <= limit
    ]
    # Two saves of one step hold the same state; the path makes the order total.
    return sorted(own, key=lambda record: (record.step, record.path), reverse=True)


_STEP_IN_NAME = re.compile(r"/weights/step-([0-9]+)-")


def segments_of(records: Iterable[CheckpointRecord]) -> list[Segment]:
    """The segments of one lineage as its checkpoints tell of them, oldest first.

    For whoever has nothing but the service's listing. An attempt that saved nothing is not in it,
    so what the newest one says may be behind the times: the run may have gone back since.

    Where an attempt began is what its parent checkpoint says; if that is gone, what its name says,
    or at the latest the first step it saved itself.

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
        began = _began(first.parent, by_path)
        start = min(record.step for record in own) if began is None else began
        found.append((first.time, Segment(run_id, attempt, start, first.parent)))
    return [segment for _, segment in sorted(found, key=lambda each: (each[0], each[1].attempt))]


def _began(parent: str | None, by_path: Mapping[str, CheckpointRecord]) -> int | None:
    if parent is None:
        return 0
    if parent in by_path:
        return by_path[parent].step
    named = _STEP_IN_NAME.search(parent)
    return None if named is None else int(named[1])


@dataclass(frozen=True, slots=True)
class Position:
    """Where a checkpoint lies in a lineage.

    Attributes:
        where: ``"branch"``: the run may go back to it. ``"abandoned"``: it was made by an attempt
            of the run, and a recovery left it behind. ``"unknown"``: no attempt we know made it.
        order: Of two places on the branch, the larger is the newer segment's.
        reason: Why it is not on the branch, in words; empty if it is.
    """

    where: Literal["branch", "abandoned", "unknown"]
    order: int = 0
    reason: str = ""


class Branch:
    """The branch a run is on, asked for one checkpoint after the other.

    Args:
        segments: Every Tinker run the run has lived in, oldest first.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._limits = {
            (segment.run_id, segment.attempt): (segment, limit, -age)
            for age, (segment, limit) in enumerate(on_branch(segments))
        }
        self._known = {(segment.run_id, segment.attempt) for segment in segments}
        self.parent = segments[-1].parent if segments else None
        """The checkpoint the newest attempt started from."""

    def place(self, record: CheckpointRecord) -> Position:
        """Where this checkpoint lies."""
        key = record.run_id, record.attempt
        if key not in self._known:
            return Position(
                "unknown",
                reason=f"attempt {record.attempt} of Tinker run {record.run_id} is not part of the "
                "history known of this run",
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
                reason=f"it says step {record.step}, and its attempt began at {segment.start_step}",
            )
        return Position("branch", order)
