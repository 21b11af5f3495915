"""A restoration: one try to bring a run's state back, from the choice of a checkpoint to a client.

Select a checkpoint, validate it, create a client from it, verify what came back. One that turns out
to be bad is marked so and the next older is tried; what the service answers otherwise is raised.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import anyio
import tinker
from tinker.types import RequestErrorCategory

from tinker_recovery.canary import Answer, CanaryBook, answer_of, distance
from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Segment,
    eligible,
    objection,
    on_branch,
    run_id_of,
)
from tinker_recovery.clock import Clock
from tinker_recovery.errors import (
    DeadlineExceeded,
    InvalidMetadata,
    NoUsableCheckpoint,
    StatusUnavailable,
)
from tinker_recovery.faults import causes
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service import Backend, Connection, FromCheckpoint, Origin, StatusReader
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry import EventSink, names, phase


class TrustedCheckpoints(Protocol):
    """What is known of a run's weights and checkpoints."""

    canaries: CanaryBook
    bad: dict[str, str]

    def trusted_to(self, segment: Segment) -> float:
        """The last step of a segment whose checkpoints may be gone back to."""
        ...

    def stored_on(self, segment: Segment, limit: float) -> list[str]:
        """Paths of the checkpoints of a segment that the service said it has stored."""
        ...


class Restorable(Protocol):
    """A run as a restoration sees it."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def lineage(self) -> str:
        """Id of the logical run."""
        ...

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, oldest first."""
        ...

    @property
    def root(self) -> CheckpointRecord | None:
        """The checkpoint the run was started from by the user, if it was."""
        ...

    @property
    def origin(self) -> Origin | None:
        """How to start over without any checkpoint; None if that is not possible."""
        ...

    @property
    def start_step(self) -> int:
        """The step at which starting over begins."""
        ...

    @property
    def reader(self) -> StatusReader:
        """Where its checkpoints are listed."""
        ...

    @property
    def trust(self) -> TrustedCheckpoints:
        """What is known of its weights and checkpoints."""
        ...


@dataclass(slots=True)
class ServiceTime:
    """Adds up the time spent waiting for the service, so that our own can be told apart."""

    clock: Clock
    total_s: float = 0.0
    _began: float = field(default=0.0)

    def __enter__(self) -> None:
        self._began = self.clock.monotonic()

    def __exit__(self, *_: object) -> None:
        self.total_s += self.clock.monotonic() - self._began


@dataclass(frozen=True, slots=True)
class Restored:
    """A client that stands where its checkpoint says.

    Attributes:
        connection: The client, with its session.
        checkpoint: What it was made from; None if the run starts over.
        answer: What the canary says on it, where there is one.
    """

    connection: Connection
    checkpoint: CheckpointRecord | None
    answer: Answer | None


