"""SaveRefusal: a save that costs its client, as one attempt finds out.

The service refuses it, or its metadata; or does not answer it, while it answers all else. A request
that was not accepted is missing in the order of the client's requests for good, and what is behind
one that is never answered waits for ever, so the client cannot be used after it. A loop without
saves would go on, so after two in a row this one goes on without. Where it is not yet known what
the service does with metadata, the save ahead of the loop's first request finds out, before a step
is lost.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.errors import causes
from tinker_recovery.faults import RULES, DetectedBy, Kind, SeenIn, Verdict, VerdictRule, judge
from tinker_recovery.service.client import CANARY, SAVE
from tinker_recovery.service.refusals import in_words, outlasts_tries, refuses_save
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

REFUSED_WITHIN_S = 5.0
"""A service that refuses the metadata of a save has done so by then."""


class SaveRefusal:
    """Whether a save of one attempt has cost its client: refused, or not answered."""

    def __init__(self, scope: AttemptScope) -> None:
        self._scope = scope
        self._seen = anyio.Event()
        self.error: BaseException | None = None
        """What the save failed with."""
        self.at_end = False
        """Whether it was the save of the loop's last step, so that nothing of the loop needs it."""
        self.waiting: anyio.CancelScope | None = None
        """The wait for what is open at the loop's end: cancelled where no error would end it."""
        self.rule = RULES[Kind.SAVE_REFUSED]
        """The fault that it is, once noted."""
        self._of_metadata = self._counted = False
        self._step = -1

    def is_it(
        self, error: BaseException, step: int | None = None, *, scheduled: bool = False
    ) -> bool:
        """Whether a save has failed in a way that costs the client. From any thread.

        The user's own save counts only if our metadata in it may be the reason: for the rest, they
        get the error.
        """
        if error is self.error:
            return True
        chain = list(causes(error))
        refused = scheduled and any(map(refuses_save, chain))
        if scheduled and any(map(outlasts_tries, chain)):
            # In an outage it is no save that is to blame.
            refused = self._answers_otherwise
        if refused and self.error is not None:
            return True  # one behind it: this client is given up already
        metadata = self._scope.run.collaborators.reader.metadata
        # One that carried none was not refused for it.
        of_metadata = self._scope.saver.sends_metadata() and any(map(metadata.is_refusal, chain))
        if not of_metadata and not refused:
            return False
        self._of_metadata, self._step = of_metadata, -1 if step is None else step
        self.error = error
        return True

    def note(self, error: BaseException) -> None:
        """The client is unusable from here on: another is made, unless the loop needs none."""
        if error is not self.error or self._counted:
            return
        scope = self._scope
        rule = judge(error, SeenIn.CALL)
        if self._of_metadata:
            scope.run.collaborators.reader.metadata.refused()
            self.rule = RULES[Kind.METADATA_REFUSED]
        elif rule is not None and rule.verdict is not Verdict.GIVE_UP:
            # Of the rest no bare loop would be given up, as none would have asked.
            self.rule = rule
        final = any(map(refuses_save, causes(error)))
        how = "and the service refuses it" if final else "although the service answers all else"
        stops = self._count("" if self._of_metadata else f"{how}: {in_words(error)}", final=final)
        self._seen.set()
        if self.at_end:
            # A stop does not wait for what is behind the save; a loop that has ended does.
            scope.finished = scope.run.signals.requested
        elif scope.entered or stops or not scope.saver.probes:
            scope.declare_fault(self.rule, DetectedBy.CALL, error)
        else:
            # It is waited for, and another client made then: what fails behind the save is no fault
            # of the run. Without that wait, the loop would begin on this client.
            scope.finished = True

    def note_silence(self, rule: VerdictRule) -> VerdictRule | None:
        """The open requests are silent: the fault that is; None if the loop needs none of them.

        Where all wait behind a save, it is the save that the service does not answer.
        """
        if self._counted:
            return None if self.at_end else rule
        operation, step = self._scope.client.waits_for_ours or ("", -1)
        if operation == CANARY:
            self._scope.canary_loss.drops(rule, None)
        if operation != SAVE or not self._answers_otherwise:
            return rule
        self._step, self.rule = step, rule
        self._count("although the service answers all else", final=False)
        if self.at_end and self.waiting is not None:
            self.waiting.cancel()
        return None if self.at_end else self.rule

    @property
    def _answers_otherwise(self) -> bool:
        return not self._scope.run.rollbacks.is_out_of_reach

    def _count(self, why: str, *, final: bool) -> bool:
        """One more save has cost its client; whether the policy has the run stop for it.

        Args:
            why: What is said besides that it was not saved; empty if that is said elsewhere.
            final: Whether the service would answer another one alike.
        """
        scope = self._scope
        run, history = scope.run, scope.run.history
        self._counted = True
        history.refused_saves += 1
        # A bare loop would not have asked: what it costs is none of the run's own attempts.
        run.budget.refund()
        off = history.saves_off
        stops = off and run.policy.checkpoints.on_save_failure == "stop"
        if stops:
            self.rule = RULES[Kind.SAVES_FAIL]
        self.at_end = scope.ending and self._step == scope.client.step and (final or off)
        if why:
            self._say(why, off=off and not stops)
        return stops

    def _say(self, why: str, *, off: bool) -> None:
        run = self._scope.run
        run.collaborators.events.emit(
            names.EVENT_CHECKPOINT_SAVE_FAILED,
            run.name,
            f"step {self._step} was not saved, {why}"
            + (
                "; that makes two in a row, so none is asked for any more: the run trains on, and "
                "a fault costs every step since its newest checkpoint. To end it instead: "
                "CheckpointPolicy(on_save_failure='stop')"
                if off
                else ""
            ),
            {names.CHECKPOINT_STEP: self._step}
            | ({} if self.error is None else {names.ERROR_TYPE: type(self.error).__qualname__}),
        )

    async def is_absent(self) -> bool:
        """Wait whether the service refuses the save before the loop begins, if it may.

        If it does, this attempt is over, and another client has to be made. Cancelling it leaves
        the attempt as it is.
        """
        scope = self._scope
        if not scope.saver.probes:
            return True
        with anyio.move_on_after(REFUSED_WITHIN_S), contextlib.suppress(Exception):
            await scope.client.drain()
        scope.run.mailbox.deliver()
        scope.saver.probes = False
        if not self._seen.is_set() or scope.faulty:
            return True
        scope.left.set()
        await scope.close("interrupted", "the service refuses the save")
        return False
