"""The Saver: when one attempt saves, and what its checkpoints say of themselves.

The client asks it right before the first training request behind each optimizer step, under the
client's lock, and reports from the SDK's thread how each save ended. It keeps the ledger (only so
many saves in flight, a failed one due again at once) and takes the measurements that
``strategy="auto"`` decides by.

What the loop sets (its state, epoch and metrics) up to that training request belongs to the
optimizer step before it: that is where the loop continues if it is restored, whichever of its lines
comes first. What it sets later belongs to the next step, and is in no checkpoint of this one.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    SavedBy,
    SaveLedger,
    Segment,
    checkpoint_metadata,
    counts_epochs,
    schedule_of,
)
from tinker_recovery.checkpoints.interval import Plan
from tinker_recovery.checkpoints.ledger import is_reported
from tinker_recovery.checkpoints.metadata import encode_loop_state
from tinker_recovery.checkpoints.naming import SaveName, mark_of
from tinker_recovery.checkpoints.policies import plan_of
from tinker_recovery.checkpoints.trail import Trail
from tinker_recovery.errors import UsageError
from tinker_recovery.run.boundary import Asked, Boundary
from tinker_recovery.service import SaveRequest
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.text import counted, is_are

if TYPE_CHECKING:
    from tinker_recovery.run.supervised import SupervisedRun


logger = logging.getLogger(names.SCOPE)


STOP_AFTER = 3
"""Failed saves in a row after which ``on_save_failure="stop"`` ends the run."""


class Saver:
    """Decides when one attempt saves. Every method may be called from any thread.

    Args:
        run: The attempt's run.
        segment: The attempt's place in it.
        checkpoint: What the attempt started from.
        sound_step: The step up to which every request is known to have succeeded, at the moment.
        trail: What the weights were made of.
    """

    def __init__(
        self,
        run: SupervisedRun,
        segment: Segment,
        checkpoint: CheckpointRecord | None,
        sound_step: Callable[[], int],
        trail: Trail,
    ) -> None:
        policy = run.policy.checkpoints
        self._segment = segment
        self._sound_step = sound_step
        self._trail = trail
        self._schedule = schedule_of(policy)
        self._best_metric = policy.best_metric
        self._stops = policy.on_save_failure == "stop"
        self._most_in_flight = policy.max_saves_in_flight
        self._held_back = False
        self._not_due: Asked | None = None
        self._quiet: tuple[SaveLedger, float] | None = None
        self._counts_epochs = counts_epochs(policy)
        self._lineage = run.lineage
        self._run_name = run.given_name
        self._service = run.collaborators.reader.metadata
        self._service.know(run.lineage, run.given_name)
        self._remakeable = run.policy.enabled and run.origin is not None
        self.probes = False
        """Whether the next save finds out what the service does with metadata."""
        self._history = run.history
        self._prompt_facts = run.checkpoints.prompt_facts
        self._ttl_s = None if policy.ttl_s is None else int(policy.ttl_s)
        self._monotonic = run.clock.monotonic
        self._lock = run.history.saves.lock
        self._step_done_at = self._saved_at = now_s = self._monotonic()
        self._save_s: float | None = None
        self._steps_done = 0
        self.epoch = 0 if checkpoint is None else checkpoint.epoch or 0
        """Epochs completed."""
        self.loop_state: object = None if checkpoint is None else checkpoint.loop_state
        """The user's own state of the loop, stored with each checkpoint."""
        self._seen_state = self._encoded()
        # Whether no training request has followed the newest optimizer step, and whether any has
        # been submitted at all.
        self._at_boundary, self._began = True, False
        # Whether the state was set before the attempt's first training request; since the last
        # boundary; and by the one before.
        self._set_ahead = self._declared = False
        self._declares = self.loop_state is not None
        self._epoch_ended = self._ends = False
        self._saved_as: tuple[int, Boundary] | None = None
        self._again = 0
        self._metrics: Mapping[str, float] = {}
        # A loop that reports ahead of each batch means that batch, not the one before.
        self._step_metrics: Mapping[str, float] = {}
        self._reports_ahead = False
        self.canary: tuple[int, str] | None = None
        """Step and fingerprint of the newest save whose canary has answered."""
        ledger = SaveLedger(segment.start_step, now_s, self.epoch)
        # The saves the attempt descends from, so that "better than every save so far" goes on.
        for step, metrics in run.history.saved_below(segment.start_step, run.segments):
            ledger = ledger.began(step=step, now_s=now_s, epoch=self.epoch, metrics=metrics).stored(
                step
            )
        self._ledger = ledger
        self._closed = Boundary(self.epoch, self._seen_state, self._metrics)

    # What the loop sets

    def set_loop_state(self, state: object) -> None:
        """Keep the loop's state for the next checkpoints.

        Raises:
            UsageError: It cannot be stored, or cannot be assigned to a step; refused here and not
                inside some later step.
        """
        with self._lock:
            before, self.loop_state = self.loop_state, state
            try:
                self._see()
            except UsageError:
                self.loop_state = before
                raise
            self._declared = True

    def end_epoch(self) -> None:
        """Count an epoch as complete."""
        with self._lock:
            self.epoch += 1
            self._epoch_ended = self._at_boundary

    def report(self, metrics: Mapping[str, float]) -> None:
        """Keep the newest metrics."""
        with self._lock:
            self._reports_ahead = self._reports_ahead or not self._began
            self._metrics = {**self._metrics, **metrics}

    def _encoded(self) -> str | None:
        return None if self.loop_state is None else encode_loop_state(self.loop_state)

    def _see(self) -> None:
        """Look at the loop's state, which it may also have changed in place."""
        seen = self._encoded()
        if seen == self._seen_state:
            return
        if not self._began:
            self._set_ahead = True
        elif self._at_boundary and self._set_ahead:
            raise UsageError(
                "loop_state was set before the first forward_backward of this attempt, and now "
                "again between optim_step and forward_backward: whether it is where the loop "
                "stands before or after the batch to come cannot be known. Set it only behind "
                "optim_step, or between forward_backward and optim_step, to where the loop has to "
                "continue after that step"
            )
        self._declared, self._seen_state = True, seen

    def _now(self) -> Boundary:
        metrics = self._step_metrics if self._reports_ahead else self._metrics
        last = self._closed
        if last.metrics is metrics and (last.epoch, last.loop_state) == (
            self.epoch,
            self._seen_state,
        ):
            return last  # as at most steps, and making one takes longer
        return Boundary(self.epoch, self._seen_state, metrics)

    def _standing(self) -> Boundary:
        """What belongs to the newest optimizer step."""
        return self._now() if self._at_boundary else self._closed

    @property
    def awaits_state(self) -> bool:
        """Whether a loop that sets its state for each step has yet to do so for the newest."""
        with self._lock:
            return self._at_boundary and self._declares and not self._declared

    # When it saves

    def step_submitted(self, step: int, passes: float | None) -> bool:
        """The last optimizer step of a step was submitted; whether a save of it may be due.

        Args:
            step: Its number.
            passes: Forward and backward passes for each optimizer step; None for a step left out.
        """
        with self._lock:
            if passes not in (None, 1) and self._seen_state is None and not self._history.drifts:
                self._history.drifts = True
                logger.warning(
                    "run %s: %g forward_backward calls for one optim_step, and no loop_state: "
                    "attempt.start_step counts optimizer steps, so a loop whose index counts "
                    "batches would continue at the wrong one after a recovery. Keep the index in "
                    "attempt.loop_state; count an iteration that is left out with "
                    "attempt.client.skip_step()",
                    self.run_name,
                    passes,
                )
            self._at_boundary, self._epoch_ended = True, False
            self._step_metrics = self._metrics
            if self._history.saves.together:
                return True  # it may become due for another run of the group
            return bool(self._ledger.in_flight) or self.decides(step)

    def training_continues(self, step: int) -> SaveRequest | None:
        """A training request is about to be submitted; the save to queue before it, if any is due.

        Raises:
            UsageError: As :meth:`set_loop_state`, of a state that was changed in place.
        """
        if not self._at_boundary and self._seen_state is None:
            return None  # most often: inside a step there is nothing to see or to decide
        with self._lock:
            self._see()
            if not self._at_boundary:
                return None
            alone = not self._history.saves.together
            request = None if alone and self._is_quiet(step) else self.due(step)
            if request is None:
                request = self._save_again(step)
            if request is None and self._held_back:
                self._note_left_out(step)
            self._held_back = False  # a group may not ask this run at every step
            if not alone:
                self._history.saves.passed(step)
            self._closed, self._at_boundary, self._began = self._now(), False, True
            self._declares, self._declared = self._declared, False
            return request

    def while_idle(self, step: int) -> SaveRequest | None:
        """The save of the newest step, if it is due and the loop has set what belongs to it."""
        with self._lock:
            if not self._at_boundary or self.awaits_state:
                return None
            if (self._counts_epochs or self.epoch) and not self._epoch_ended:
                return None
            return self.due(step)

    def may_save_at(self, step: int) -> bool:
        """Whether the newest step is still this one, and no training request has followed it."""
        with self._lock:
            return self._at_boundary and self._ledger.newest_step < step

    @property
    def run_name(self) -> str:
        """The run's name, or its id where it has none."""
        return self._run_name or self._lineage

    @property
    def _most(self) -> int:
        # As long as metadata may be refused, a second save would only be refused as well.
        unsure = self._save_s is None and self._service.keeps == "unknown"
        return 1 if unsure else self._most_in_flight

    @property
    def is_full(self) -> bool:
        """Whether as many saves are in flight as may be."""
        return len(self._ledger.in_flight) >= self._most

    def may_begin(self, step: int) -> bool:
        """Whether a save of this step could be submitted."""
        return not self.is_full and step > self._ledger.newest_step

    @property
    def plan(self) -> Plan | None:
        """When the schedule saves next, and why then; None where the policy says it all."""
        with self._lock:
            if self._history.saves_off:
                return None
            moment = self._ledger.moment(step=0, now_s=0.0, evidence=self._history.evidence)
        return plan_of(self._schedule, moment)

    def _is_quiet(self, step: int) -> bool:
        """Whether the schedule has said that nothing is due before a later step."""
        quiet = self._quiet
        return quiet is not None and step < quiet[1] and quiet[0] is self._ledger

    def decides(self, step: int, *, end: bool = False) -> bool:
        """Whether the run's own schedule has this step saved."""
        if not end and self._is_quiet(step):
            return False
        if self._history.saves_off:
            return False
        standing, now_s = self._standing(), self._monotonic()
        asked = Asked(step, end, now_s, standing, self._ledger)
        if self._not_due is not None and self._not_due.answers(asked):
            return False
        decision = self._ledger.ask(
            self._schedule,
            most=self._most,
            step=step,
            now_s=now_s,
            epoch=standing.epoch,
            metrics=standing.metrics,
            end=end,
            evidence=self._history.evidence,
        )
        if not decision.due and not decision.left_out:
            self._not_due = asked
            self._quiet = self._ledger, decision.not_before
        if decision.stands_in and not self._history.stands_in:
            self._history.stands_in = True
            logger.warning(
                "run %s: its schedule cannot decide by step %d: %s. It saves by steps until it can",
                self.run_name,
                step,
                decision.reason,
            )
        self._held_back = decision.left_out
        return decision.due

    def _note_left_out(self, step: int) -> None:
        self._history.left_out += 1
        if is_reported(self._history.left_out):
            logger.warning(
                "run %s: step %d is due and not saved, as %s %s under way%s. Steps left out so "
                "far: %d. Save less often, or %s",
                self.run_name,
                step,
                counted(len(self._ledger.in_flight), "save"),
                is_are(len(self._ledger.in_flight)),
                "" if self._save_s is None else f"; the last one took {self._save_s:.1f} s",
                self._history.left_out,
                "with save_at_start=True: the first save, which shows if metadata is kept, is alone"
                if self._most < self._most_in_flight
                else f"allow more at once: max_saves_in_flight={self._most_in_flight}",
            )

    def due(self, step: int, *, end: bool = False) -> SaveRequest | None:
        """The save to queue behind this optimizer step, if the schedule says so."""
        with self._lock:
            if end:
                with contextlib.suppress(UsageError):  # a loop that ended well has ended well
                    self._see()
            self._ends = end
            if not self._history.saves.due(self, step, end=end):
                return self._save_again(step) if end else None
            return self.begin(step)

    def last(self, step: int) -> SaveRequest | None:
        """A save of this step whatever the schedule says, unless it is stored or under way.

        None as well if the loop was stopped before it had set its state for this step.
        """
        with self._lock:
            if self.is_full or step <= self._ledger.newest_step:
                return None
            return None if self.awaits_state else self.begin(step)

    def begin(self, step: int) -> SaveRequest | None:
        """A save of this step, whether or not it is due; it counts as in flight from now on.

        None if the run saves no more.
        """
        with self._lock:
            if self._history.saves_off:
                return None
            request = self._request(step)
            standing = self._standing()
            self._ledger = self._ledger.began(
                step=step,
                now_s=self._monotonic(),
                epoch=standing.epoch,
                metrics=standing.metrics,
            )
            return request

    def _save_again(self, step: int) -> SaveRequest | None:
        """One more save of a step that the loop has set something for since it was saved."""
        if (
            self._history.saves_off
            or not self._began
            or self._saved_as is None
            or self._saved_as[0] != step
        ):
            return None
        if self._saved_as[1] == self._standing():
            return None
        self._again += 1
        return self._request(step, self._again)

    def _request(self, step: int, again: int = 0) -> SaveRequest:
        name, metadata = self._name(step, again), self.metadata(step, "schedule")
        sent = self.sends_metadata()
        self._service.submitted(self._segment.run_id, name, metadata, sent=sent)
        return SaveRequest(name, metadata if sent else None, self._ttl_s)

    def sends_metadata(self) -> bool:
        """Whether saves carry metadata; not where a refusal could not be made up for."""
        keeps = self._service.keeps
        return keeps != "refused" and (keeps != "unknown" or self._remakeable or self.probes)

    def _name(self, step: int, again: int) -> str:
        lineage = mark_of(self._lineage)
        run = lineage if self._run_name is None else mark_of(self._run_name)
        standing = self._standing()
        has_state = standing.loop_state is not None or bool(standing.epoch)
        lag = max(0, step - self._sound_step())
        return str(SaveName(step, self._segment.attempt, run, lineage, lag, has_state, again))

    def metadata(self, step: int, asked_by: SavedBy) -> dict[str, str]:
        """What a checkpoint saved at this step says of itself.

        Raises:
            UsageError: The loop state cannot be stored.
        """
        with self._lock:
            if asked_by == "user":
                self._see()
            standing = self._standing()
            self._saved_as = step, standing
            metrics = self._history.fitting(self.run_name, standing.metrics, self._best_metric)
        sound_step = self._sound_step()
        return checkpoint_metadata(
            step=step,
            lineage=self._lineage,
            run_name=self._run_name,
            origin=self._history.origin,
            ended=self._ends and asked_by == "schedule" and sound_step >= step,
            attempt=self._segment.attempt,
            parent=self._segment.parent,
            saved_by=asked_by,
            epoch=standing.epoch or None,
            metrics=metrics,
            loop_state=json.loads(standing.loop_state or "null"),
            sound_step=sound_step,
            previous_canary=self.canary,
            canary_prompt=self._prompt_facts(),
            previous_save_s=self._save_s,
            trail=self._trail.followed,
            job=self._history.job,
        )

    def steps_done(self) -> int:
        """Steps complete."""
        return self._steps_done

    def stored(self, step: int) -> float | None:
        """A save of this step is stored; the seconds it took, unless it is the user's own."""
        with self._lock:
            saving = self._ledger.under_way(step)
            if saving is None:
                return None  # the user's own
            now_s = self._monotonic()
            # From the end of what was before it: what it waited in the queue is no cost of saving.
            self._save_s = now_s - max(saving.began_s, self._step_done_at, self._saved_at)
            self._saved_at = now_s
            self._history.evidence = self._history.evidence.saved(self._save_s)
            self._history.refused_saves = 0
            self._history.saved[self._segment.attempt, step] = saving.metrics
            self._ledger = self._ledger.stored(step)
            return self._save_s

    def failed(self, step: int) -> bool:
        """A save of this step failed; whether to report it (in a series ever more rarely)."""
        with self._lock:
            if self._ledger.under_way(step) is None:
                return True  # the user's own
            self._ledger, report = self._ledger.failed(step)
            return report

    @property
    def failing(self) -> tuple[int, int]:
        """How many saves in a row have failed, and the step of the last one stored."""
        return self._ledger.failures, self._ledger.last_step

    @property
    def gives_up(self) -> bool:
        """Whether the policy is to stop, as saving keeps failing."""
        return self._stops and self._ledger.failures >= STOP_AFTER

    def step_done(self) -> None:
        """A step is complete."""
        with self._lock:
            self._steps_done += 1
            now_s = self._monotonic()
            self._history.evidence = self._history.evidence.stepped(now_s - self._step_done_at)
            self._step_done_at = now_s
