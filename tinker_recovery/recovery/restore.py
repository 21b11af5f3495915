"""Restore: one try to bring a run's state back, from the choice of a checkpoint to a client.

Select a checkpoint, validate it, create a client from it, verify what came back. One that turns out
to be bad is rejected and the next is tried; what the service answers otherwise is raised. The same
for supervised and watched runs, which differ in the :class:`Ordering` of their checkpoints.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from tinker import types

from tinker_recovery.checkpoints import CheckpointRecord, Listed
from tinker_recovery.checkpoints.canary import ASKED, Answer, answer_of
from tinker_recovery.costs import tokens_in
from tinker_recovery.errors import (
    LeaseLost,
    NoUsableCheckpoint,
    OtherWeights,
    StatusUnavailable,
)
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.selection import (
    CheckpointSelection,
    Ordering,
    RestorableRun,
    ServiceTime,
    as_attributes,
)
from tinker_recovery.service import Connection, FromCheckpoint, Origin, Patience
from tinker_recovery.service.at_work import patiently
from tinker_recovery.service.guard import Guard
from tinker_recovery.service.listing import is_as_listed
from tinker_recovery.service.refusals import is_failed, is_refused
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry import names, phase, refuse

logger = logging.getLogger(names.SCOPE)


@dataclass(frozen=True, slots=True)
class Restored:
    """A client that stands where its checkpoint says.

    Attributes:
        connection: The client, with its session.
        checkpoint: What it was made from; None if the run starts over, or if it was not saved by a
            supervised client.
        answer: What the canary answered on it, where there is one.
        listed: The checkpoint as the service lists it, if it was listed for this.
    """

    connection: Connection
    checkpoint: CheckpointRecord | None
    answer: Answer | None
    listed: types.Checkpoint | None = None


class Restore:
    """One try; see the module.

    Args:
        run: Whose state to bring back.
        collaborators: What it is done with.
        waiting: Adds up the time spent waiting for the service; None where that is of no interest.
        ahead: Whether to open the new session while the checkpoint is being chosen. Not worth it
            where the service has just been out of reach: the SDK would try for minutes.
        order: In which order checkpoints are tried; None for the run's branch, by the policy.
        patience: How long to wait for the client, and again for its canary; None for as long as the
            policy says.
        guard: The run's claim, which is asked for before anything is done.
    """

    def __init__(
        self,
        run: RestorableRun,
        collaborators: Collaborators,
        *,
        waiting: ServiceTime | None = None,
        ahead: bool = False,
        order: Ordering | None = None,
        patience: Patience | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self._run = run
        self._collaborators = collaborators
        self._backend = collaborators.backend
        self._policy = collaborators.policy
        self._waiting = waiting or ServiceTime(collaborators.clock)
        self._ahead = ahead
        self._patience = patience or Patience(collaborators.policy.create_timeout_s)
        self._load_error: Exception | None = None
        self._selection = CheckpointSelection(run, collaborators, self._waiting, order)

    async def restore(self) -> Restored:
        """A new client, from the first checkpoint in order that turns out to be good.

        Cancelling it leaves no session behind.

        Raises:
            NoUsableCheckpoint: Checkpoints exist and none can be used, or there is none and the
                run cannot be started over.
            OtherWeights: Started over, the canary does not answer as it did when the run began; or
                it answered NaN on a checkpoint for the first time.
            DeadlineExceeded: The service did not finish in time.
            LeaseLost: The run is another process's by now.
            Exception: Whatever else the service answered.
        """
        await self._guard.check()
        # A session takes a while to open, and does not depend on what is chosen meanwhile.
        opening = self._backend.open_ahead() if self._ahead else None
        try:
            await self._run.checkpoints.refresh(self._collaborators)
            chosen, origin = await self._choose()
        except BaseException:
            if opening is not None:
                await self._backend.discard(opening)
            raise
        while True:
            restored = await self._restore_from_spare(chosen)
            if restored is not None:
                if opening is not None:
                    self._collaborators.spawn(functools.partial(self._backend.discard, opening))
                return restored
            restored = await self._restore_from(chosen, origin, opening)
            if restored is not None:
                return restored
            opening = None
            try:
                chosen, origin = await self._choose()
            except NoUsableCheckpoint:
                if self._load_error is None:
                    raise
                # There is nothing else, so it is tried again, as long as attempts are left.
                self._run.checkpoints.skipped.clear()
                raise self._load_error from None

    async def _choose(self) -> tuple[Listed | None, Origin]:
        chosen = await self._selection.choose()
        if chosen is not None:
            return chosen, FromCheckpoint(chosen.path, optimizer=self._policy.restore_optimizer)
        if self._run.origin is None:
            raise NoUsableCheckpoint(
                f"run {self._run.name!r} has no checkpoint yet, and its first client cannot be "
                "made again here, so it cannot be started over"
            )
        return None, self._run.origin

    async def _restore_from_spare(self, chosen: Listed | None) -> Restored | None:
        """The run's spare client, if it is of this checkpoint, and the canary says so; else None.

        What is wrong with a spare says nothing of its checkpoint.
        """
        known, record = self._run.checkpoints, None if chosen is None else chosen.record
        spares = self._collaborators.spares
        if spares is None or not self._ahead or chosen is None or record is None:
            return None
        if known.prompt.batch is None or not known.canaries.expects(record.attempt, record.step):
            return None
        connection = spares.take(self._run.name, chosen.path)
        if connection is None:
            return None
        good = False
        try:
            await self._announce(connection, chosen)
            answers, objection = await self._verify(connection, chosen)
            good = objection is None
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the same is tried next without the spare
            objection = repr(error)
        finally:
            if not good:
                self._collaborators.spawn(functools.partial(self.discard, connection))
        if objection is not None:
            logger.info("run %s: its spare client is not used: %s", self._run.name, objection)
            return None
        return Restored(connection, record, answers[0], chosen.source)

    async def _announce(self, connection: Connection, chosen: Listed) -> None:
        attributes = {**as_attributes(chosen), names.SPARE: True}
        with phase(names.SPAN_CREATE, attributes) as span, self._waiting:
            await self._guard.announce_run(connection.run_id)
            span.set_attribute(names.RUN_ID, connection.run_id)
        self._collaborators.events.emit(
            names.EVENT_CLIENT_CREATED,
            self._run.name,
            f"its spare client takes over: Tinker run {connection.run_id}",
            {names.RUN_ID: connection.run_id},
        )

    async def _restore_from(
        self, chosen: Listed | None, origin: Origin, opening: Any
    ) -> Restored | None:
        """A client made from there; None if the checkpoint turned out to be bad."""
        try:
            connection = await self._connect(chosen, origin, opening)
        except Exception as error:
            if chosen is None or isinstance(error, LeaseLost):
                raise
            reason = f"the service does not load it: {error}"
            if is_refused(error):
                await self._reject(chosen, reason)
            elif is_failed(error) and self._run.checkpoints.note_load_failed(chosen.path, reason):
                self._load_error = error
                self._collaborators.events.emit(
                    names.EVENT_CHECKPOINT_SKIPPED,
                    self._run.name,
                    f"{chosen.path} is passed over in this recovery: {reason}",
                    {names.CHECKPOINT_PATH: chosen.path, names.REASON: reason},
                )
            else:
                raise
            return None
        record = None if chosen is None else chosen.record
        good = False
        try:
            if chosen is not None and await self._was_replaced(chosen):
                return None
            answers, objection = await self._verify(connection, chosen)
            good = objection is None
        finally:
            if not good:
                await self.discard(connection)
        if objection is None:
            source = None if chosen is None else chosen.source
            return Restored(connection, record, answers[0] if answers else None, source)
        if chosen is None or record is None:
            raise OtherWeights(
                f"run {self._run.name!r} was started over, and its weights are not the ones it "
                f"began with: {objection}"
            )
        if not self._run.checkpoints.rejects(record, answers):
            raise OtherWeights(
                f"the canary answered with numbers that are not finite on weights restored "
                f"from {chosen.path}; if it does so again, the next older is used"
            )
        await self._reject(chosen, objection)
        return None

    async def _was_replaced(self, chosen: Listed) -> bool:
        """Whether another save has taken its place since it was listed: that may have been loaded.

        A save of an attempt that is dead by now, for one.
        """
        with self._waiting:
            if await is_as_listed(self._collaborators.reader, chosen):
                return False
        reason = "another save was written to its path while it was loaded"
        logger.warning("run %s: %s: %s; choosing again", self._run.name, chosen.path, reason)
        # What the user started from is not what it was: no waiting brings it back.
        waits = self._run.root is None or chosen.path != self._run.root.path
        if self._run.checkpoints.note_load_failed(chosen.path, reason) and waits:
            self._load_error = StatusUnavailable(f"{chosen.path}: {reason}")
        return True

    async def _reject(self, chosen: Listed, reason: str) -> None:
        await self._run.checkpoints.reject(chosen.path, reason, self._collaborators)

    async def _connect(self, chosen: Listed | None, origin: Origin, opening: Any) -> Connection:
        connection: Connection | None = None
        announced = False
        try:
            with phase(
                names.SPAN_CREATE,
                {**as_attributes(chosen), names.RESTORE_OPTIMIZER: self._policy.restore_optimizer},
            ) as span:
                with self._waiting:
                    connection = await self._backend.connect(
                        origin,
                        patience=self._patience,
                        pending=opening,
                        announce=self._guard.announce,
                    )
                    await self._guard.announce_run(connection.run_id)
                span.set_attribute(names.RUN_ID, connection.run_id)
                self._collaborators.events.emit(
                    names.EVENT_CLIENT_CREATED,
                    self._run.name,
                    f"new client: Tinker run {connection.run_id}",
                    {names.RUN_ID: connection.run_id},
                )
            announced = True
        finally:
            if connection is not None and not announced:
                await self.discard(connection)
        return connection

    async def _verify(
        self, connection: Connection, chosen: Listed | None
    ) -> tuple[list[Answer], str | None]:
        """What the canary answers on the new client, and the objection to using it, if any.

        It is asked again before there is one: an answer may be off once.
        """
        known = self._run.checkpoints
        answers: list[Answer] = []
        objection: str | None = None
        prompt = known.prompt.batch
        if prompt is None:
            return answers, None
        with phase(names.SPAN_VERIFY, as_attributes(chosen)) as span, self._waiting:
            record = None if chosen is None else chosen.record
            while not answers or (objection is not None and len(answers) < ASKED):
                answers.append(await self._ask(connection, prompt))
                if len(answers) > 1:
                    known.canaries.measure(*answers[-2:])
                objection = known.canary_objection(record, answers)
            if objection is not None:
                refuse(span, names.BAD_CHECKPOINT, objection)
        return answers, objection

    async def _ask(self, connection: Connection, prompt: list[types.Datum]) -> Answer:
        asking = connection.training.forward(prompt, "cross_entropy")
        self._run.checkpoints.prompt.spent += tokens_in(prompt)
        with patiently("running the canary on a restored client", self._patience):
            return answer_of(await result_of(asking.future()))

    @property
    def passed_over(self) -> Mapping[str, str]:
        """What would have come before the checkpoint chosen: path to reason."""
        return dict(self._selection.refused)

    async def progress(self) -> int | None:
        """How far the run has come by what is stored; see :meth:`Ordering.progress`.

        None if nothing is stored. Emits no event.

        Raises:
            NoUsableCheckpoint: As :meth:`restore`.
            StatusError: The listing could not be read.
        """
        found = await self._selection.choose(announce=False)
        return None if found is None else self._selection.order.progress(found)

    async def discard(self, connection: Connection) -> None:
        """Close a client that is not going to be used; never raises an Exception."""
        with anyio.CancelScope(shield=True):
            await self._backend.close(
                connection,
                "interrupted",
                "the recovery it was made for did not complete",
                deadline_s=self._policy.close_timeout_s,
            )
