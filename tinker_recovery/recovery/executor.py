"""The Executor: takes a fault and brings the run back. It only recovers; it never detects.

A recovery that fails is tried again after a backoff, until the run's budget is spent. A service
that asks for patience is waited for instead, and one that refuses for good ends the run. So many
recoveries at once as the policy allows; many runs that fail alike are one incident.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import anyio

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.clock import Clock
from tinker_recovery.errors import CheckpointError, RecoveryExhausted, RecoveryRefused
from tinker_recovery.faults import Fault, FaultRule, Kind, SeenIn, Verdict, judge
from tinker_recovery.policy import Callback, RecoveryPolicy
from tinker_recovery.recovery.admission import MassReporter, Slot, Slots
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.restore import Restored, Tools
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import Backend, Connection
from tinker_recovery.supervision import Child
from tinker_recovery.telemetry import (
    EventSink,
    RunTelemetry,
    metrics,
    names,
    past_span,
    phase,
    redact,
    refuse,
    trying,
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """One recovery that succeeded, for reports.

    Attributes:
        fault: What it recovered from.
        checkpoint: What it went back to; None if the run started over.
        replayed_steps: Optimizer steps submitted before the fault that have to be done again.
        attempt: Number of the attempt that took over.
        handed_over_at: Monotonic seconds at which the new attempt was ready.
        service_s: Seconds of it spent waiting for the service.
    """

    fault: Fault
    checkpoint: CheckpointRecord | None
    replayed_steps: int
    attempt: int
    handed_over_at: float
    service_s: float


class Ended(NamedTuple):
    """How dealing with one fault ended.

    Attributes:
        outcome: ``names.RECOVERED`` and so on.
        error: What the run was given up with, or was left alone with.
    """

    outcome: str
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class HandOver:
    """A new client that is held ready.

    Attributes:
        callback: Who is told before anything runs on it.
        told: What the callback is called with.
        step: Optimizer steps in its weights; None if its checkpoint does not say.
        progress: A number that is larger for a newer checkpoint of the same run.
    """

    callback: Callback | None
    told: tuple[object, ...]
    step: int | None
    progress: int


class Restores(Protocol):
    """One try to bring a run's state back."""

    async def restore(self) -> Restored:
        """A new client, from the newest checkpoint that nothing speaks against."""
        ...

    async def progress(self) -> int | None:
        """How far the run has come by what is stored, as in :attr:`HandOver.progress`."""
        ...

    async def discard(self, connection: Connection) -> None:
        """Close a client that is not going to be used; never raises an Exception."""
        ...


