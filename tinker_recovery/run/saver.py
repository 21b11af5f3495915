"""The Saver: when one attempt saves, and what its checkpoints say of themselves.

The client asks it right behind each optimizer step, under the client's lock, and reports from the
SDK's thread how each save ended. It keeps the ledger (one save in flight at most, a failed one due
again at once) and takes the measurements that ``strategy="auto"`` decides by.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Evidence,
    SavedBy,
    SaveLedger,
    Segment,
    checkpoint_metadata,
    on_branch,
    schedule_of,
)
from tinker_recovery.checkpoints.metadata import encode_loop_state
from tinker_recovery.checkpoints.naming import SaveName, mark_of
from tinker_recovery.service import SaveRequest

if TYPE_CHECKING:
    from tinker_recovery.run.supervised import SupervisedRun


@dataclass(slots=True)
class RunHistory:
    """What the attempts of a run hand on to each other.

    Attributes:
        evidence: Step times, save costs and failures seen, for ``strategy="auto"``.
        saved: The (attempt, step) of every save stored, with the metrics it was stored with.
    """

    evidence: Evidence = field(default_factory=Evidence)
    saved: dict[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)

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


class Saver:
    """Decides when one attempt saves. Every method may be called from any thread."""

    def __init__(
        self, run: SupervisedRun, segment: Segment, checkpoint: CheckpointRecord | None
    ) -> None:
        policy = run.policy.checkpoints
        self._segment = segment
        self._schedule = schedule_of(policy)
        self._lineage = run.lineage
        self._run_name = run.given_name
        self._service = run.collaborators.reader.metadata
        self._service.know(run.lineage, run.given_name)
        self._remakeable = run.policy.enabled and run.origin is not None
        self.probes = False
        """Whether the next save finds out what the service does with metadata."""
        self._history = run.history
        self._ttl_s = None if policy.ttl_s is None else int(policy.ttl_s)
        self._monotonic = run.clock.monotonic
        self._lock = threading.RLock()
        self._step_done_at = now_s = self._monotonic()
        self._save_s: float | None = None
        self._steps_done = 0
        self.epoch = 0 if checkpoint is None else checkpoint.epoch or 0
        """Epochs completed."""
        self.loop_state: object = None if checkpoint is None else checkpoint.loop_state
        """The user's own state of the loop, stored with each checkpoint."""
        self.metrics: Mapping[str, float] = {}
        """The newest metrics."""
        self.canary: tuple[int, str] | None = None
        """Step and fingerprint of the newest save whose canary has answered."""
        ledger = SaveLedger(segment.start_step, now_s, self.epoch)
        # The saves the attempt descends from, so that "better than every save so far" goes on.
        for step, metrics in run.history.saved_below(segment.start_step, run.segments):
            ledger = ledger.began(step=step, now_s=now_s, epoch=self.epoch, metrics=metrics).stored(
                step
            )
        self._ledger = ledger

    def set_loop_state(self, state: object) -> None:
        """Keep the loop's state for the next checkpoints.

        Raises:
            UsageError: It cannot be stored; refused here and not inside some later step.
        """
        encode_loop_state(state)
        self.loop_state = state

    def due(self, step: int, *, end: bool = False) -> SaveRequest | None:
        """The save to queue behind this optimizer step, if the schedule says so."""
        with self._lock:
            now_s = self._monotonic()
            decision = self._ledger.ask(
                self._schedule,
                step=step,
                now_s=now_s,
                epoch=self.epoch,
                metrics=self.metrics,
                end=end,
                evidence=self._history.evidence,
            )
            if not decision.due:
                return None
            return self.begin(step)

    def last(self, step: int) -> SaveRequest | None:
        """A save of this step whatever the schedule says, unless it is stored or under way."""
        with self._lock:
            if self._ledger.in_flight is not None or step <= self._ledger.last_step:
                return None
            return self.begin(step)

    def begin(self, step: int) -> SaveRequest:
        """A save of this step, whether or not it is due; it counts as in flight from now on."""
        with self._lock:
            name, metadata = self._name(step), self.metadata(step, "schedule")
            sent = self.sends_metadata()
            self._service.submitted(self._segment.run_id, name, metadata, sent=sent)
            request = SaveRequest(name, metadata if sent else None, self._ttl_s)
            self._ledger = self._ledger.began(
                step=step, now_s=self._monotonic(), epoch=self.epoch, metrics=self.metrics
            )
            return request

    def sends_metadata(self) -> bool:
        """Whether saves carry metadata; not where a refusal could not be made up for."""
        keeps = self._service.keeps
        return keeps != "refused" and (keeps != "unknown" or self._remakeable or self.probes)

    def _name(self, step: int) -> str:
        lineage = mark_of(self._lineage)
        run = lineage if self._run_name is None else mark_of(self._run_name)
        has_state = self.loop_state is not None or bool(self.epoch)
        return str(SaveName(step, self._segment.attempt, run, lineage, has_state))

    def metadata(self, step: int, asked_by: SavedBy) -> dict[str, str]:
        """What a checkpoint saved at this step says of itself.

        Raises:
            UsageError: The metrics or the loop state cannot be stored.
        """
        return checkpoint_metadata(
            step=step,
            lineage=self._lineage,
            run_name=self._run_name,
            attempt=self._segment.attempt,
            parent=self._segment.parent,
            saved_by=asked_by,
            epoch=self.epoch or None,
            metrics=self.metrics,
            loop_state=self.loop_state,
            previous_canary=self.canary,
            previous_save_s=self._save_s,
        )

    def steps_done(self) -> int:
        """Optimizer steps complete."""
        return self._steps_done

    def stored(self, step: int) -> float | None:
        """A save of this step is stored; the seconds it took, unless it is the user's own."""
        with self._lock:
            saving = self._ledger.in_flight
            if saving is None or saving.step != step:
                return None  # the user's own
            now_s = self._monotonic()
            # From the end of the step before it: what it waited in the queue is no cost of saving.
            self._save_s = now_s - max(saving.began_s, self._step_done_at)
            self._history.evidence = self._history.evidence.saved(self._save_s)
            self._history.saved[self._segment.attempt, step] = saving.metrics
            self._ledger = self._ledger.stored(step)
            return self._save_s

    def failed(self, step: int) -> bool:
        """A save of this step failed; whether to report it (only the first of a series is)."""
        with self._lock:
            saving = self._ledger.in_flight
            if saving is None or saving.step != step:
                return True  # the user's own
            self._ledger, report = self._ledger.failed(step)
            return report

    def step_done(self) -> None:
        """An optimizer step is complete."""
        with self._lock:
            self._steps_done += 1
            now_s = self._monotonic()
            self._history.evidence = self._history.evidence.stepped(now_s - self._step_done_at)
            self._step_done_at = now_s
