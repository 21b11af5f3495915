"""The Saver: when one attempt saves, and what its checkpoints say of themselves.

Asked by the client right behind each optimizer step, under the client's lock; told from the SDK's
thread what became of each save. It keeps the ledger (one save in flight at most, a failed one due
again at once) and takes the measurements that ``strategy="auto"`` decides by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tinker_recovery.checkpoints import Evidence, SavedBy, SaveLedger, checkpoint_metadata
from tinker_recovery.checkpoints import Schedule as SaveSchedule
from tinker_recovery.service import SaveRequest


@dataclass(slots=True)
class RunHistory:
    """What the attempts of a run hand on to each other.

    Attributes:
        evidence: Step times, save costs and failures seen, for ``strategy="auto"``.
        saved: The (attempt, step) of every save stored, with the metrics it was stored with.
    """

    evidence: Evidence = field(default_factory=Evidence)
    saved: dict[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)


class Saver:
    """Decides when one attempt saves. Every method may be called from any thread.

    Args:
        attempt: The attempt's id, part of every name.
        schedule: When to save.
        lineage: The logical run.
        run_name: The name the user gave it, if they did.
        parent: Path of the checkpoint the attempt started from.
        start_step: Optimizer steps it started with.
        epoch: Epochs completed in them.
        loop_state: The user's own state that was stored with them.
        history: Shared by the attempts of the run.
        branch: The saves the attempt descends from, so that "better than every save" goes on.
        ttl_s: Lifetime of each save in seconds; None for no end.
        monotonic: Time.
    """

    def __init__(  # noqa: PLR0913 - an attempt's facts, by name
        self,
        *,
        attempt: str,
        schedule: SaveSchedule,
        lineage: str,
        run_name: str | None,
        parent: str | None,
        start_step: int,
        epoch: int,
        loop_state: object,
        history: RunHistory,
        branch: Iterable[tuple[int, Mapping[str, float]]],
        ttl_s: float | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._attempt = attempt
        self._schedule = schedule
        self._lineage = lineage
        self._run_name = run_name
        self._parent = parent
        self._history = history
        self._ttl_s = None if ttl_s is None else int(ttl_s)
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._step_done_at = monotonic()
        self._save_s: float | None = None
        self._steps_done = 0
        self.epoch = epoch
        """Epochs completed."""
        self.loop_state = loop_state
        """The user's own state of the loop, stored with each checkpoint."""
        self.metrics: Mapping[str, float] = {}
        """The newest metrics."""
        self.canary: tuple[int, str] | None = None
        """Step and fingerprint of the newest save whose canary has answered."""
        now_s = monotonic()
        ledger = SaveLedger(start_step, now_s, epoch)
        for step, metrics in branch:
            ledger = ledger.began(step=step, now_s=now_s, epoch=epoch, metrics=metrics).stored(step)
        self._ledger = ledger

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
            request = SaveRequest(
                f"step-{step:08d}-{self._attempt}", self.metadata(step, "schedule"), self._ttl_s
            )
            self._ledger = self._ledger.began(
                step=step, now_s=self._monotonic(), epoch=self.epoch, metrics=self.metrics
            )
            return request

    def metadata(self, step: int, asked_by: SavedBy) -> dict[str, str]:
        """What a checkpoint saved at this step says of itself.

        Raises:
            UsageError: The metrics or the loop state cannot be stored.
        """
        return checkpoint_metadata(
            step=step,
            lineage=self._lineage,
            run_name=self._run_name,
            attempt=self._attempt,
            parent=self._parent,
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
            self._history.saved[self._attempt, step] = saving.metrics
            self._ledger = self._ledger.stored(step)
            return self._save_s

    def failed(self, step: int) -> bool:
        """A save of this step failed; whether that is worth a word (the first of a row is)."""
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