class Recoverable(Protocol):
    """A run as the Executor sees it."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def telemetry(self) -> RunTelemetry:
        """Its spans, and its figures."""
        ...

    @property
    def budget(self) -> AttemptBudget:
        """Attempts left."""
        ...

    def step_to_skip(self) -> int | None:
        """The step to leave out from now on, if the policy skips one that faults again."""
        ...

    def awaits(self, fault: Fault) -> bool:
        """Whether this fault still has to be recovered from."""
        ...

    def restoration(self, tools: Tools) -> Restores:
        """One try to bring it back."""
        ...

    def take_over(self, restored: Restored) -> HandOver:
        """Hold the new client ready. Nothing runs yet.

        A client held ready before, by a recovery that died, is closed.
        """
        ...

    def resume(self, recovery: Recovery) -> None:
        """Make the client held ready the current one, and let the loop run again."""
        ...

    def give_up(self, error: BaseException) -> None:
        """End the run with this error."""
        ...


class Executor:
    """Recovers runs, each in a task of its own.

    Args:
        channel: Where faults come from; one is acknowledged once its run goes on or is given up.
        find: The run of a given name, or None if it has ended meanwhile.
        backend: Creates clients.
        policy: The user's policy.
        events: Where progress is told.
        clock: Time and chance.
        watched: How many runs there are.
    """

    def __init__(
        self,
        *,
        channel: FaultQueue,
        find: Callable[[str], Recoverable | None],
        backend: Backend,
        policy: RecoveryPolicy,
        events: EventSink,
        clock: Clock,
        watched: Callable[[], int],
    ) -> None:
        self._channel = channel
        self._find = find
        self._backend = backend
        self._policy = policy
        self._events = events
        self._clock = clock
        self._watched = watched
        self._begin()

    def _begin(self) -> None:
        policy = self._policy
        self._places = Slots(
            policy.max_concurrent_recoveries,
            backoff_s=lambda failed: policy.backoff_before(failed + 1, self._clock.random()),
            sleep=self._clock.sleep,
        )
        self._mass = MassReporter(
            self._places,
            watched=self._watched,
            poll_interval_s=policy.poll_interval_s,
            events=self._events,
            clock=self._clock,
        )

    async def serve(self, child: Child) -> None:
        """Recover for ever; a child of the supervision tree.

        What an earlier incarnation left in hand when it died is delivered again first.
        """
        self._begin()
        self._channel.deliver_again()
        child.started()
        async with anyio.create_task_group() as group:
            group.start_soon(self._places.serve)
            while True:
                fault = await self._channel.take()
                group.start_soon(self._keep, fault, group.cancel_scope)

    async def _keep(self, fault: Fault, scope: anyio.CancelScope) -> None:
        """Handle a fault, and let no task end quietly with one in hand."""
        try:
            await self._handle(fault)
        except anyio.get_cancelled_exc_class() as error:
            if scope.cancel_called:
                raise
            # Raised by something underneath, asked for by nobody. A task group takes it for an
            # ordinary end, and the fault would stay in hand for ever; a crash delivers it again.
            raise RuntimeError(
                f"handling a fault of run {fault.run!r} was cancelled, and not by the Executor"
            ) from error

    async def _handle(self, fault: Fault) -> None:
        run = self._find(fault.run)
        if run is not None and run.awaits(fault):
            self._mass.began(fault)
            attributes: dict[str, str | int] = {
                names.RUN_ID: fault.run_id,
                names.ATTEMPT: fault.attempt,
                names.FAULT_KIND: fault.kind.value,
                names.FAULT_REASON: fault.rule.reason,
                names.FAULT_DETECTED_BY: fault.detected_by.value,
                names.FAULT_STEP: fault.step,
                names.VERDICT: fault.verdict.value,
            }
            # It may have gone unseen since something last made progress.
            began_ns = fault.detected_ns - int(fault.silent_s * 1e9)
            with run.telemetry.recovery(attributes, start_ns=began_ns) as incident:
                past_span(
                    names.SPAN_DETECT,
                    {
                        names.FAULT_DETECTED_BY: fault.detected_by.value,
                        names.FAULT_KIND: fault.kind.value,
                        names.SILENT_S: fault.silent_s,
                    },
                    start_ns=began_ns,
                    end_ns=fault.detected_ns,
                )
                self._events.emit(
                    names.EVENT_DETECTED,
                    run.name,
                    f"{fault.kind.value} at step {fault.step}: {fault.rule.reason}",
                    {**attributes, names.SILENT_S: fault.silent_s},
                )
                ended = Ended(names.INTERRUPTED)
                try:
                    if self._policy.enabled and fault.verdict is not Verdict.GIVE_UP:
                        ended = await self._recover(run, fault)
                    else:
                        ended = Ended(names.OBSERVED, fault.as_error())
                        await self._call(
                            self._policy.on_failure, "on_failure", fault.run_id, ended.error
                        )
                finally:
                    incident.set_attribute(names.OUTCOME, ended.outcome)
                    metrics.recovered(
                        kind=fault.kind.value,
                        outcome=ended.outcome,
                        duration_s=self._clock.monotonic() - fault.detected_at,
                        error=ended.error,
                    )
                self._mass.ended(fault, recovered=ended.outcome == names.RECOVERED)
                if ended.error is not None:
                    refuse(incident, type(ended.error).__qualname__, str(ended.error))
        self._channel.acknowledge(fault)

    async def _recover(self, run: Recoverable, fault: Fault) -> Ended:
        await self._look_for_progress(run, fault)
        run.budget.note_error(fault.as_error())
        patience = fault.verdict is Verdict.WAIT
        began = self._clock.monotonic()
        # The first attempt of an incident starts at once; a wait begins with a backoff.
        tries = 1 if patience else 0
        while run.awaits(fault):
            waited_s = self._clock.monotonic() - began
            number = 0 if patience else run.budget.spend()
            if waited_s > self._policy.max_wait_s if patience else not number:
                break
            tries = max(tries + 1, number)
            place = self._places.place(
                left=run.budget.left, detected_at=fault.detected_at, tries=tries
            )
            try:
                await self._back_off(tries)
                return await self._try(run, fault, place, number)
            except anyio.get_cancelled_exc_class():
                if number:
                    # The Executor ends, or has crashed; the next one has the attempt in full.
                    run.budget.refund()
                raise
            except CheckpointError as error:
                self._failed(run, tries, error)
                await self._give_up(run, fault, error)
                return Ended(names.NO_CHECKPOINT, error)
            except Exception as error:  # noqa: BLE001 - whatever a service answers costs one attempt, never the run
                self._failed(run, tries, error)
                rule = judge(error, SeenIn.CREATE, self._policy.retryable_errors)
                if rule is not None and rule.verdict is Verdict.GIVE_UP:
                    return await self._refused(run, fault, rule)
                patience = rule is not None and rule.verdict is Verdict.WAIT
                if place.blamed and number:
                    # Time is what a backend's failure costs, and no attempt of the run's.
                    run.budget.refund()
                patience |= place.blamed
        if not run.awaits(fault):
            return Ended(names.ABANDONED)  # the user's own code ended the run meanwhile
        return await self._exhausted(run, fault, patience=patience)

    async def _look_for_progress(self, run: Recoverable, fault: Fault) -> None:
        """A fault overtakes the answer to a save: see what is stored before giving a run up."""
        if run.budget.left > 0:
            return
        began = self._clock.monotonic()
        for tries in itertools.count(1):
            await self._back_off(tries)
            try:
                looking = run.restoration(self._tools())
                async with self._places.place(left=0, detected_at=fault.detected_at, tries=tries):
                    progress = await looking.progress()
            except Exception as error:  # noqa: BLE001 - an unread listing shows no progress; the budget says what follows
                run.budget.note_error(error)
                waited_s = self._clock.monotonic() - began
                if not self._is_patient(error) or waited_s > self._policy.max_wait_s:
                    return
            else:
                if progress is not None:
                    run.budget.note_saved(progress)
                return

    def _is_patient(self, error: Exception) -> bool:
        rule = judge(error, SeenIn.CREATE, self._policy.retryable_errors)
        return rule is not None and rule.verdict is Verdict.WAIT

    async def _refused(self, run: Recoverable, fault: Fault, rule: FaultRule) -> Ended:
        errors = run.budget.errors
        refused = RecoveryRefused(
            redact(f"run {run.name!r} cannot be recovered, because {rule.reason}: {errors[-1]!r}"),
            run=run.name,
            errors=errors,
        )
        self._events.emit(
            names.EVENT_GAVE_UP, run.name, str(refused), {names.FAULT_KIND: rule.kind.value}
        )
        await self._give_up(run, fault, refused)
        return Ended(names.REFUSED, refused)

    async def _exhausted(self, run: Recoverable, fault: Fault, *, patience: bool) -> Ended:
        errors = run.budget.errors
        spent = (
            f"{self._policy.max_wait_s:g} s of waiting for the service"
            if patience
            else f"{self._policy.max_attempts} recovery attempts without a newer checkpoint in "
            "between"
        )
        step = fault.step if fault.failed_step is None else fault.failed_step
        exhausted = RecoveryExhausted(
            f"run {run.name!r} was given up after {spent}; the last fault was "
            f"{fault.kind.value} at step {step}; what went wrong, in order: "
            + redact("; ".join(f"({n}) {error!r}" for n, error in enumerate(errors, 1))),
            run=run.name,
            errors=errors,
        )
        self._events.emit(names.EVENT_EXHAUSTED, run.name, str(exhausted), {})
        await self._give_up(run, fault, exhausted)
        return Ended(names.EXHAUSTED, exhausted)

    def _failed(self, run: Recoverable, attempt: int, error: Exception) -> None:
        run.budget.note_error(error)
        self._events.emit(
            names.EVENT_FAILED,
            run.name,
            f"recovery attempt {attempt} failed: {error}",
            {names.TRY: attempt, names.ERROR_TYPE: type(error).__qualname__},
        )

    async def _give_up(self, run: Recoverable, fault: Fault, error: BaseException) -> None:
        await self._call(self._policy.on_failure, "on_failure", fault.run_id, error)
        run.give_up(error)

    async def _back_off(self, attempt: int) -> None:
        delay_s = self._policy.backoff_before(attempt, self._clock.random())
        if delay_s > 0:
            with phase(names.SPAN_BACKOFF, {names.BACKOFF_S: delay_s, names.TRY: attempt}):
                await self._clock.sleep(delay_s)

    async def _try(self, run: Recoverable, fault: Fault, place: Slot, number: int) -> Ended:
        """One try, once there is a place for it; it may say something of the service, too."""
        tries = place.ticket.tries
        async with place:
            if not run.awaits(fault):
                return Ended(names.ABANDONED)
            self._events.emit(
                names.EVENT_STARTED,
                run.name,
                f"recovery attempt {number} of {self._policy.max_attempts}"
                if number
                else "trying again after a wait",
                {names.TRY: tries},
            )
            try:
                with trying(tries):
                    # Where calls have just failed for want of a service, the SDK would try to open
                    # a session for minutes; likewise where a try has failed already.
                    ahead = tries == 1 and fault.kind is not Kind.UNAVAILABLE
                    ended = await self._attempt(run, fault, ahead=ahead)
            except CheckpointError:
                raise
            except Exception as error:
                rule = judge(error, SeenIn.CREATE, self._policy.retryable_errors)
                if rule is None or rule.verdict is not Verdict.GIVE_UP:
                    place.failed()
                raise
            place.succeeded()
            return ended

    def _tools(self, *, ahead: bool = False) -> Tools:
        return Tools(
            self._backend, self._policy, self._events, self._clock, ServiceTime(self._clock), ahead
        )

    async def _attempt(self, run: Recoverable, fault: Fault, *, ahead: bool) -> Ended:
        tools = self._tools(ahead=ahead)
        restoration = run.restoration(tools)
        restored = await restoration.restore()
        taken = False  # until the hand-over the new client is nobody's but ours to close
        try:
            if not run.awaits(fault):
                return Ended(names.ABANDONED)
            new = run.take_over(restored)
            taken = True
        finally:
            if not taken:
                await restoration.discard(restored.connection)
        checkpoint = restored.checkpoint
        with phase(names.SPAN_RESUME) as span:
            replayed = 0 if new.step is None else max(0, fault.step - new.step)
            at = {} if new.step is None else {names.CHECKPOINT_STEP: new.step}
            span.set_attributes(
                {**at, names.REPLAYED_STEPS: replayed, names.ATTEMPT: fault.attempt + 1}
            )
            run.budget.note_recovered(new.progress)
            await self._skip_what_faults_again(run, fault)
            await self._call(new.callback, "on_recovery", *new.told)
            recovery = Recovery(
                fault=fault,
                checkpoint=checkpoint,
                replayed_steps=replayed,
                attempt=fault.attempt + 1,
                handed_over_at=self._clock.monotonic(),
                service_s=tools.waiting.total_s,
            )
            self._events.emit(
                names.EVENT_COMPLETED,
                run.name,
                "recovered: a client at a step unknown to us is handed over"
                if new.step is None
                else f"recovered: the loop goes on from step {new.step}, {replayed} steps are "
                "replayed",
                {**at, names.REPLAYED_STEPS: replayed},
            )
            run.resume(recovery)
        return Ended(names.RECOVERED)

    async def _skip_what_faults_again(self, run: Recoverable, fault: Fault) -> None:
        step = run.step_to_skip()
        if step is None:
            return
        self._events.emit(
            names.EVENT_STEP_SKIPPED,
            run.name,
            f"step {step} faulted again right after its recovery: attempt.skip({step}) is True now",
            {names.FAULT_STEP: step, names.FAULT_KIND: fault.kind.value},
        )
        await self._call(self._policy.on_skip, "on_skip", step, fault.as_error())

    async def _call(self, callback: Callback | None, name: str, *args: object) -> None:
        """Run a callback of the user's: what it raises, or how long it takes, breaks nothing."""
        if callback is None:
            return
        try:
            with anyio.fail_after(self._policy.close_timeout_s):
                result = callback(*args)
                if inspect.isawaitable(result):
                    await result
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The callback waited for something that was cancelled, an old client's result perhaps.
            self._events.callback_failed(name, error)
        except Exception as error:  # noqa: BLE001 - the user's callback must never break a recovery
            self._events.callback_failed(name, error)
