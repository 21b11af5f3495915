"""SupervisedRun: one logical run, and where it stands over many Tinker run ids."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.checkpoints import CheckpointRecord, Segment, WeightsFacts
from tinker_recovery.errors import LeaseLost, RecoveryLost, StatusError, UsageError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind, SeenIn, Verdict, judge
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.recoverable import HandOver, Recovery
from tinker_recovery.recovery.restore import Restore, Restored
from tinker_recovery.recovery.resume import RunSnapshot, finish_sessions
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.retention.loop import RetentionLoop
from tinker_recovery.run.at_exit import failure_at_exit, unseen_fault
from tinker_recovery.run.attempts import Attempts
from tinker_recovery.run.claiming import claim_lost, end_and_give_free
from tinker_recovery.run.ending import end_of, say_the_end
from tinker_recovery.run.first_client import first_client
from tinker_recovery.run.history import RunHistory
from tinker_recovery.run.journaling import RunJournal
from tinker_recovery.run.mailbox import Mailbox
from tinker_recovery.run.retiring import finish, retire
from tinker_recovery.run.rollback_detector import RollbackDetector
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.service import Connection, Origin, Patience
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import RunTelemetry, names

if TYPE_CHECKING:
    from tinker_recovery.run.open import OpenedRun

logger = logging.getLogger(names.SCOPE)


class SupervisedRun:
    """One logical run: where it began, every Tinker run it has lived in, and where it stands.

    It outlives the Monitor and the Executor, so a crash of either loses nothing of it.

    Args:
        opened: The run as it was opened: its start, its journal, what an earlier process left.
        collaborators: What it works with.
        queue: Where it reports faults.
        mailbox: Inbox for calls from the SDK's thread.
        signals: Whether a signal has asked the process to stop.
        retention: What looks after its checkpoints, asked when they have changed.
    """

    def __init__(
        self,
        opened: OpenedRun,
        collaborators: Collaborators,
        queue: FaultQueue,
        mailbox: Mailbox,
        signals: StopSignals,
        retention: RetentionLoop,
    ) -> None:
        name, record = opened.record.name, opened.record
        self.policy = collaborators.policy
        self.mailbox = mailbox
        self.signals = signals
        self.clock = collaborators.clock
        self.spawn = collaborators.spawn
        self.collaborators = collaborators
        self.name = name
        self.given_name = record.given_name
        """The name, if the user gave it and the run is to be found again by it."""
        self.lineage, self.lease = record.lineage, record.lease
        self.origin = opened.plan.origin  # how to start over; None for an adopted client
        self.telemetry = RunTelemetry(
            name,
            self.lineage,
            self.clock.monotonic,
            self.policy.prices,
            label_run=self.policy.telemetry_run_label,
        )
        self.root = opened.root
        """The checkpoint the user started it from, if they did."""
        self.start_step = opened.start_step
        self.snapshot = opened.snapshot
        """Where an earlier process left it; None if it begins here."""
        self.budget = AttemptBudget(self.policy.max_attempts)
        self.attempts = Attempts()
        """Every attempt that ran, oldest first."""
        self.recoveries: list[Recovery] = []
        self.metrics: dict[str, float] = {}
        """What the loop reported last."""
        self.ended = False
        """Whether the run is over, well or not."""
        self.failure: BaseException | None = None
        """What it was given up with."""
        self.history = RunHistory.of(opened, self.policy)
        """What its attempts hand on to each other."""
        self.weights = WeightsFacts() if self.snapshot is None else self.snapshot.weights
        """What its weights are, as far as the service has said."""
        self.checkpoints = (
            CheckpointState.by(self.policy, name, self.lineage)
            if self.snapshot is None
            else self.snapshot.checkpoints
        )
        """What is known of its checkpoints."""
        self.rollbacks = RollbackDetector(self)
        """What notices that the service has lost weights."""
        self.checkpoints.watch(
            self.attempts.first_doubtful_step,
            self.rollbacks.confirmed_to,
            self.attempts.unsettled_saves,
        )
        self.skipped: set[int] = set()
        """Steps the loop leaves out, by ``on_repeated_fault="skip_step"``."""
        self.incident: Fault | None = None
        """The fault it is being recovered from."""
        self.journal = RunJournal(self, record)
        self._opened = opened
        self._queue = queue
        self.retention = retention
        self._failed_step: int | None = None
        self._repeated: int | None = None
        """The step of the newest fault, if the one before was of it as well."""
        self._ready: AttemptScope | None = None
        self._next_ready = anyio.Event()

    def __repr__(self) -> str:
        return f"<SupervisedRun {self.name!r}, {self.state}, attempt {len(self.attempts)}>"

    @property
    def parent(self) -> str | None:
        """Path of the checkpoint the user started it from, if they did."""
        return self._opened.plan.parent

    @property
    def guard(self) -> Guard:
        """Its claim at the service, if it has one."""
        return self._opened.guard

    @property
    def current(self) -> AttemptScope | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def step(self) -> int:
        """Optimizer steps it has done; before an attempt begins here, as the last process said."""
        begun = self.start_step if self.snapshot is None else self.snapshot.step
        return begun if self.current is None else self.current.client.step

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, oldest first."""
        earlier = () if self.snapshot is None else self.snapshot.segments
        return [*earlier, *(attempt.segment for attempt in self.attempts)]

    @property
    def recovering(self) -> bool:
        """Whether an incident is open."""
        return self.incident is not None

    @property
    def state(self) -> str:
        """``training``, ``recovering`` or ``over``."""
        recovering = self.incident is not None and not self.incident.orderly
        return "over" if self.ended else "recovering" if recovering else "training"

    @property
    def lost(self) -> BaseException | None:
        """The error to raise if the run ended before its owner could see its last fault."""
        return self.failure if isinstance(self.failure, RecoveryLost) else None

    # Attempts

    async def first_attempt(self) -> AttemptScope:
        """The first attempt here; a fault on the way is recovered from like any other.

        Raises:
            Exception: What the service answered, where that is not to be recovered from.
        """
        self.telemetry.started(self.start_step, getattr(self.origin, "base_model", ""))
        adopted, snapshot = self._opened.plan.adopted, self.snapshot
        # An adopted client that was never saved cannot be remade, and the same code made another.
        if snapshot is not None and (
            adopted is None or snapshot.saved or snapshot.segments[-1].parent
        ):
            if adopted is not None:
                await self.collaborators.backend.close(
                    adopted,
                    "interrupted",
                    "the run continues from its checkpoint",
                    deadline_s=self.policy.close_timeout_s,
                )
            self._continue_from(snapshot)
            return await self.next_attempt()
        if adopted is not None:
            return await self._journaled(self._begin(adopted))
        if self.origin is None:
            raise UsageError("a run without an origin has to be adopted")
        while (connection := await self._first_connection(self.origin)) is not None:
            attempt = await self._journaled(self._begin(connection))
            try:
                if await attempt.refusal.is_absent():
                    return attempt
            except BaseException as error:
                await self._over(error)
                raise
            self.telemetry.stopped()
        return await self.next_attempt()

    async def _first_connection(self, origin: Origin) -> Connection | None:
        """A client made as the user said; None if that failed and is being recovered from."""
        try:
            # Without a limit, as the bare SDK would wait.
            return await first_client(self, origin, Patience(report=self._note_waiting))
        except Exception as error:
            rule = judge(error, SeenIn.CREATE, self.policy.retryable_errors)
            if rule is None or rule.verdict is Verdict.GIVE_UP or not self.policy.enabled:
                await self._over(error)
                raise
            at, seen_by = self.start_step, DetectedBy.START
            self.report_fault(Fault(self.name, 0, "", rule, seen_by, at, error))
            return None
        except BaseException as error:
            await self._over(error)  # cancelled: its name is free again
            raise

    async def next_attempt(self) -> AttemptScope:
        """Wait for the recovery under way; raises the error the run was given up with."""
        try:
            await self._next_ready.wait()
        except BaseException as error:
            await self._over(error)  # its owner has left, and knows
            raise
        if self.failure is not None:
            await self._over(self.failure)
            raise self.failure
        if self.current is None:
            raise UsageError(f"run {self.name!r} has no attempt")
        return await self._journaled(self.current)

    def _begin(self, connection: Connection) -> AttemptScope:
        """The first attempt, on a client made as the user said."""
        attempt = self._new_attempt(connection, self.root)
        self.attempts.add(attempt)
        self._note_segment(attempt)
        self.checkpoints.began = attempt.segment.parent, attempt.id, attempt.start_step
        self._save_at_start(attempt)
        attempt.client.record_canary()
        return attempt

    def _save_at_start(self, attempt: AttemptScope) -> None:
        at_start = self.policy.checkpoints.save_at_start and self.parent is None
        if self.origin is None or at_start:
            # An adopted client cannot be made again, so it needs something to recover from. Of the
            # others, the seed may not make the same weights again.
            keeps, refused = self.collaborators.reader.metadata.keeps, self.history.refused_saves
            attempt.saver.probes = self.origin is not None and (keeps == "unknown" or refused > 0)
            attempt.client.save(attempt.saver.begin)

    def _note_waiting(self, message: str) -> None:
        self.collaborators.events.emit(names.EVENT_WAITING, self.name, message)

    def _continue_from(self, snapshot: RunSnapshot) -> None:
        """Have the run restored that another process left: as from any fault, or to go on."""
        last, number = snapshot.segments[-1], len(snapshot.segments)
        self.spawn(functools.partial(finish_sessions, self.collaborators.reader, snapshot.sessions))
        rule, step = RULES[snapshot.left_by], snapshot.step
        left = Fault(self.name, number, last.run_id, rule, DetectedBy.JOURNAL, step)
        self.telemetry.figures.follows(snapshot.trained)
        self.report_fault(replace(left, orderly=snapshot.orderly, silent_s=self.journal.dead_s))

    async def _journaled(self, attempt: AttemptScope) -> AttemptScope:
        """The attempt, once the journal has it: no attempt trains that a restart would not find.

        Raises:
            LeaseLost: The run is another process's by now.
        """
        try:
            await self.guard.begins(attempt.run_id)
            await self.journal.attempt_begins(attempt)
        except BaseException as error:
            await self._over(error)
            raise
        return attempt

    def _new_attempt(
        self, connection: Connection, checkpoint: CheckpointRecord | None
    ) -> AttemptScope:
        return AttemptScope(self, len(self.segments) + 1, connection, checkpoint)

    def _note_segment(self, attempt: AttemptScope) -> None:
        done, meter, made = attempt.saver.steps_done, attempt.client.meter, attempt.progress
        self.telemetry.segment_began(attempt.segment, attempt.number, done, meter, made.read_pauses)

    # What its attempts ask and report

    async def is_corrupted(self) -> bool:
        """Ask the service whether it calls the run corrupted; no answer counts as no."""
        if self.current is None:
            return False
        try:
            return (await self.collaborators.reader.run(self.current.run_id)).corrupted
        except StatusError:
            return False

    def lease_lost(self, error: LeaseLost, seen_by: DetectedBy = DetectedBy.JOURNAL) -> None:
        """Another process has taken the run: this one must train it no further."""
        current = self.current
        if self.incident is None and current is not None:
            current.declare_fault(RULES[Kind.LEASE_LOST], seen_by, error)
        else:
            self.give_up(error)

    # What retention asks

    @property
    def protected(self) -> Mapping[str, str]:
        """What must not be deleted: what the clients of now were made from."""
        return {
            attempt.checkpoint.path: "a client was made from it"
            for attempt in (self.current, self._ready)
            if attempt is not None and attempt.checkpoint is not None
        }

    def is_pending(self, record: CheckpointRecord) -> bool:
        """Whether the metric that this checkpoint is to be judged by is still to come.

        It is stored with the next save at the earliest, so until then it is not known to be worse
        than others.
        """
        current, policy = self.current, self.policy.checkpoints
        return (
            policy.save_best
            and policy.best_metric not in record.metrics
            and current is not None
            and not self.ended
            and record.attempt == current.id
            and record.step
            == max((step for of, step in self.history.saved if of == current.id), default=0)
        )

    # A fault's way: reported here, queued, and recovered from by the Executor

    def report_fault(self, fault: Fault) -> None:
        """An attempt, or the start, has a fault: open an incident, and queue it.

        Idempotent: while an incident is open, further faults belong to it.
        """
        if self.incident is not None or self.ended:
            return
        current = self.current
        if self.policy.enabled and fault.verdict is not Verdict.GIVE_UP:
            self.incident = fault
            self.telemetry.faulted(fault.silent_s)
            self._next_ready = anyio.Event()
            again = fault.failed_step == self._failed_step
            self._repeated = fault.failed_step if again else None
            self._failed_step = fault.failed_step
            if not fault.orderly:
                self.history.evidence = self.history.evidence.failed()
            if current is not None:
                self.rollbacks.distrust_since(fault, current)
                if fault.kind is not Kind.UNAVAILABLE:
                    self.spawn(functools.partial(finish, current))
                self.spawn(functools.partial(retire, current, self._next_ready))
        elif self.policy.enabled and current is not None and current.blocking:
            self.spawn(functools.partial(retire, current, self._next_ready))
        self.journal.fault(fault, recovers=self.incident is fault)
        self._queue.put(fault)

    def awaits(self, fault: Fault) -> bool:
        """Whether this fault still has to be dealt with."""
        if not self.policy.enabled or fault.verdict is Verdict.GIVE_UP:
            return not self.ended
        return not self.ended and self.incident is fault

    def restoration(
        self, waiting: ServiceTime, *, ahead: bool = False, patience: Patience | None = None
    ) -> Restore:
        """One try to bring its state back."""
        return Restore(
            self,
            self.collaborators,
            waiting=waiting,
            ahead=ahead,
            patience=patience,
            guard=self.guard,
        )

    def hold_ready(self, restored: Restored) -> HandOver:
        """Hold a recovered client ready; it trains once :meth:`hand_over` is called."""
        if self._ready is not None:
            self.spawn(functools.partial(retire, self._ready, self._next_ready))
        ready = self._ready = self._new_attempt(restored.connection, restored.checkpoint)
        if restored.answer is not None:
            self.checkpoints.canaries.record(ready.id, ready.start_step, restored.answer)
            self.checkpoints.write_prompt(self.collaborators)
        return HandOver(
            callback=self.policy.on_recovery,
            arguments=(self.current and self.current.client, ready.client, restored.checkpoint),
            step=ready.client.step,
            progress=ready.client.step,
            is_wanted=lambda: not self.ended,
        )

    def step_to_skip(self) -> int | None:
        """The step to leave out from now on, if the policy skips one that faults again."""
        step = self._repeated
        if self.policy.on_repeated_fault != "skip_step" or step is None or step in self.skipped:
            return None
        self.skipped.add(step)
        return step

    def hand_over(self, recovery: Recovery) -> None:
        """Let the loop run again, on the client held ready."""
        if self._ready is None:
            raise UsageError("hold_ready() comes before hand_over()")
        attempt, self._ready = self._ready, None
        self.recoveries += [] if recovery.continued else [recovery]
        self.attempts.add(attempt)
        self.incident = None
        # The loop wakes when this returns, and also when this raises: the fault is dealt with, and
        # nobody would look at the run again.
        self._next_ready.set()
        self.telemetry.figures.recovered(counts=not recovery.continued)
        self._note_segment(attempt)
        self.rollbacks.note_resumed(attempt.start_step)
        self.checkpoints.note_recovered()
        if attempt.fault is None and attempt.checkpoint is None:
            self._save_at_start(attempt)  # no other has: the run starts over
        if attempt.fault is None and not self.checkpoints.canaries.measured:
            attempt.client.record_canary()
        self.retention.ask(self)
        self.collaborators.load_spare(self.name, attempt.segment.parent)
        if attempt.fault is not None:
            # It failed before anyone trained on it, in the user's own callback perhaps.
            self.report_fault(attempt.fault)

    def give_up(self, error: BaseException) -> None:
        """End the run; the loop's owner sees this error."""
        self.failure = error
        self._next_ready.set()

    # The end

    async def _over(self, error: BaseException | None) -> None:
        """The run is over, well or by this error; the journal gets its end, and its lease back."""
        self._end(error)
        await end_and_give_free(self.journal.run_ends(error), self, [*self.attempts, self._ready])

    def _end(self, error: BaseException | None) -> None:
        self.ended = True
        self.collaborators.drop_spare(self.name)
        if self.telemetry.ended(step=self.step, recoveries=len(self.recoveries), error=error):
            self.collaborators.outlets.run_ended(self.name, error)
        self.collaborators.greeting.ended(end_of(self, error))

    async def attempt_over(self, attempt: AttemptScope, error: BaseException | None) -> None:
        """The body was left for good: by its end, or by an exception that is not ours."""
        fault = attempt.fault
        lost: BaseException | None = None
        try:
            if fault and (not self.policy.enabled or fault.verdict is Verdict.GIVE_UP):
                # Callbacks and listeners see the fault before the error leaves.
                with anyio.move_on_after(2 * self.policy.close_timeout_s):
                    await self._queue.settled(fault)
            lost = await claim_lost(self) if error is None else None
        except BaseException as cancelled:  # noqa: BLE001 - raised below: the run is over all the same
            lost = cancelled
        error = error or lost
        self._end(error)
        said = say_the_end(attempt, error)
        await end_and_give_free(said, self, [*self.attempts, self._ready], well=error is None)
        if lost is not None:
            raise lost

    async def abandon(self) -> None:
        """The Supervisor ends: close whatever is still open. Never raises an Exception."""
        unseen = None if self.ended or self.failure is not None else unseen_fault(self)
        self.ended = True
        for attempt in (self.current, self._ready):
            if attempt is not None:
                attempt.left.set()
                await attempt.close("interrupted", "the supervisor ended")
        self.failure = failure_at_exit(self, unseen)
        await self._over(self.failure or asyncio.CancelledError("the supervisor ended"))
        # A task that still waits for the recovery would wait for ever.
        self._next_ready.set()
