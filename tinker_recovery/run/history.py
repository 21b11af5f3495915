"""RunHistory: what the attempts of a run hand on to each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tinker_recovery.checkpoints import Evidence, Segment, on_branch
from tinker_recovery.checkpoints.metadata import fitting
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.run.once import Once
from tinker_recovery.run.recall import RunRecall
from tinker_recovery.run.saves_together import SavesTogether
from tinker_recovery.service.waits import Waits
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.run.open import OpenedRun


logger = logging.getLogger(names.SCOPE)

OFF_AFTER = 2
"""Saves in a row that each cost a client, after which a run asks for none any more."""


@dataclass(slots=True)
class RunHistory:
    """What the attempts of a run hand on to each other.

    Attributes:
        origin: How the run starts, as its checkpoints say.
        job: What submitted it; None if it is no job's.
        evidence: Step times, save costs and failures seen, for ``strategy="auto"``.
        saved: The (attempt, step) of every save stored, with the metrics it was stored with.
        no_metrics: Names that were reported with something that is no number.
        metrics_cut: Whether it was said that a checkpoint cannot hold all metrics.
        stands_in: Whether it was said that the schedule has nothing to decide by.
        left_out: How many steps that were due were not saved, as too many saves were under way.
        refused_saves: How many in a row have each cost a client, and none was stored.
        once: What the run has made once.
        recall: What the run keeps to be recalled.
        saves: Which steps it saves together with the other runs of its group.
        drifts: Whether it was said that the loop's index and its optimizer steps may drift apart.
        saves_inside: Whether it was said that what is saved inside an iteration has no step.
        waits: How long training waits for progress, for ``stall_after_s``.
        sample_waits: The same of sampling.
    """

    recall: RunRecall
    origin: Mapping[str, Any] = field(default_factory=dict)
    job: str | None = None
    evidence: Evidence = field(default_factory=Evidence)
    saved: dict[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)
    drifts: bool = False
    saves_inside: bool = False
    stands_in: bool = False
    left_out: int = 0
    refused_saves: int = 0
    no_metrics: set[str] = field(default_factory=set)
    metrics_cut: bool = False
    once: Once = field(default_factory=Once)
    saves: SavesTogether = field(default_factory=SavesTogether)
    waits: Waits = field(default_factory=Waits)
    sample_waits: Waits = field(default_factory=Waits)

    @classmethod
    def of(cls, opened: OpenedRun, policy: RecoveryPolicy) -> Self:
        """Of a run as it was opened, with what earlier processes have saved."""
        snapshot = opened.snapshot
        recall = RunRecall(opened, limit=policy.recall_bytes)
        saved = dict(snapshot.saved) if snapshot else {}
        return cls(recall, opened.origin, opened.plan.job, saved=saved)

    def saved_below(
        self, step: int, segments: Sequence[Segment]
    ) -> list[tuple[int, Mapping[str, float]]]:
        """The saves on the branch of these segments up to a step, with metrics, oldest first."""
        limits = {segment.attempt: limit for segment, limit in on_branch(segments)}
        return sorted(
            (
                (at, metrics)
                for (attempt, at), metrics in self.saved.items()
                if at <= min(step, limits.get(attempt, -1))
            ),
            key=lambda each: each[0],
        )

    def fitting(self, run: str, metrics: Mapping[str, float], best: str) -> Mapping[str, float]:
        """The metrics that a checkpoint of this run holds; the others are named once."""
        kept, left_out = fitting(metrics, best)
        if left_out and not self.metrics_cut:
            self.metrics_cut = True
            logger.warning(
                "run %s: %d metrics are too many for a checkpoint, which is stored without the "
                "last %d (%s, ...); the journal has all",
                run,
                len(metrics),
                len(left_out),
                left_out[0],
            )
        return kept

    @property
    def saves_off(self) -> bool:
        """Whether nothing is saved any more: each save has cost a client."""
        return self.refused_saves >= OFF_AFTER
