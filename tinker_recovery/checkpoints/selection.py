"""Which checkpoint to recover from: candidates in order, and why the others are passed over."""

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
    """The best by a metric first, of equals those with more steps.

    Those without a finite value follow, the most steps first: better than no recovery.
    """

    metric: str = "loss"
    mode: Mode = "min"


@dataclass(frozen=True, slots=True)
class AtPath:
    """This one or none; it may be abandoned."""

    path: str


@dataclass(frozen=True, slots=True)
class AtStep:
    """Those with exactly this many optimizer steps."""

    step: int


Wanted = Latest | Best | AtPath | AtStep
"""What to recover from."""


def wanted(strategy: str, *, metric: str = "loss", mode: Mode = "min") -> Wanted:
    """The meaning of a policy's ``checkpoint_strategy``.

    Args:
        strategy: ``"latest"``, ``"best"``, ``"step:N"`` or a ``tinker://`` path.
        metric: What ``"best"`` compares.
        mode: Whether a smaller or a larger value of it is better.

    Raises:
        UsageError: The strategy is none of them.
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
    """What to try to recover from.

    Attributes:
        candidates: In the order in which to try them.
        passed_over: Path to reason, for people, of every other one.
    """

    candidates: Sequence[CheckpointRecord] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)


def select(
    want: Wanted,
    listed: Iterable[CheckpointRecord],
    segments: Sequence[Segment] | Branch,
    *,
    root: CheckpointRecord | None = None,
    bad: Mapping[str, str] | None = None,
) -> Selection:
    """Order the checkpoints a run may be recovered from; the order of the input does not matter.

    Args:
        want: What to recover from.
        listed: What the service lists, of as many of the run's Tinker runs as were read.
        segments: Every Tinker run the run has lived in, oldest first; or the branch of them.
        root: The checkpoint the user started the run from; the last to be tried.
        bad: Path to reason, of those found bad, and of those whose deletion has begun.
    """
    bad = bad or {}
    branch = segments if isinstance(segments, Branch) else Branch(segments)
    records = {record.path: record for record in listed}
    allowed = {want.path} if isinstance(want, AtPath) else set()
    if root is not None:
        records.setdefault(root.path, root)
        allowed.add(root.path)
    passed: dict[str, str] = {}
    found: list[tuple[bool, int, int, datetime, str]] = []
    for path, record in records.items():
        position = branch.position(record)
        if path in bad:
            passed[path] = f"marked as bad: {bad[path]}"
        elif position.where != "branch" and path not in allowed:
            passed[path] = position.reason
        else:
            # The root is last whatever its step: it counts another run's steps.
            is_root = root is not None and path == root.path
            # Of one step the newer: it has what the loop has set since.
            found.append((not is_root, record.step, position.order, record.time, path))
    newest_first = [records[path] for *_, path in sorted(found, reverse=True)]
    chosen = _chosen(want, newest_first)
    paths = {record.path for record in chosen}
    for record in newest_first:
        if record.path not in paths:
            passed[record.path] = f"not asked for: {want}"
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
