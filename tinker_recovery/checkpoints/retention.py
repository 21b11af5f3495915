"""Retention rules: which checkpoints to keep, and why.

What must not be deleted whatever the rules say (the newest valid one, one being read, what is not
ours) is decided in :mod:`~tinker_recovery.checkpoints.deletion_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinker_recovery.checkpoints.record import CheckpointRecord
from tinker_recovery.checkpoints.schedule import Mode, check_metric
from tinker_recovery.errors import UsageError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint of the run's lineage, for a rule to decide on.

    Attributes:
        record: Its metadata.
        counts: Whether it counts towards "the last five" or "the best one": it is on the branch,
            not known to be bad, not expired, not being deleted, and ours to delete.
    """

    record: CheckpointRecord
    counts: bool = True


class Retention(Protocol):
    """Decides what to keep."""

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """The paths to keep, each with the reason for people.

        Args:
            newest_first: Every checkpoint of the lineage, of all its Tinker runs, the most steps
                first.
        """
        ...


def _at_least_one(name: str, n: object) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(
            f"{name}={n!r}: it has to be a whole number, 1 or more; to keep nothing by this "
            "rule, leave it out and use another one"
        )


def counted(candidates: Sequence[Candidate]) -> list[CheckpointRecord]:
    """The records of those that count."""
    return [each.record for each in candidates if each.counts]


@dataclass(frozen=True, slots=True)
class KeepAll:
    """Keep all of them."""

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        return {each.record.path: "everything is kept" for each in newest_first}


@dataclass(frozen=True, slots=True)
class KeepLast:
    """Keep the ``n`` with the most steps."""

    n: int

    def __post_init__(self) -> None:
        _at_least_one("keep_last", self.n)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        kept = counted(newest_first)[: self.n]
        return {record.path: f"among the last {self.n}" for record in kept}


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keep the ``n`` best by a metric, of equals those with more steps.

    Those whose metric is missing, NaN or infinite are never among them.

    Attributes:
        n: How many.
        metric: What they are compared by.
        mode: Whether a smaller or a larger value of it is better.
        alone: Whether no other rule keeps any: then all stay while none has a finite value of the
            metric, which may be misspelt.
    """

    n: int = 1
    metric: str = "loss"
    mode: Mode = "min"
    alone: bool = False

    def __post_init__(self) -> None:
        _at_least_one("keep_best", self.n)
        check_metric(self.metric, self.mode)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        found = counted(newest_first)
        ranked = best_first(found, self.metric, self.mode)
        if self.alone and not ranked:
            why = f"none has a finite value of the metric {self.metric!r} yet"
            return {record.path: why for record in found}
        return {
            record.path: f"among the best {self.n}: {self.metric}={record.metrics[self.metric]:g}"
            for record in ranked[: self.n]
        }


def best_first(
    newest_first: Sequence[CheckpointRecord], metric: str, mode: Mode
) -> list[CheckpointRecord]:
    """Those whose metric is finite, the best first; equals stay in order."""
    known = [r for r in newest_first if math.isfinite(r.metrics.get(metric, math.nan))]
    return sorted(known, key=lambda record: record.metrics[metric], reverse=mode == "max")


@dataclass(frozen=True, slots=True)
class KeepEvery:
    """Keep the first at or after each multiple of ``n`` optimizer steps, for ever.

    Of step 0, that is one at step 0 itself.
    """

    n: int

    def __post_init__(self) -> None:
        _at_least_one("keep_every", self.n)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        kept: dict[str, str] = {}
        before = 0
        for record in reversed(counted(newest_first)):
            multiple = record.step - record.step % self.n
            if record.step == multiple:
                kept[record.path] = f"at a multiple of {self.n} steps"
            elif multiple > before:
                kept[record.path] = f"the first at or after step {multiple}"
            before = record.step
        return kept


@dataclass(frozen=True, slots=True)
class KeepPinned:
    """Keep these paths, abandoned and bad ones too."""

    paths: Collection[str]

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        return {
            each.record.path: "pinned" for each in newest_first if each.record.path in self.paths
        }


@dataclass(frozen=True, slots=True)
class KeepIf:
    """Keep those for which a function of the user is true, abandoned and bad ones too.

    What it raises ends the planning, so that nothing is deleted.
    """

    predicate: Callable[[CheckpointRecord], bool]

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        kept = [each.record for each in newest_first if self.predicate(each.record)]
        return {record.path: "keep_if is true for it" for record in kept}


@dataclass(frozen=True, slots=True)
class KeepAny:
    """Keep what any of these rules keeps, with all their reasons."""

    rules: tuple[Retention, ...]

    def __init__(self, *rules: Retention) -> None:
        if not rules:
            raise UsageError("KeepAny() needs at least one rule: without any it keeps nothing")
        object.__setattr__(self, "rules", rules)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        reasons: dict[str, list[str]] = {}
        for rule in self.rules:
            kept = rule.keep(newest_first)
            if not isinstance(kept, Mapping):
                raise UsageError(
                    f"{type(rule).__name__}.keep() returned {kept!r}: it has to be a mapping of "
                    "paths to reasons"
                )
            for path, reason in kept.items():
                reasons.setdefault(path, []).append(reason)
        return {path: ", ".join(each) for path, each in reasons.items()}
