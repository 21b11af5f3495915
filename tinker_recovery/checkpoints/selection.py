"""Which checkpoint to recover from: an order of candidates, and why the others were passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tinker_recovery.checkpoints.lineage import Branch, Segment
from tinker_recovery.checkpoints.record import CheckpointRecord, run_id_of
from tinker_recovery.checkpoints.retention import best_first
from tinker_recovery.checkpoints.schedule import Mode
from tinker_recovery.errors import UsageError


@dataclass(frozen=True, slots=True)
class Latest:
    """The most steps first."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best by a metric first, of equals the one with more steps.

    Those without a finite value of it follow, the most steps first: a recovery that goes on from
    an unmeasured checkpoint is better than none.
    """

    metric: str = "loss"
    mode: Mode = "min"


@dataclass(frozen=True, slots=True)
class AtPath:
    """This one or none, wherever it lies; also one the run has left behind."""

    path: str


@dataclass(frozen=True, slots=True)
class AtStep:
    """Those with exactly this many optimizer steps."""

    step: int


Wanted = Latest | Best | AtPath | AtStep
"""What a recovery goes back to."""


def wanted(strategy: str, *, metric: str = "loss", mode: Mode = "min") -> Wanted:
    """What ``"latest"``, ``"best"``, ``"step:N"`` or a ``tinker://`` path asks for.

    Args:
        strategy: One of these.
        metric: What ``"best"`` compares.
        mode: Whether a smaller or a larger value of it is better.

    Raises:
        UsageError: It is none of them.
    """
    if strategy == "latest":
        return Latest()
    if strategy == "best":
        return Best(metric, mode)
    if strategy.startswith("tinker://"):
        run_id_of(strategy)
        return AtPath(strategy)
    prefix, _, number = strategy.partition(":")
    if prefix == "step" and number.isdecimal():
        return AtStep(int(number))
    raise UsageError(
        f"strategy {strategy!r} is not known: use 'latest', 'best', 'step:N' with a number of "
        "optimizer steps, or the path of a training checkpoint, 'tinker://RUN/weights/NAME'"
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """What to try, in this order, and what was not considered.

    Attributes:
        candidates: The first is to be validated and taken, the next if it is refused, and so on.
        passed_over: Path to reason, in words, of every other one.
    """

    candidates: Sequence[CheckpointRecord] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)


def select(
    want: Wanted,
    listed: Iterable[CheckpointRecord],
    segments: Sequence[Segment],
    *,
    root: CheckpointRecord | None = None,
    bad: Mapping[str, str] | None = None,
    fault_began: datetime | None = None,
) -> Selection:
    """Order the checkpoints a run may go back to. Pure; the order of the input does not matter.

    Args:
        want: What is asked for.
        listed: What the service lists, of as many of the run's Tinker runs as were read.
        segments: Every Tinker run the run has lived in, oldest first.
        root: The checkpoint the user started the run from; the last to be tried.
        bad: Path to reason, of those found bad before, and of those whose deletion has begun.
        fault_began: When the fault began, by the service's clock: what was stored from then on may
            hold its damage. None if that is not known.
    """
    bad = bad or {}
    branch = Branch(segments)
    passed: dict[str, str] = {}
    found: list[tuple[CheckpointRecord, int]] = []
    for record in {record.path: record for record in listed}.values():
        place = branch.place(record)
        explicit = isinstance(want, AtPath) and record.path == want.path
        if record.path in bad:
            passed[record.path] = f"marked as bad: {bad[record.path]}"
        elif explicit or (root is not None and record.path == root.path):
            found.append((record, place.order))
        elif fault_began is not None and record.time >= fault_began:
            passed[record.path] = f"saved after the fault began at {fault_began:%Y-%m-%d %H:%M:%S}"
        elif place.where != "branch":
            passed[record.path] = place.reason
        else:
            found.append((record, place.order))
    if root is not None and root.path in bad:
        passed[root.path] = f"marked as bad: {bad[root.path]}"
    elif root is not None and all(record.path != root.path for record, _ in found):
        found.append((root, 0))
    # The root is last whatever its step says: its count of steps is another run's.
    newest_first = [
        record
        for record, _ in sorted(
            found,
            key=lambda item: (
                root is None or item[0].path != root.path,
                item[0].step,
                item[1],
                item[0].path,
            ),
            reverse=True,
        )
    ]
    chosen = _chosen(want, newest_first)
    paths = {record.path for record in chosen}
    for record in newest_first:
        if record.path not in paths:
            passed[record.path] = f"not what was asked for, {want}"
    return Selection(tuple(chosen), passed)


def _chosen(want: Wanted, newest_first: Sequence[CheckpointRecord]) -> list[CheckpointRecord]:
    match want:
        case Latest():
            return list(newest_first)
        case Best(metric, mode):
            ranked = best_first(newest_first, metric, mode)
            paths = {record.path for record in ranked}
            return ranked + [record for record in newest_first if record.path not in paths]
        case AtPath(path):
            return [record for record in newest_first if record.path == path]
        case AtStep(step):
            return [record for record in newest_first if record.step == step]
