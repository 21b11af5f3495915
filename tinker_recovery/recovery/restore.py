"""A restoration: one try to bring a run's state back, from the choice of a checkpoint to a client.

Select a checkpoint, validate it, create a client from it, verify what came back. One that turns out
to be bad is marked so and the next older is tried; what the service answers otherwise is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from tinker import types

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.checkpoints.canary import Answer, answer_of
from tinker_recovery.clock import Clock
from tinker_recovery.errors import DeadlineExceeded, NoUsableCheckpoint, OtherWeights
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.selection import (
    CheckpointSelection,
    SelectingRun,
    ServiceTime,
    as_attributes,
)
from tinker_recovery.service import Backend, Connection, FromCheckpoint, Origin
from tinker_recovery.service.refusals import is_refused
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry import EventSink, names, phase, refuse


class RestorableRun(SelectingRun, Protocol):
    """A run as a restoration sees it."""

    @property
    def lineage(self) -> str:
        """Id of the logical run."""
        ...

    @property
    def origin(self) -> Origin | None:
        """How to start over without any checkpoint; None if that is not possible."""
        ...

    async def refresh_notes(self) -> None:
        """Take over what other processes noted meanwhile, deletions begun too; never raises."""
        ...

    async def mark_bad(self, path: str, reason: str) -> None:
        """Never use this checkpoint again, in this process or a later one."""
        ...


@dataclass(frozen=True, slots=True)
class Restored:
    """A client that stands where its checkpoint says.

    Attributes:
        connection: The client, with its session.
        checkpoint: What it was made from; None if the run starts over.
        answer: What the canary says on it, where there is one.
        listed: The checkpoint as the service lists it, for a run that is trained elsewhere.
    """

    connection: Connection
    checkpoint: CheckpointRecord | None
    answer: Answer | None
    listed: types.Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """What a restoration is done with.

    Attributes:
        backend: Creates clients.
        policy: The user's policy.
        events: Where progress is told.
        clock: Time.
        waiting: Adds up the time spent waiting for the service.
        ahead: Whether to open the new session while the checkpoint is being chosen. Not worth it
            where the service has just been out of reach: the SDK would try for minutes.
    """

    backend: Backend
    policy: RecoveryPolicy
    events: EventSink
    clock: Clock
    waiting: ServiceTime
    ahead: bool = False


class Restore:
    """One try; see the module.

    Args:
        run: Whose state to bring back.
        tools: What it is done with.
    """

    def __init__(self, run: RestorableRun, tools: Tools) -> None:
        self._run = run
        self._tools = tools
        self._backend = tools.backend
        self._policy = tools.policy
        self._events = tools.events
        self._waiting = tools.waiting
        self._ahead = tools.ahead
        self._choice = CheckpointSelection(
            run,
            policy=tools.policy,
            events=tools.events,
            clock=tools.clock,
            waiting=tools.waiting,
        )

    async def restore(self) -> Restored:
        """A new client, from the newest checkpoint that nothing speaks against.

        Cancelling it leaves no session behind.

        Raises:
            NoUsableCheckpoint: Checkpoints exist and none can be used, or there is none and the
                run cannot be started over.
            OtherWeights: Started over, the canary does not answer as it did when the run began; or
                it answered NaN on a checkpoint for the first time.
            DeadlineExceeded: The service did not finish in time.
            Exception: Whatever else the service answered.
        """
        # A session takes a while to open, and does not depend on what is chosen meanwhile.
        opening = self._backend.open_ahead() if self._ahead else None
        try:
            await self._run.refresh_notes()
            chosen = await self._choice.choose()
        except BaseException:
            if opening is not None:
                await self._backend.discard(opening)
            raise
        return await self._restore_from(chosen, opening)

    async def _restore_from(self, checkpoint: CheckpointRecord | None, opening: Any) -> Restored:
        while True:
            try:
                connection = await self._connect(checkpoint, opening)
            except Exception as error:
                if checkpoint is None or not is_refused(error):
                    raise
                await self._mark_bad(checkpoint, f"the service does not load it: {error}")
                checkpoint, opening = await self._choice.choose(), None
                continue
            answer = None
            kept = False
            try:
                answer, objected = await self._verify(connection, checkpoint)
                kept = objected is None
            finally:
                if not kept:
                    await self.discard(connection)
            if objected is None:
                return Restored(connection, checkpoint, answer)
            if checkpoint is None:
                raise OtherWeights(
                    f"run {self._run.name!r} was started over, and its weights are not the ones it "
                    f"began with: {objected}"
                )
            if answer is not None and not self._run.trust.condemns(checkpoint, answer):
                raise OtherWeights(
                    f"the canary answered with numbers that are not finite on weights restored "
                    f"from {checkpoint.path}; if it does so again, the next older is used"
                )
            await self._mark_bad(checkpoint, objected)
            checkpoint, opening = await self._choice.choose(), None

    async def _mark_bad(self, checkpoint: CheckpointRecord, reason: str) -> None:
        await self._run.mark_bad(checkpoint.path, reason)
        self._events.emit(
            names.EVENT_CHECKPOINT_BAD,
            self._run.name,
            f"{checkpoint.path} is not used again: {reason}",
            {names.CHECKPOINT_PATH: checkpoint.path, names.REASON: reason},
        )

    async def _connect(self, checkpoint: CheckpointRecord | None, opening: Any) -> Connection:
        origin = (
            self._run.origin
            if checkpoint is None
            else FromCheckpoint(checkpoint.path, optimizer=self._policy.restore_optimizer)
        )
        if origin is None:
            if opening is not None:
                await self._backend.discard(opening)
            raise NoUsableCheckpoint(
                f"run {self._run.name!r} was adopted, so it cannot be started over, and it has no "
                "checkpoint yet"
            )
        connection: Connection | None = None
        told = False
        try:
            with phase(
                names.SPAN_CREATE,
                {
                    **as_attributes(checkpoint),
                    names.RESTORE_OPTIMIZER: self._policy.restore_optimizer,
                },
            ) as span:
                with self._waiting:
                    connection = await self._backend.connect(
                        origin, deadline_s=self._policy.create_timeout_s, pending=opening
                    )
                span.set_attribute(names.RUN_ID, connection.run_id)
                self._events.emit(
                    names.EVENT_CLIENT_CREATED,
                    self._run.name,
                    f"new client: Tinker run {connection.run_id}",
                    {names.RUN_ID: connection.run_id},
                )
            told = True
        finally:
            if connection is not None and not told:
                await self.discard(connection)
        return connection

    async def _verify(
        self, connection: Connection, checkpoint: CheckpointRecord | None
    ) -> tuple[Answer | None, str | None]:
        """What the canary says on the new client, and what speaks against using it."""
        if self._policy.canary is None:
            return None, None
        with phase(names.SPAN_VERIFY, as_attributes(checkpoint)) as span, self._waiting:
            looking = connection.training.forward(list(self._policy.canary), "cross_entropy")
            try:
                with anyio.fail_after(self._policy.create_timeout_s):
                    answer = answer_of(await result_of(looking.future()))
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "running the canary on a restored client", self._policy.create_timeout_s
                ) from error
            objected = self._run.trust.objection(checkpoint, answer)
            if objected is not None:
                refuse(span, names.BAD_CHECKPOINT, objected)
            return answer, objected

    @property
    def passed_over(self) -> Sequence[str]:
        """What would have come before the checkpoint chosen, and what speaks against each."""
        return self._choice.refused

    async def progress(self) -> int | None:
        """How far the run has come by what is stored: the step it would go back to.

        Raises:
            NoUsableCheckpoint: As :meth:`restore`.
            StatusError: The listing could not be read.
        """
        found = await self._choice.choose(only_looking=True)
        return None if found is None else found.step

    async def discard(self, connection: Connection) -> None:
        """Close a client that is not going to be used; never raises an Exception."""
        await discard(connection, self._tools)


async def discard(connection: Connection, tools: Tools) -> None:
    """Close a client that is not going to be used; never raises an Exception."""
    with anyio.CancelScope(shield=True):
        await tools.backend.close(
            connection,
            "interrupted",
            "the recovery it was made for did not complete",
            deadline_s=tools.policy.close_timeout_s,
        )
