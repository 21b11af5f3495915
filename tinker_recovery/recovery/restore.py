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

import anyio
from tinker import types

from tinker_recovery.checkpoints import CheckpointRecord, Listed
from tinker_recovery.checkpoints.canary import ASKED, Answer, Match, answer_of
from tinker_recovery.costs import tokens_in
from tinker_recovery.errors import (
    LeaseLost,
    NoUsableCheckpoint,
    OtherWeights,
    StatusUnavailable,
)
from tinker_recovery.recovery.ahead import Ahead
from tinker_recovery.recovery.checkpoint_state import NOT_KNOWN
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
from tinker_recovery.service.refusals import in_words, is_failed, is_refused
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
        self._spare_taken = False
        self._outages_before = 0
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
        ahead = self._begin_ahead()
        try:
            if ahead.path is None:
                await self._refresh()
            else:
                self._refresh_meanwhile()
            while True:
                try:
                    chosen, origin = await self._choose()
                except NoUsableCheckpoint:
                    if self._load_error is None:
                        raise
                    # There is nothing else, so it is tried again, as long as attempts are left.
                    self._run.checkpoints.skipped.clear()
                    raise self._load_error from None
                restored = await self._restore_from(chosen, origin, ahead)
                if restored is not None:
                    return restored
        except BaseException:
            await ahead.discard()
            raise

    def _begin_ahead(self) -> Ahead:
        """Begin with what does not depend on the choice, and with what is probably chosen."""
        ahead = Ahead(self._backend, self._collaborators.spawn, self.discard)
        if not self._ahead:
            return ahead
        expected = self._selection.expected()
        if expected is None:
            ahead.open()
        elif (spare := self._take_spare(expected)) is not None:
            self._outages_before, self._spare_taken = self._outages(), True

            async def taken() -> Connection:
                return spare

            ahead.make(expected, taken, self._ask)
        else:
            known = self._run.checkpoints
            at = known.stored.get(expected)
            asks = self._asks(answered=at is not None and known.canaries.expects(*at))
            making = functools.partial(
                self._backend.connect,
                self._from(expected),
                patience=self._patience,
                pending=self._backend.open_ahead(),
                announce=self._guard.announce,
            )
            ahead.make(expected, making, self._ask if asks else None)
        return ahead

    async def _refresh(self) -> None:
        await self._run.checkpoints.refresh(self._collaborators)

    def _refresh_meanwhile(self) -> None:
        """Read the journal's notes while the newest checkpoints are being listed."""
        refreshed = anyio.Event()

        async def refresh() -> None:
            try:
                await self._refresh()
            finally:
                refreshed.set()

        self._selection.notes_read = refreshed.wait
        self._collaborators.spawn(refresh)

    def _outages(self) -> int:
        spares = self._collaborators.spares
        return 0 if spares is None else spares.outages(self._run.name)

    async def _choose(self) -> tuple[Listed | None, Origin]:
        chosen = await self._selection.choose()
        if chosen is not None:
            return chosen, self._from(chosen.path)
        if self._run.origin is None:
            raise NoUsableCheckpoint(
                f"run {self._run.name!r} has no checkpoint yet, and its first client cannot be "
                "made again here, so it cannot be started over"
            )
        return None, self._run.origin

    def _from(self, path: str) -> Origin:
        return FromCheckpoint(path, optimizer=self._policy.restore_optimizer)

    def _take_spare(self, path: str) -> Connection | None:
        """The run's spare client, if it is of this checkpoint and its weights can be verified."""
        known, spares = self._run.checkpoints, self._collaborators.spares
        at = known.stored.get(path)
        if spares is None or known.prompt.batch is None or at is None:
            return None
        return spares.take(self._run.name, path) if known.canaries.expects(*at) else None

    async def _restore_from_spare(self, chosen: Listed, ahead: Ahead) -> Restored | None:
        """The run's spare client, if the canary agrees; else None.

        What is wrong with a spare says nothing of its checkpoint.
        """
        try:
            with self._waiting:
                connection = await ahead.take()
            restored = None
            try:
                await self._announce_spare(connection, chosen)
                answers, objection = await self._verify(connection, chosen, ahead)
                if self._outages() != self._outages_before:
                    objection = "an outage was met while the checkpoint was being chosen"
                if objection is None:
                    restored = Restored(connection, chosen.record, answers[0], chosen.source)
            finally:
                if restored is None:
                    ahead.drop()
                    self._collaborators.spawn(functools.partial(self.discard, connection))
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the same is tried next without the spare
            objection = repr(error)
        if objection is not None:
            logger.info("run %s: its spare client is not used: %s", self._run.name, objection)
            return None
        return restored

    async def _announce_spare(self, connection: Connection, chosen: Listed) -> None:
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
        self, chosen: Listed | None, origin: Origin, ahead: Ahead
    ) -> Restored | None:
        """A client made from there; None if the checkpoint turned out to be bad."""
        # What may be replaced is loaded once it has been listed, to be compared with that.
        if chosen is None or chosen.path != ahead.path or chosen.rewritable:
            ahead.drop()
        elif self._spare_taken:
            restored = await self._restore_from_spare(chosen, ahead)
            if restored is not None:
                return restored
            ahead.open()
        try:
            connection = await self._connect(chosen, origin, ahead)
        except Exception as error:
            if chosen is None or not await self._is_passed_over(chosen, error):
                raise
            return None
        good = False
        try:
            if chosen is not None and await self._was_replaced(chosen):
                return None
            answers, objection = await self._verify(connection, chosen, ahead)
            good = objection is None
        finally:
            if not good:
                ahead.drop()
                await self.discard(connection)
        if objection is not None:
            await self._reject_weights(chosen, answers, objection)
            return None
        if chosen is None:
            return Restored(connection, None, answers[0] if answers else None)
        return Restored(connection, chosen.record, answers[0] if answers else None, chosen.source)

    async def _is_passed_over(self, chosen: Listed, error: Exception) -> bool:
        """Whether another checkpoint is tried, as this one does not load."""
        reason = f"the service does not load it: {in_words(error)}"
        if isinstance(error, LeaseLost):
            return False
        if is_refused(error):
            await self._reject(chosen, reason)
            return True
        if not is_failed(error) or not self._run.checkpoints.note_load_failed(chosen.path, reason):
            return False
        self._load_error = error
        self._collaborators.events.emit(
            names.EVENT_CHECKPOINT_SKIPPED,
            self._run.name,
            f"{chosen.path} is passed over in this recovery: {reason}",
            {names.CHECKPOINT_PATH: chosen.path, names.REASON: reason},
        )
        return True

    async def _reject_weights(
        self, chosen: Listed | None, answers: list[Answer], objection: str
    ) -> None:
        """Never use the checkpoint again whose weights are others, by the canary's answers.

        Raises:
            OtherWeights: It cannot be blamed, or not yet.
        """
        if chosen is None or chosen.record is None:
            raise OtherWeights(
                f"run {self._run.name!r} was started over, and its weights are not the ones it "
                f"began with: {objection}"
            )
        if not self._run.checkpoints.rejects(chosen.record, answers):
            raise OtherWeights(
                f"the canary answered with numbers that are not finite on weights restored "
                f"from {chosen.path}; if it does so again, the next older is used"
            )
        await self._reject(chosen, objection)

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

    async def _connect(self, chosen: Listed | None, origin: Origin, ahead: Ahead) -> Connection:
        """The client made ahead, if it is of the one chosen; else one that is made now."""
        connection: Connection | None = None
        announced = False
        try:
            with phase(
                names.SPAN_CREATE,
                {**as_attributes(chosen), names.RESTORE_OPTIMIZER: self._policy.restore_optimizer},
            ) as span:
                with self._waiting:
                    if chosen is not None and chosen.path == ahead.path:
                        connection = await ahead.take()
                    else:
                        connection = await self._backend.connect(
                            origin,
                            patience=self._patience,
                            pending=ahead.session(),
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
        self, connection: Connection, chosen: Listed | None, ahead: Ahead
    ) -> tuple[list[Answer], str | None]:
        """What the canary answers on the new client, and the objection to using it, if any.

        It is asked again before there is one: an answer may be off once. Where nothing can tell,
        the client is used, and that is said.

        Args:
            connection: The client.
            chosen: What it was made from.
            ahead: What may have asked for it already.
        """
        answers: list[Answer] = []
        known = self._run.checkpoints
        record = None if chosen is None else chosen.record
        match, why = Match.UNCLEAR, NOT_KNOWN
        if self._asks(answered=(expected := known.expects(record))):
            with phase(names.SPAN_VERIFY, as_attributes(chosen)) as span, self._waiting:
                while not answers or (
                    expected and match is not Match.SAME and len(answers) < ASKED
                ):
                    answers.append(await ahead.answer_of(connection) or await self._ask(connection))
                    if len(answers) > 1:
                        known.canaries.measure(*answers[-2:])
                    match, why = known.compare_canary(record, answers)
                if match is Match.DIFFERENT:
                    refuse(span, names.BAD_CHECKPOINT, why)
                    return answers, why
        if match is Match.UNCLEAR and record is not None and known.prompt.batch is not None:
            self._collaborators.events.emit(
                names.EVENT_WEIGHTS_UNKNOWN,
                self._run.name,
                f"nothing can tell whether {record.path} was restored as it was saved: {why}",
                as_attributes(chosen),
            )
        return answers, None

    def _asks(self, *, answered: bool) -> bool:
        """Whether to ask the canary, where it is known what it answers, or not.

        With nothing to compare with it is not asked again of a service that did not answer it.
        """
        prompt = self._run.checkpoints.prompt
        return prompt.batch is not None and (answered or not prompt.lost)

    async def _ask(self, connection: Connection) -> Answer:
        prompt = self._run.checkpoints.prompt
        batch = prompt.batch or []
        asking = connection.training.forward(batch, "cross_entropy")
        prompt.spent += tokens_in(batch)
        with patiently("running the canary on a restored client", self._patience):
            answer = answer_of(await result_of(asking.future()))
        prompt.lost = 0
        return answer

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
        await self._backend.close(
            connection,
            "interrupted",
            "the recovery it was made for did not complete",
            deadline_s=self._policy.close_timeout_s,
        )
