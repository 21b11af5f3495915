"""What the client of one attempt reports to its run: from the SDK's thread to the event loop's."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import tinker
from tinker import types

from tinker_recovery.checkpoints.canary import answer_of
from tinker_recovery.faults import RULES, DetectedBy, Kind, SeenIn, Verdict, VerdictRule, judge
from tinker_recovery.recovery.metadata_notes import write_metadata
from tinker_recovery.run.judging import judge_request
from tinker_recovery.service import SaveRequest
from tinker_recovery.service.client import CANARY, SAVE
from tinker_recovery.service.refusals import in_words
from tinker_recovery.service.sampler import Source, SupervisedSamplerFuture
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.checkpoints.trail import Trail
    from tinker_recovery.run.saver import Saver
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.service.sampling import Renew

logger = logging.getLogger(names.SCOPE)


class AttemptHooks:
    """What the :class:`SupervisedClient` of one attempt calls, from any thread.

    What it posts runs on the event loop. ``save_due`` and its like are called under the client's
    lock.
    """

    def __init__(self, scope: AttemptScope, saver: Saver, trail: Trail) -> None:
        self._scope = scope
        self._run = scope.run
        self._said_left = False
        # Called for each training request, so without a call of ours around them.
        self.save_due: Callable[[int], SaveRequest | None] = saver.training_continues
        """Ask the schedule, before a training request."""
        self.training_submitted: Callable[..., None] = trail.passed
        """Note what goes into the weights."""

    def call_failed(self, operation: str, step: int | None, error: BaseException) -> None:
        """Judge a failed request, and declare or suspect a fault.

        A save whose result fails is none: nothing of the training depends on it.
        """
        if operation == SAVE and self._scope.refusal.is_it(error):
            self._scope.post(self._scope.refusal.note, error)
            return
        if operation == SAVE and isinstance(error, tinker.RequestFailedError):
            self._scope.post(self._scope.look_into_failed_save, error)
            return
        rule, elsewhere = judge_request(operation, error, self._run.policy.retryable_errors)
        if rule is None:
            return
        if operation == CANARY and self._scope.canary_loss.drops(rule, error):
            if rule.breaks_client:
                # It was never sent, which leaves a gap in the client's requests.
                self._scope.post(self._scope.declare_fault, RULES[Kind.CANCELLED], DetectedBy.CALL)
            return
        if rule.verdict is not Verdict.GIVE_UP:
            self._scope.post(self._declare_fault, rule, step, error)
        elif rule.breaks_client and not elsewhere:
            self._scope.post(self._scope.suspect_fault, rule, error, step)

    def was_cut(self) -> bool:
        """Whether the service has closed a connection of ours since it last answered."""
        run, http = self._run, self._run.collaborators.reader.http
        cut = run.rollbacks.sound_to == math.inf and http.take_cut()
        if cut:
            self._scope.post(functools.partial(run.rollbacks.note_cut, asked=True), self._scope)
            self._scope.post(http.cut)  # the other runs, which share it
        return cut

    def no_canary(self) -> None:
        """Say once that no canary can be made, and why."""
        logger.warning(
            "run %s has no canary (%s), so wrong weights after an outage or a restore would not be "
            "noticed: give the policy a small batch of text as canary=, or None",
            self._run.name,
            self._run.checkpoints.prompt.problem,
        )

    def _declare_fault(self, rule: VerdictRule, step: int | None, error: BaseException) -> None:
        self._scope.declare_fault(rule, DetectedBy.CALL, error, failed_step=step)

    def call_cancelled(self, operation: str, step: int | None) -> None:
        """A cancelled request leaves a gap: suspect a fault."""
        del operation
        self._scope.post(self._scope.suspect_fault, RULES[Kind.CANCELLED], None, step)

    def saving(self, path: str) -> None:
        """The loop is about to save to this path."""
        self._scope.sampling.note_saving(path)

    def sampler(self, made: Any, renew: Renew, source: Source) -> SupervisedSamplerFuture:
        """What the loop gets for a future of a sampling client."""
        return SupervisedSamplerFuture(self._scope.sampling, made, renew, source)

    def is_worth_renewing(self, error: BaseException) -> bool:
        """Whether a failed sample may succeed at a fresh sampler: nothing was wrong with it."""
        rule = judge(error, SeenIn.CALL, self._run.policy.retryable_errors)
        return rule is not None and rule.verdict is not Verdict.GIVE_UP

    def sampler_renewed(self, reason: str) -> None:
        """Say that a fresh sampler takes the place of one."""
        emit = self._run.collaborators.events.emit
        self._scope.post(emit, names.EVENT_SAMPLER_RENEWED, self._run.name, reason)

    def loss_not_finite(self, step: int, value: float) -> None:
        """Declare the fault of a loss that is NaN or infinite."""
        self._scope.post(self._scope.declare_bad_loss, step, value)

    def step_done(self) -> None:
        """Measure the step, and write the position now and then."""
        self._scope.saver.step_done()
        self._run.journal.step_done(self._scope)

    def update_submitted(self) -> None:
        """Note an optimizer step with which no iteration ends."""
        self._scope.recall.trail.stepped(skipped=False, ends=False)

    def step_submitted(self, step: int, passes: float | None) -> None:
        """Note an optimizer step with which one ends, or which is left out."""
        self._scope.recall.trail.stepped(skipped=passes is None)
        self._step_ends(step, passes)

    def iteration_ended(self, step: int, passes: float | None) -> None:
        """Note that an iteration ends behind the newest optimizer step."""
        self._scope.recall.trail.ended()
        self._step_ends(step, passes)

    def _step_ends(self, step: int, passes: float | None) -> None:
        """Have a save that is due sent if the loop goes idle."""
        if self._scope.saver.step_submitted(step, passes):
            self._scope.post(self._scope.save_when_idle, step)

    def save_while_idle(self, step: int) -> SaveRequest | None:
        """Ask the schedule, while the loop waits for everything it has submitted."""
        return self._scope.saver.while_idle(step)

    def left_inside(self, where: str) -> None:
        """Say once that the loop was left inside an iteration, where nothing is saved."""
        if not self._said_left and not self._scope.faulty:
            self._said_left = True
            logger.warning(
                "run %s: the loop was left inside an iteration, %s: what it has trained of it is "
                "in no checkpoint. If the loop was at its end, updates_per_step is not how many "
                "optimizer steps its iterations have: call attempt.client.end_iteration() behind "
                "those that have fewer",
                self._run.name,
                where,
            )

    def user_metadata(
        self, step: int | None, given: Mapping[str, str] | None
    ) -> dict[str, str] | None:
        """The user's own metadata, and ours where the service takes it and there is a step."""
        if step is None and not self._run.history.saves_inside:
            self._run.history.saves_inside = True
            logger.warning(
                "run %s: save_state() inside an iteration: the loop cannot begin there, so these "
                "checkpoints are without a step, and never recovered from. Save behind its last "
                "optim_step",
                self._run.name,
            )
        if step is None or not self._scope.saver.sends_metadata():
            return None if given is None else dict(given)
        return {**(given or {}), **self._scope.saver.metadata(step, "user")}

    def saved(self, step: int | None, path: str) -> None:
        """Note the checkpoint as stored; without a step, only that its path is no other's."""
        if step is None:
            self._scope.post(self._run.checkpoints.note_replaced, path)
            return
        took_s = self._scope.saver.stored(step)
        self._scope.post(self._note_stored, step, path, took_s)

    def sampler_saved(self, step: int | None, path: str) -> None:
        """The loop's own sampler weights are stored: the journal and the report name them."""
        at = "" if step is None else f", at step {step}"
        fields: dict[str, str | int] = {names.CHECKPOINT_PATH: path}
        if step is not None:
            fields[names.CHECKPOINT_STEP] = step
        emit = self._run.collaborators.events.emit
        message = f"sampler weights {path}{at}"
        self._scope.post(emit, names.EVENT_SAMPLER_SAVED, self._run.name, message, fields)

    def _note_stored(self, step: int, path: str, took_s: float | None) -> None:
        """A checkpoint is stored; progress, if it belongs to the attempt that runs."""
        run, scope = self._run, self._scope
        run.checkpoints.stored[path] = scope.id, step
        # The service goes back to its last checkpoint, so to none before this one.
        unanswered = scope.client.unanswered
        for older in [at for at in tuple(unanswered) if at < step]:
            unanswered.pop(older, None)
        if scope is run.current:
            run.rollbacks.note_stored(step)
        if (ttl_s := run.policy.checkpoints.ttl_s) is not None:
            run.checkpoints.note_lifetime(path, run.collaborators.reader.service_now() + ttl_s)
        if took_s is not None:
            run.collaborators.reader.metadata.stored(path)
            run.spawn(functools.partial(write_metadata, run.collaborators))
        run.checkpoints.write_canary(scope.id, step, run.collaborators)
        # A save queued behind a request that failed is stored all the same, and is no progress.
        sound = not scope.faulty and step <= scope.client.first_doubtful_step
        if scope is run.current and sound:
            run.budget.note_saved(step)
            run.collaborators.load_spare(run.name, path)
        run.retention.ask(run)
        run.journal.stored(scope, step, path, sound=sound)
        plan = scope.saver.plan
        run.collaborators.events.emit(
            names.EVENT_CHECKPOINT_SAVED,
            run.name,
            f"{path}, at step {step}" + ("" if plan is None else f"; {plan.words}"),
            {
                names.CHECKPOINT_PATH: path,
                names.CHECKPOINT_STEP: step,
                **({} if took_s is None else {names.SAVE_S: took_s}),
            },
        )

    def save_failed(
        self, step: int | None, error: BaseException, *, scheduled: bool = False
    ) -> None:
        """Report a failure, if it is to be reported; stop the run if the policy says so."""
        if step is None:
            return  # inside an iteration, so it would have been no point to recover from
        if self._scope.refusal.is_it(error, step, scheduled=scheduled):
            return  # the schedule must not ask for another: this client is of no use any more
        if self._scope.saver.failed(step):
            self._scope.post(self._note_save_failed, step, error)
        if self._scope.saver.gives_up:
            rule = RULES[Kind.SAVES_FAIL]
            self._scope.post(self._scope.declare_fault, rule, DetectedBy.CALL, error)

    def _note_save_failed(self, step: int, error: BaseException) -> None:
        """A save did not succeed; training continues. After a fault it is not reported."""
        if self._scope.faulty or self._scope.closed:
            return
        failures, last_step = self._scope.saver.failing
        series = (
            f"; {failures} saves in a row have failed, so a fault would now cost every step since "
            f"{last_step}"
            if failures > 1
            else "; it is due again at the next step"
        )
        self._run.collaborators.events.emit(
            names.EVENT_CHECKPOINT_SAVE_FAILED,
            self._run.name,
            f"step {step} was not saved: {in_words(error)}{series}",
            {names.CHECKPOINT_STEP: step, names.ERROR_TYPE: type(error).__qualname__},
        )

    def canary_answered(self, step: int, output: types.ForwardBackwardOutput) -> None:
        """Remember the canary's answer."""
        self._scope.canary_loss.answered()
        self._scope.post(self._note_canary, step, output)

    def _note_canary(self, step: int, output: types.ForwardBackwardOutput) -> None:
        """The canary was run on the weights of a checkpoint."""
        run, attempt = self._run, self._scope.id
        fingerprint = run.checkpoints.note_canary(attempt, step, answer_of(output))
        if fingerprint is not None:
            self._scope.client.unanswered.pop(step, None)
            # The next checkpoint carries it, so that any later process can compare.
            self._scope.saver.canary = step, fingerprint
        run.checkpoints.write_canary(attempt, step, run.collaborators)
        run.checkpoints.write_prompt(run.collaborators)