class Restoration:
    """One try; see the module.

    Args:
        run: Whose state to bring back.
        backend: Creates clients.
        policy: The user's policy.
        events: Where progress is told.
        clock: Time.
        waiting: Adds up the time spent waiting for the service.
    """

    def __init__(
        self,
        run: Restorable,
        *,
        backend: Backend,
        policy: RecoveryPolicy,
        events: EventSink,
        clock: Clock,
        waiting: ServiceTime,
    ) -> None:
        self._run = run
        self._backend = backend
        self._policy = policy
        self._events = events
        self._clock = clock
        self._waiting = waiting

    async def restore(self) -> Restored:
        """A new client, from the newest checkpoint that nothing speaks against.

        Cancelling it leaves no session behind.

        Raises:
            NoUsableCheckpoint: Checkpoints exist and none can be used, or there is none and the
                run cannot be started over.
            DeadlineExceeded: The service did not finish in time.
            Exception: Whatever else the service answered.
        """
        while True:
            checkpoint = await self.choose()
            try:
                connection = await self._connect(checkpoint)
            except Exception as error:
                if checkpoint is None or not _is_refused(error):
                    raise
                self._mark_bad(checkpoint, f"the service does not load it: {error}")
                continue
            answer = None
            kept = False
            try:
                answer, objected = await self._verify(connection, checkpoint)
                kept = objected is None
            finally:
                if not kept:
                    await self.discard(connection)
            if checkpoint is None or objected is None:
                return Restored(connection, checkpoint, answer)
            self._mark_bad(checkpoint, objected)

    def _mark_bad(self, checkpoint: CheckpointRecord, reason: str) -> None:
        self._run.trust.bad[checkpoint.path] = reason
        self._events.emit(
            names.EVENT_CHECKPOINT_BAD,
            self._run.name,
            f"{checkpoint.path} is not used again: {reason}",
            {names.CHECKPOINT_PATH: checkpoint.path, names.REASON: reason},
        )

    async def _connect(self, checkpoint: CheckpointRecord | None) -> Connection:
        origin = (
            self._run.origin
            if checkpoint is None
            else FromCheckpoint(checkpoint.path, optimizer=self._policy.restore_optimizer)
        )
        if origin is None:
            raise NoUsableCheckpoint(
                f"run {self._run.name!r} was adopted, so it cannot be started over, and it has no "
                "checkpoint yet"
            )
        connection: Connection | None = None
        told = False
        try:
            with phase(
                names.SPAN_CREATE, {names.RESTORE_OPTIMIZER: self._policy.restore_optimizer}
            ):
                with self._waiting:
                    connection = await self._backend.connect(
                        origin, deadline_s=self._policy.create_timeout_s
                    )
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
        with phase(names.SPAN_VERIFY) as span, self._waiting:
            looking = connection.training.forward(list(self._policy.canary), "cross_entropy")
            try:
                with anyio.fail_after(self._policy.create_timeout_s):
                    answer = answer_of(await result_of(looking.future()))
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "running the canary on a restored client", self._policy.create_timeout_s
                ) from error
            expected = (
                None
                if checkpoint is None
                else self._run.trust.canaries.expected(checkpoint.attempt, checkpoint.step)
            )
            if expected is None or self._run.trust.canaries.equal(answer, expected):
                return answer, None
            objected = (
                "the weights it restores are not the ones that were saved: the canary's logprobs "
                f"differ by up to {distance(answer, expected):.3g}"
            )
            span.set_attribute(names.REASON, objected)
            return answer, objected

    async def discard(self, connection: Connection) -> None:
        """Close a client that is not going to be used; never raises an Exception."""
        with anyio.CancelScope(shield=True):
            await self._backend.close(
                connection,
                "interrupted",
                "the recovery it was made for did not complete",
                deadline_s=self._policy.close_timeout_s,
            )

    async def choose(self, *, only_looking: bool = False) -> CheckpointRecord | None:
        """The checkpoint to go back to, or None to start over.

        Args:
            only_looking: Nothing is going to be made from it, so nobody is told.

        Raises:
            NoUsableCheckpoint: As :meth:`restore`.
            StatusError: The listing could not be read, or cannot be right.
        """
        run = self._run
        refused: list[str] = []
        first_valid = functools.partial(self._first_valid, only_looking=only_looking)
        if self._policy.checkpoint_strategy != "latest":
            with phase(names.SPAN_SELECT), self._waiting:
                found = [await find_checkpoint(run.reader, self._policy.checkpoint_strategy)]
            if record := first_valid(found, refused):
                return record
        else:
            for segment, limit in on_branch(run.segments):
                with phase(names.SPAN_SELECT, {names.RUN_ID: segment.run_id}):
                    with self._waiting:
                        listed = await list_checkpoints(run.reader, segment.run_id)
                    trusted = min(limit, run.trust.trusted_to(segment))
                    found = eligible(segment, trusted, listed)
                    known = run.trust.stored_on(segment, trusted)
                    if known and not listed:
                        # An empty answer for a run that has saved is the service's trouble, and no
                        # reason to begin again at step 0.
                        raise StatusUnavailable(
                            f"the service lists no checkpoint of Tinker run {segment.run_id}, and "
                            f"has stored {len(known)}, {known[-1]} for one"
                        )
                if record := first_valid(found, refused):
                    return record
            if run.root and (record := first_valid([run.root], refused)):
                return record
        # Starting over repeats everything, so it is right only where nothing was ever saved:
        # checkpoints that exist and cannot be used are for a person to look at.
        if refused:
            raise NoUsableCheckpoint(
                f"run {run.name!r} has checkpoints, and none can be used: {'; '.join(refused)}"
            )
        if not only_looking:
            self._tell(None)
        return None

    def _tell(self, checkpoint: CheckpointRecord | None) -> None:
        step = self._run.start_step if checkpoint is None else checkpoint.step
        path = {} if checkpoint is None else {names.CHECKPOINT_PATH: checkpoint.path}
        self._events.emit(
            names.EVENT_CHECKPOINT_SELECTED,
            self._run.name,
            f"no checkpoint yet: the run starts over at step {step}"
            if checkpoint is None
            else f"{checkpoint.path}, at step {step}",
            {**path, names.CHECKPOINT_STEP: step},
        )

    def _first_valid(
        self, found: Sequence[CheckpointRecord], refused: list[str], *, only_looking: bool
    ) -> CheckpointRecord | None:
        """The first that nothing speaks against; the others' reasons go to ``refused``."""
        for record in found:
            with phase(names.SPAN_VALIDATE, {names.CHECKPOINT_PATH: record.path}) as span:
                now = datetime.fromtimestamp(self._clock.wall(), UTC)
                reason = self._run.trust.bad.get(record.path) or objection(record, now=now)
                if reason is not None:
                    span.set_attribute(names.REASON, reason)
                    refused.append(f"{record.path}: {reason}")
                    continue
                if not only_looking:
                    self._tell(record)
                return record
        return None


def _is_refused(error: BaseException) -> bool:
    """Whether the service says that this checkpoint cannot be loaded, now or later."""
    for each in causes(error):
        if isinstance(
            each,
            (tinker.NotFoundError, tinker.BadRequestError, tinker.UnprocessableEntityError),
        ):
            return True
        if isinstance(each, tinker.RequestFailedError):
            return each.category is RequestErrorCategory.User
    return False


async def list_checkpoints(reader: StatusReader, run_id: str) -> list[CheckpointRecord]:
    """The checkpoints of one Tinker run that carry our metadata; broken ones are left out."""
    records = []
    for listed in await reader.checkpoints(run_id):
        try:
            record = CheckpointRecord.from_listing(listed)
        except InvalidMetadata:
            continue
        if record is not None:
            records.append(record)
    return records


async def find_checkpoint(reader: StatusReader, path: str) -> CheckpointRecord:
    """One checkpoint by its path.

    Raises:
        NoUsableCheckpoint: It is not listed, or does not say how many steps it contains.
        StatusError: The listing could not be read.
    """
    for listed in await reader.checkpoints(run_id_of(path)):
        if listed.tinker_path == path:
            record = CheckpointRecord.from_listing(listed)
            if record is None:
                raise NoUsableCheckpoint(
                    f"checkpoint {path} does not say how many optimizer steps it contains: it was "
                    "not saved through a supervised client, so the loop cannot be rewound to it"
                )
            return record
    raise NoUsableCheckpoint(f"checkpoint {path} is not listed by the service")
