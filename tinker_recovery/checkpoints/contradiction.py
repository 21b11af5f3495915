"""Whether checkpoints that name one run can all be of it: a pure decision.

Whoever saves may pass on metadata that is not theirs: a script that copies it from the checkpoint
it began with, a tool that copies a checkpoint and changes its step. What this library writes has an
order that such copies break, and a run is not put together from what breaks it:

- an attempt trains under one Tinker run, and begins from one checkpoint, of another Tinker run
- it has all the steps of the checkpoint that it began from
- no more steps are known to have succeeded than there are
- a name that the schedule gave says the same as the metadata
- what an attempt saves later has no fewer steps

What cannot be known is no contradiction: parents that were deleted, paths that were written twice,
metadata that a service did not keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tinker_recovery.checkpoints.naming import SaveName, mark_of
from tinker_recovery.checkpoints.record import CheckpointRecord
from tinker_recovery.telemetry.text import counted

OUT_OF_ORDER = timedelta(minutes=1)
"""Two saves this near to each other may be stored, or dated, in another order than submitted."""

_STEP = re.compile(r"step-([0-9]+)-")
"""The beginning of the schedule's names, of earlier versions too."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Why checkpoints cannot all be of one run.

    Attributes:
        paths: Those that contradict each other; one alone if it contradicts itself.
        reason: What they say, for people.
    """

    paths: tuple[str, ...]
    reason: str


def contradiction(records: Iterable[CheckpointRecord]) -> Contradiction | None:
    """The first contradiction among the checkpoints of one lineage; None if they can be of one run.

    Args:
        records: All that the service lists of it, in any order.
    """
    ordered = sorted(records, key=lambda record: (record.time, record.step, record.path))
    by_path = {record.path: record for record in ordered}
    of: dict[str, list[CheckpointRecord]] = {}
    for record in ordered:
        of.setdefault(record.attempt, []).append(record)
    for own in of.values():
        found = _of_attempt(own) or _out_of_order(own)
        if found is not None:
            return found
    for record in ordered:
        if (reason := contradicts_itself(record)) is not None:
            return Contradiction((record.path,), reason)
        if (found := _with_parent(record, by_path)) is not None:
            return found
    return None


def _of_attempt(own: Sequence[CheckpointRecord]) -> Contradiction | None:
    """Whether an attempt has two Tinker runs, or two beginnings."""
    first = own[0]
    for record in own:
        if record.run_id != first.run_id:
            return Contradiction(
                (first.path, record.path),
                f"both are of attempt {first.attempt}, and an attempt trains under one Tinker run",
            )
    begun = [record for record in own if record.parent is not None]
    for record in begun:
        if record.parent != begun[0].parent:
            return Contradiction(
                (begun[0].path, record.path),
                f"both are of attempt {first.attempt}, and it began from {begun[0].parent} by the "
                f"one and from {record.parent} by the other",
            )
    return None


def _out_of_order(own: Sequence[CheckpointRecord]) -> Contradiction | None:
    """Whether one that was stored later has fewer steps.

    A path that was written twice may be dated by its first save, so nothing is compared with it
    that was stored later.
    """
    scheduled = [record for record in own if record.saved_by == "schedule"]
    highest: CheckpointRecord | None = None
    earlier = 0
    for record in own:
        while earlier < len(scheduled) and scheduled[earlier].time + OUT_OF_ORDER < record.time:
            if highest is None or scheduled[earlier].step > highest.step:
                highest = scheduled[earlier]
            earlier += 1
        if highest is not None and record.step < highest.step:
            return Contradiction(
                (highest.path, record.path),
                f"the second was saved later by the same attempt, with step {record.step} after "
                f"step {highest.step}",
            )
    return None


def contradicts_itself(record: CheckpointRecord) -> str | None:
    """Why what a checkpoint says of itself, by name and metadata, cannot be; None if it can.

    An earlier version, which said nothing of how many steps had succeeded, may have named it
    otherwise.
    """
    if record.parent == record.path:
        return "it names itself as its parent"
    if record.sound_step is None:
        return None
    if record.sound_step > record.step:
        done = counted(record.sound_step, "step")
        return f"its metadata has step {record.step}, and {done} that succeeded"
    return _named_otherwise(record) if record.saved_by == "schedule" else None


def _named_otherwise(record: CheckpointRecord) -> str | None:
    text = record.path.rpartition("/")[2]
    name, step = SaveName.read(text), _STEP.match(text)
    if step is None:
        return "its metadata says that the schedule saved it, which gives no such name"
    said: dict[str, tuple[object, object]] = {"step": (int(step[1]), record.step)}
    if name is not None:
        said["attempt"] = name.attempt, record.attempt
        said["lineage"] = name.lineage, mark_of(record.lineage)
    for what, (named, has) in said.items():
        if named != has:
            return f"by its name its {what} is {named}, and by its metadata {has}"
    return None


def _with_parent(
    record: CheckpointRecord, by_path: Mapping[str, CheckpointRecord]
) -> Contradiction | None:
    """Whether it cannot descend from the checkpoint that its attempt began from.

    What the user gave the run to start from is of another lineage, and may count other steps.
    """
    parent = by_path.get(record.parent or "")
    if parent is None:
        return None
    if parent.run_id == record.run_id:
        return Contradiction(
            (parent.path, record.path),
            "the attempt of the second began from the first, which is in the same Tinker run",
        )
    if parent.saved_by == "schedule" and record.step < parent.step:
        return Contradiction(
            (parent.path, record.path),
            f"the attempt of the second began from the first, at step {parent.step}, and the "
            f"second has step {record.step}",
        )
    return None
