"""SupervisedRun: one logical run, and its position over many Tinker run ids."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
from tinker import types

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Segment,
    WeightsFacts,
    on_branch,
)
from tinker_recovery.checkpoints.canary import answer_of
from tinker_recovery.clock import Clock
from tinker_recovery.errors import (
    LeaseLost,
    RecoveryLost,
    RunFailed,
    StatusError,
    UsageError,
)
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind, SeenIn, Verdict, judge
from tinker_recovery.journal import Notebook, RunRecord
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators, Spawn
from tinker_recovery.recovery.executor import HandOver, Recovery
from tinker_recovery.recovery.restore import Restore, Restored
from tinker_recovery.recovery.resume import RunSnapshot, finish_sessions
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.journaling import RunJournal
from tinker_recovery.run.mailbox import Mailbox
from tinker_recovery.run.rollback_detector import RollbackDetector
from tinker_recovery.run.saver import RunHistory
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.service import (
    Backend,
    Connection,
    FromCheckpoint,
    Origin,
    RunStatus,
    StatusReader,
)
from tinker_recovery.service.base import CloseStatus
from tinker_recovery.telemetry import EventSink, RunTelemetry, names

logger = logging.getLogger(names.SCOPE)

CLOSE_BEHIND_S = 0.25
"""How long closing a client hit by a fault stands back for the one that replaces it."""


class SupervisedRun:
    """One logical run: where it began, every Tinker run it has lived in, and where it stands.

    Lives above the Monitor and the Executor, so a crash of either loses nothing of it.
    """

    def __init__(  # noqa: PLR0913, PLR0915 - its collaborators, by name
        self,
        name: str,
        *,
        origin: Origin | None,
        root: CheckpointRecord | None,
        start_step: int,
        policy: RecoveryPolicy,
        backend: Backend,
        reader: StatusReader,
        events: EventSink,
        clock: Clock,
        report: Callable[[Fault], None],
        settled: Callable[[Fault], Awaitable[None]],
        spawn: Spawn,
        mailbox: Mailbox,
        notebook: Notebook,
        changed: Callable[[SupervisedRun], None],
        interruption: StopSignals,
        record: RunRecord,
        snapshot: RunSnapshot | None = None,
    ) -> None:
        self.mailbox = mailbox
        """Where the client's thread leaves word."""
        self.interruption = interruption
        """Whether a signal has asked the process to stop."""
        self.name = name
        self.clock = clock
        self.spawn = spawn
        self.given_name = record.given_name
        """The same, if the user gave it and the run is to be found again by it."""
        self.lineage = record.lineage
        self.telemetry = RunTelemetry(name, self.lineage, clock.monotonic)
        """Its spans, and its figures."""
        self.origin = origin
        self.root = root
        self.start_step = start_step
        self.policy = policy
        self.reader = reader
        self.budget = AttemptBudget(policy.max_attempts)
        self.attempts: list[Attempt] = []
        """Every attempt that ran, oldest first."""
        self.recoveries: list[Recovery] = []
        """Every recovery that succeeded, oldest first."""
        self.metrics: dict[str, float] = {}
        """What the loop reported last."""
        self.ended = False
        """Whether the run is over, well or not."""
        self.history = RunHistory()
        """What its attempts hand on to each other."""
        self.weights = WeightsFacts() if snapshot is None else snapshot.weights
        """What the service says its weights are, once it was asked about the run."""
        self.skipped: set[int] = set()
        """Steps the loop leaves out, by ``on_repeated_fault="skip_step"``."""
        self.snapshot = snapshot
        """Where it stood when another process trained it; None if it begins here."""
        self.checkpoints = (
            CheckpointState(name, canary_tolerance=policy.canary_tolerance)
            if snapshot is None
            else snapshot.checkpoints
        )
        """What is known of its checkpoints."""
        self.checkpoints.first_doubtful_step = self._first_doubtful_step
        self.rollbacks = RollbackDetector(self)
        """What notices that the service has lost weights."""
        self.checkpoints.confirmed_to = self.rollbacks.confirmed_to
        self.collaborators = Collaborators(policy, backend, reader, notebook, events, clock, spawn)
        """What it is recovered with."""
        self._chronicle = RunJournal(self, record)
        self._backend = backend
        self.changed = changed
        self._events = events
        self._report = report
        self._settled = settled
        self._faults_at: tuple[int | None, int] = (None, 0)
        self._warned_of: Attempt | None = None
        self._incident: Fault | None = None
        self._ready: Attempt | None = None
        self._failure: BaseException | None = None
        self._news = anyio.Event()
        if snapshot is not None:
            self.history.saved.update(snapshot.saved)
        self.telemetry.started(start_step)

    def __repr__(self) -> str:
        return f"<SupervisedRun {self.name!r}, {self.state}, attempt {len(self.attempts)}>"

    @property
    def parent(self) -> str | None:
        """Path of the checkpoint the user started it from, if they did."""
        return self.origin.path if isinstance(self.origin, FromCheckpoint) else None

    @property
    def current(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, oldest first."""
        earlier = () if self.snapshot is None else self.snapshot.segments
        return [*earlier, *(attempt.segment for attempt in self.attempts)]

    @property
    def state(self) -> str:
        """``training``, ``recovering`` or ``over``, for people."""
        return "over" if self.ended else "recovering" if self._incident else "training"

    @property
    def watched_run_id(self) -> str | None:
        """The Tinker run to ask about; None during a recovery and after the end."""
        current = self.current
        return None if self.ended or self._incident or current is None else current.run_id

    def note_status(self, status: RunStatus) -> None:
        """What the service says of the run; an answer about an earlier attempt is passed over."""
        current = self.current
        if current is None or status.run_id != self.watched_run_id:
            return
        self.weights = status.weights
        if status.corrupted:
            current.declare(RULES[Kind.CORRUPTED], DetectedBy.POLL)
        else:
            self.rollbacks.note_reachable(current)

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
            and record.step == max(self._steps_saved(current.id), default=0)
        )

    def _steps_saved(self, attempt: str) -> list[int]:
        return [step for of, step in self.history.saved if of == attempt]

    def note_session_failed(self, run_id: str, message: str) -> None:
        """The service has failed the session of a run."""
        current = self.current
        if current is not None and run_id == self.watched_run_id:
            logger.warning("run %s: the service failed its session: %s", self.name, message)
            current.declare(RULES[Kind.SESSION_FAILED], DetectedBy.POLL)

    def note_unreachable(self) -> None:
        """The service could not be reached."""
        self.rollbacks.note_unreachable(self.current)

    def check_silence(self) -> None:
        """Warn of, and then declare, work that makes no progress."""
        current = self.current
        if current is None or self.watched_run_id is None:
            return
        silent_s = current.client.silent_s()
        warn_s, stall_s = self.policy.stall_warning_s, self.policy.stall_after_s
        if silent_s is None or warn_s is None or silent_s < warn_s:
            self._warned_of = None
            return
        if self._warned_of is not current:
            self._warned_of = current
            limit = "" if stall_s is None else f"; after {stall_s:g} s it counts as a fault"
            self._events.emit(
                names.EVENT_STALL_WARNING,
                self.name,
                f"{current.client.open_requests} requests are open and none has finished for "
                f"{silent_s:.1f} s{limit}",
                {names.RUN_ID: current.run_id, names.SILENT_S: silent_s},
            )
        if stall_s is not None and silent_s >= stall_s:
            current.declare(RULES[Kind.SILENCE], DetectedBy.SILENCE)

    async def is_corrupted(self) -> bool:
        """Ask the service whether it calls the run corrupted; no answer counts as no."""
        if self.current is None:
            return False
        try:
            return (await self.reader.run(self.current.run_id)).corrupted
        except StatusError:
            return False

    def note_saved(self, attempt: Attempt, step: int, path: str, took_s: float | None) -> None:
        """A checkpoint is stored; progress, if it belongs to the attempt that runs."""
        self.checkpoints.stored[path] = attempt.id, step
        self.checkpoints.write_canary(attempt.id, step, self.collaborators)
        # A save queued behind a request that failed is stored all the same, and is no progress.
        sound = not attempt.faulty and step <= attempt.client.first_doubtful_step
        if attempt is self.current and sound:
            self.budget.note_saved(step)
            self.rollbacks.note_saved(step)
        self.changed(self)
        self._chronicle.saved(attempt, step, path, sound=sound)
        self._events.emit(
            names.EVENT_CHECKPOINT_SAVED,
            self.name,
            f"{path}, at step {step}",
            {
                names.CHECKPOINT_PATH: path,
                names.CHECKPOINT_STEP: step,
                **({} if took_s is None else {names.SAVE_S: took_s}),
            },
        )

    def note_canary(self, attempt: Attempt, step: int, output: types.ForwardBackwardOutput) -> None:
        """The canary was run on the weights of a checkpoint."""
        fingerprint = self.checkpoints.note_canary(attempt.id, step, answer_of(output))
        if fingerprint is not None:
            # The next checkpoint carries it, so that any later process can compare.
            attempt.saver.canary = step, fingerprint
        self.checkpoints.write_canary(attempt.id, step, self.collaborators)

    def _first_doubtful_step(self, attempt_id: str) -> float:
        steps = [
            attempt.client.first_doubtful_step
            for attempt in self.attempts
            if attempt.id == attempt_id and attempt.faulty
        ]
        return min(steps, default=math.inf)

    def note_save_failed(self, attempt: Attempt, step: int, error: BaseException) -> None:
        """A save did not succeed; training goes on. What a fault took with it is no news."""
        if attempt.faulty or attempt.closed:
            return
        self._events.emit(
            names.EVENT_CHECKPOINT_SAVE_FAILED,
            self.name,
            f"saving at step {step}: {error}",
            {names.CHECKPOINT_STEP: step, names.ERROR_TYPE: type(error).__qualname__},
        )

    def fault_declared(self, fault: Fault) -> None:
        """An attempt, or the start, reports a fault."""
        if self._incident is not None or self.ended:
            return
        current = self.current
        if self.policy.enabled and fault.verdict is not Verdict.GIVE_UP:
            self._incident = fault
            self.telemetry.stopped()
            self._news = anyio.Event()
            self._count(fault)
            self.history.evidence = self.history.evidence.failed()
            if current is not None:
                self.rollbacks.distrust_since(fault, current)
                self.spawn(functools.partial(self._retire, current))
        elif self.policy.enabled and current is not None and current.blocking:
            self.spawn(functools.partial(self._retire, current))
        self._chronicle.fault(fault, recovers=self._incident is fault)
        self._report(fault)

    def _count(self, fault: Fault) -> None:
        step, times = self._faults_at
        again = fault.failed_step is not None and fault.failed_step == step
        self._faults_at = (fault.failed_step, times + 1 if again else 1)

    def saved_below(self, step: int) -> list[tuple[int, Mapping[str, float]]]:
        """The saves of the run's branch up to a step, with their metrics, oldest first."""
        on = {segment.attempt: limit for segment, limit in on_branch(self.segments)}
        return sorted(
            (
                (at, metrics)
                for (attempt, at), metrics in self.history.saved.items()
                if at <= min(step, on.get(attempt, -1))
            ),
            key=lambda each: each[0],
        )

    def step_to_skip(self) -> int | None:
        """The step to leave out from now on, if the policy skips one that faults again."""
        step, times = self._faults_at
        if self.policy.on_repeated_fault != "skip_step" or step is None or times <= 1:
            return None
        if step in self.skipped:
            return None
        self.skipped.add(step)
        return step

    def awaits(self, fault: Fault) -> bool:
        """Whether this fault still has to be dealt with."""
        if not self.policy.enabled or fault.verdict is Verdict.GIVE_UP:
            return not self.ended
        return not self.ended and self._incident is fault

    def begin(self, connection: Connection) -> Attempt:
        """The first attempt, on a client made by the user's own choice of start."""
        attempt = self._attempt(connection, self.root)
        self._join(attempt)
        self.checkpoints.began = attempt.segment.parent, attempt.id, attempt.start_step
        if self.origin is None:
            # An adopted client cannot be made again, so it needs something to recover from.
            attempt.client.save(attempt.saver.begin)
        else:
            attempt.client.record_canary()
        return attempt

    def start_failed(self, error: BaseException) -> bool:
        """The first client could not be created; whether that is a fault to recover from."""
        rule = judge(error, SeenIn.CREATE, self.policy.retryable_errors)
        if rule is None or rule.verdict is Verdict.GIVE_UP:
            return False
        if not self.policy.enabled or self.origin is None:
            return False
        self.fault_declared(Fault(self.name, 0, "", rule, DetectedBy.START, self.start_step, error))
        return True

    def go_on(self) -> None:
        """Have the run recovered that another process left behind, as from any other fault."""
        if self.snapshot is None:
            raise UsageError(f"run {self.name!r} begins here: there is nothing to go on with")
        last = self.snapshot.segments[-1]
        self.spawn(functools.partial(finish_sessions, self.reader, self.snapshot.sessions))
        rule = RULES[Kind.PROCESS_LOST]
        number = len(self.snapshot.segments)
        self.fault_declared(
            Fault(self.name, number, last.run_id, rule, DetectedBy.JOURNAL, self.snapshot.step)
        )

    def lease_lost(self, error: LeaseLost) -> None:
        """Another process has taken the run: nothing may be trained here any more."""
        current = self.current
        if self._incident is None and current is not None:
            current.declare(RULES[Kind.LEASE_LOST], DetectedBy.JOURNAL, error)
        else:
            self.give_up(error)

    def note_report(self, attempt: Attempt, metrics: Mapping[str, float]) -> None:
        """What the loop reports; from the loop's own thread."""
        self.metrics = dict(metrics)
        self._chronicle.reported(attempt, metrics)

    def note_step_done(self, attempt: Attempt) -> None:
        """An optimizer step is complete; from the SDK's thread, after every step."""
        self._chronicle.stepped(attempt)

    async def written_down(self, attempt: Attempt) -> Attempt:
        """The attempt, once the journal knows of it: nobody may train what no restart would find.

        Raises:
            LeaseLost: The run is another process's by now.
        """
        try:
            await self._chronicle.begins(attempt)
        except BaseException as error:
            await self.over(error)
            raise
        return attempt

    async def over(self, error: BaseException | None) -> None:
        """The run is over: well, or by this error; the journal is told, its lease given back."""
        self.end(error)
        await self._chronicle.ends(error)

    def restoration(self, waiting: ServiceTime, *, ahead: bool) -> Restore:
        """One try to bring it back."""
        return Restore(self, self.collaborators, waiting=waiting, ahead=ahead)

    def take_over(self, restored: Restored) -> HandOver:
        """Hold a recovered client ready."""
        if self._ready is not None:
            self.spawn(functools.partial(self._retire, self._ready))
        ready = self._ready = self._attempt(restored.connection, restored.checkpoint)
        if restored.answer is not None:
            self.checkpoints.canaries.record(ready.id, ready.start_step, restored.answer)
        old = self.current.client if self.current else None
        return HandOver(
            callback=self.policy.on_recovery,
            told=(old, ready.client, restored.checkpoint),
            step=ready.client.step,
            progress=ready.client.step,
        )

    def resume(self, recovery: Recovery) -> None:
        """Let the loop run again on the client held ready."""
        if self._ready is None:
            raise UsageError("take_over() comes before resume()")
        self._join(self._ready)
        self.recoveries.append(recovery)
        self._ready = None
        self._incident = None
        resumed = self.attempts[-1]
        self.rollbacks.note_resumed(resumed.start_step)
        self._news.set()
        self.changed(self)
        if resumed.fault is not None:
            # It failed before anyone trained on it, in the user's own callback perhaps.
            self.fault_declared(resumed.fault)

    def give_up(self, error: BaseException) -> None:
        """End the run; the loop's owner sees this error."""
        self._failure = error
        self._news.set()

    def _join(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.telemetry.segment_began(attempt.segment, attempt.number, attempt.saver.steps_done)

    def end(self, error: BaseException | None) -> None:
        """The run is over: well, or by this error."""
        self.ended = True
        step = self.start_step if self.current is None else self.current.client.step
        self.telemetry.ended(step=step, recoveries=len(self.recoveries), error=error)

    async def next_attempt(self) -> Attempt:
        """Wait for the recovery under way; raises the error the run was given up with."""
        try:
            await self._news.wait()
        except BaseException as error:
            await self.over(error)  # whoever waited for it has left, and knows
            raise
        if self._failure is not None:
            await self.over(self._failure)
            raise self._failure
        if self.current is None:
            raise UsageError(f"run {self.name!r} has no attempt")
        return await self.written_down(self.current)

    @property
    def recovering(self) -> bool:
        """Whether an incident is open."""
        return self._incident is not None

    async def attempt_over(self, attempt: Attempt, error: BaseException | None) -> None:
        """The body was left for good: by its end, or by an exception that is not ours."""
        fault = attempt.fault
        if fault is not None and (not self.policy.enabled or fault.verdict is Verdict.GIVE_UP):
            # Whoever is to hear of it hears of it before the error leaves.
            with anyio.move_on_after(2 * self.policy.close_timeout_s):
                await self._settled(fault)
        self.end(error)
        status: CloseStatus = "success"
        if error is not None:
            status = "errored" if isinstance(error, Exception) else "interrupted"
        await self._close(attempt, status, "" if error is None else type(error).__name__)
        await self._chronicle.ends(error)

    async def abandon(self) -> None:
        """The Supervisor ends: close whatever is still open. Never raises an Exception."""
        unheard = None if self.ended or self._failure is not None else self._unseen_fault()
        self.ended = True
        for attempt in (self.current, self._ready):
            if attempt is not None:
                attempt.left.set()
                await self._close(attempt, "interrupted", "the supervisor ended")
        if unheard is not None:
            self._failure = RecoveryLost(
                f"run {self.name!r} has a fault that came to light after its loop had been left "
                "(break or return inside `async with attempt:`), so its last steps may not have "
                "been applied: let the loop end by itself, or use supervisor.run(train)",
                run=self.name,
                errors=[unheard.as_error()],
            )
        elif self._failure is None and self._incident is not None:
            self._failure = RunFailed(
                f"the supervisor ended while run {self.name!r} was being recovered",
                run=self.name,
                errors=[self._incident.as_error()],
            )
        await self.over(self._failure or asyncio.CancelledError("the supervisor ended"))
        # Whoever still waits for the recovery, in another task, would wait for ever.
        self._news.set()

    def _unseen_fault(self) -> Fault | None:
        """The fault that the loop's owner has not come back for."""
        current = self.current
        if current is None:
            return None
        if self._incident is not None:
            return self._incident if current.entered else None
        return self.recoveries[-1].fault if self.recoveries and not current.entered else None

    @property
    def lost(self) -> BaseException | None:
        """The error to raise if the run ended without anyone hearing of its last fault."""
        return self._failure if isinstance(self._failure, RecoveryLost) else None

    async def _retire(self, attempt: Attempt) -> None:
        """Close the client of an attempt hit by a fault, once its body has let go of it."""
        try:
            if attempt.entered and not attempt.blocking:
                with anyio.move_on_after(self.policy.close_timeout_s):
                    await attempt.left.wait()
                # All of the SDK shares one thread: closing the old client would hold up the new.
                with anyio.move_on_after(CLOSE_BEHIND_S):
                    await self._news.wait()
        finally:
            await self._close(attempt, "errored", "replaced by a recovery")

    async def interrupt(self, attempt: Attempt) -> None:
        """Close an attempt's client under a body that runs in a thread, so that it notices."""
        await self._close(attempt, "errored" if attempt.faulty else "interrupted", "interrupted")

    async def _close(self, attempt: Attempt, status: CloseStatus, detail: str) -> None:
        if attempt.closed:
            return
        attempt.closed = True
        attempt.client.retire("the attempt is over")
        # Whoever is cancelled meanwhile waits for it: it has a deadline, and a session left open
        # holds its place at the service until it times out.
        with anyio.CancelScope(shield=True):
            await self._backend.close(
                attempt.connection, status, detail, deadline_s=self.policy.close_timeout_s
            )
        # Only then: a request cancelled in the moment it fails leaves an exception that nobody
        # retrieves, and asyncio prints a traceback for each. What still waits for its turn is
        # ended by this and by nothing else.
        attempt.client.cancel_open()

    def _attempt(self, connection: Connection, checkpoint: CheckpointRecord | None) -> Attempt:
        return Attempt(
            self,
            len(self.segments) + 1,
            connection,
            checkpoint,
            start_step=self.start_step if checkpoint is None else checkpoint.step,
        )
