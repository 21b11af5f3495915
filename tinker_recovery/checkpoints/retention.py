"""Which checkpoints are worth keeping: small rules, joined by any-of.

A rule only says what to keep. What may never be deleted whatever the rules say (the newest valid
one, the one being read, what is not ours) is decided in
:mod:`~tinker_recovery.checkpoints.deletion_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinker_recovery.checkpoints.record import CheckpointRecord
from tinker_recovery.checkpoints.schedule import Mode
from tinker_recovery.errors import UsageError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint of the run's lineage as a rule sees it.

    Attributes:
        record: What it says of itself.
        counts: Whether a run could go back to it: it lies on the branch, is not known to be bad,
            has not expired and is ours to delete. Only these fill the places of "the last five" or
            "the best one".
    """

    record: CheckpointRecord
    counts: bool = True


class Retention(Protocol):
    """Decides what to keep."""

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """The paths to keep, each with the reason in words.

        Args:
            newest_first: Every checkpoint of the lineage over all its Tinker runs, most steps
                first; ties are in a fixed order.
        """
        ...


def _at_least_one(name: str, n: int) -> None:
    if n < 1:
        raise UsageError(
            f"{name}={n}: a rule has to keep something. To keep nothing by this rule, leave it out "
            "and keep by another one"
        )


def counted(held: Sequence[Candidate]) -> list[CheckpointRecord]:
    """The records among them that count."""
    return [each.record for each in held if each.counts]


@dataclass(frozen=True, slots=True)
class KeepAll:
    """Keep every one."""

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        return {held.record.path: "everything is kept" for held in newest_first}


@dataclass(frozen=True, slots=True)
class KeepLast:
    """Keep the ``n`` with the most steps. 0 is refused: see :class:`KeepAny`."""

    n: int

    def __post_init__(self) -> None:
        _at_least_one("keep_last", self.n)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        kept = counted(newest_first)[: self.n]
        return {record.path: f"among the last {self.n}" for record in kept}


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keep the ``n`` best by a metric; of equals the one with more steps.

    A metric that is missing, NaN or infinite is never among the best.
    """

    n: int = 1
    metric: str = "loss"
    mode: Mode = "min"

    def __post_init__(self) -> None:
        _at_least_one("keep_best", self.n)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        ranked = best_first(counted(newest_first), self.metric, self.mode)
        return {
            record.path: f"among the best {self.n}: {self.metric}={record.metrics[self.metric]:g}"
            for record in ranked[: self.n]
        }


def best_first(
    newest_first: Sequence[CheckpointRecord], metric: str, mode: Mode
) -> list[CheckpointRecord]:
    """Those whose metric is finite, the best first; equals stay in the order given."""
    sign = 1 if mode == "min" else -1
    known = [r for r in newest_first if math.isfinite(r.metrics.get(metric, math.nan))]
    return sorted(known, key=lambda record: sign * record.metrics[metric])


@dataclass(frozen=True, slots=True)
class KeepEvery:
    """Keep for ever those at a multiple of ``n`` optimizer steps."""

    n: int

    def __post_init__(self) -> None:
        _at_least_one("keep_every", self.n)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        kept = [record for record in counted(newest_first) if record.step % self.n == 0]
        return {record.path: f"at a multiple of {self.n} steps" for record in kept}


@dataclass(frozen=True, slots=True)
class KeepPinned:
    """Keep these paths, wherever they lie."""

    paths: Collection[str]

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        return {
            held.record.path: "pinned" for held in newest_first if held.record.path in self.paths
        }


@dataclass(frozen=True, slots=True)
class KeepIf:
    """Keep those a predicate of the user's says yes to, abandoned and bad ones too.

    What it raises goes to whoever asked for the plan, and nothing is deleted.
    """

    predicate: Callable[[CheckpointRecord], bool]
    reason: str = "the predicate says so"

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        kept = [held.record for held in newest_first if self.predicate(held.record)]
        return {record.path: self.reason for record in kept}


@dataclass(frozen=True, slots=True)
class KeepAny:
    """Keep what any of these keeps; all their reasons are told."""

    rules: tuple[Retention, ...]

    def __init__(self, *rules: Retention) -> None:
        if not rules:
            raise UsageError("KeepAny() without a rule would keep nothing: give it at least one")
        object.__setattr__(self, "rules", rules)

    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        """See :class:`Retention`."""
        reasons: dict[str, list[str]] = {}
        for rule in self.rules:
            for path, reason in rule.keep(newest_first).items():
                reasons.setdefault(path, []).append(reason)
        return {path: ", ".join(each) for path, each in reasons.items()}
