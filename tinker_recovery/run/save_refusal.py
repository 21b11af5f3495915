"""SaveRefusal: a service that refuses a save, or its metadata, as one attempt finds out.

A refused request is missing in the order of the client's requests for good, so the client cannot be
used after it. Where it is not yet known what the service does, the save ahead of the loop's first
request finds out, before a step is lost.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.errors import causes
from tinker_recovery.faults import RULES, DetectedBy, Kind, SeenIn, Verdict, judge
from tinker_recovery.service.refusals import in_words, refuses_save
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

REFUSED_WITHIN_S = 5.0
"""A service that refuses the metadata of a save has done so by then."""


class SaveRefusal:
    """Whether a save of one attempt was refused: for its metadata, or whatever is in it."""

    def __init__(self, scope: AttemptScope) -> None:
        self._scope = scope
        self._seen = anyio.Event()
        self.error: BaseException | None = None
        """What the save failed with."""
        self.at_end = False
        """Whether it was the save of the loop's last step, so that nothing of the loop needs it."""
        self.rule = RULES[Kind.SAVE_REFUSED]
        """The fault that it is, once noted."""
        self._of_metadata = False
        self._step = -1

    def is_it(
        self, error: BaseException, step: int | None = None, *, scheduled: bool = False
    ) -> bool:
        """Whether a save has failed because the service refuses it. From any thread.

        The user's own save counts only if our metadata in it may be the reason: for the rest, they
        get the error.
        """
        if error is self.error:
            return True
        chain = list(causes(error))
        refused = scheduled and any(map(refuses_save, chain))
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
        if error is not self.error:
            return
        scope = self._scope
        rule = judge(error, SeenIn.CALL)
        if self._of_metadata:
            scope.run.collaborators.reader.metadata.refused()
            self.rule = RULES[Kind.METADATA_REFUSED]
        elif rule is not None and rule.verdict is not Verdict.GIVE_UP:
            # Of the rest no bare loop would be given up, as none would have asked.
            self.rule = rule
        scope.run.history.refused_saves += 1
        off = scope.run.history.saves_off
        stops = off and scope.run.policy.checkpoints.on_save_failure == "stop"
        if stops:
            self.rule = RULES[Kind.SAVES_FAIL]
        if not self._of_metadata:
            self._say(error, off=off and not stops)
        self._seen.set()
        self.at_end = scope.ending and self._step == scope.client.step
        if self.at_end:
            # A stop does not wait for what is behind the save; a loop that has ended does.
            scope.finished = scope.run.signals.requested
        elif scope.entered or stops:
            scope.declare_fault(self.rule, DetectedBy.CALL, error)
        else:
            # What fails behind the save is no fault of the run: another client is made anyway.
            scope.finished = True

    def _say(self, error: BaseException, *, off: bool) -> None:
        run = self._scope.run
        run.collaborators.events.emit(
            names.EVENT_CHECKPOINT_SAVE_FAILED,
            run.name,
            f"step {self._step} was not saved, and the service refuses it: {in_words(error)}"
            + (
                "; two in a row were refused, so none is asked for any more: the run trains on, "
                "and a fault costs every step since its newest checkpoint. To end it instead: "
                "CheckpointPolicy(on_save_failure='stop')"
                if off
                else ""
            ),
            {names.CHECKPOINT_STEP: self._step, names.ERROR_TYPE: type(error).__qualname__},
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
        scope.saver.probes = False
        scope.run.mailbox.deliver()
        if not self._seen.is_set() or scope.faulty:
            return True
        scope.left.set()
        await scope.close("interrupted", "the service refuses the save")
        return False
