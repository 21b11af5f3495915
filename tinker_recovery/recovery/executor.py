"""The Executor: takes a fault off the queue and brings its run back. It never detects.

A recovery that fails is tried again after a backoff, until the run's budget is spent. A service
that asks for patience is waited for instead, and one that refuses for good ends the run. As many
recoveries at once as the policy allows; many runs that fail alike are one incident.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio

from tinker_recovery.clock import Reminder
from tinker_recovery.errors import (
    CheckpointError,
    DeadlineExceeded,
    LeaseLost,
    RecoveryRefused,
)
from tinker_recovery.faults import DetectedBy, Fault, Kind, SeenIn, Verdict, VerdictRule, judge
from tinker_recovery.policy import Callback
from tinker_recovery.recovery.admission import MassReporter, Slot, Slots
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.exhausted import exhausted
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.recoverable import Recoverable, Recovery
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import Patience
from tinker_recovery.supervision import Child
from tinker_recovery.telemetry import metrics, names, past_span, phase, refuse, trying

_NEVER_ACCEPTED = frozenset({DetectedBy.START, DetectedBy.JOURNAL})
"""Where nothing has been trained here yet, a credential that is refused is a wrong one."""


class Ended(NamedTuple):
    """How dealing with one fault ended.

    Attributes:
        outcome: ``names.RECOVERED`` and so on.
        error: What the run was given up with, or was left alone with.
    """

    outcome: str
    error: BaseException | None = None


@dataclass(slots=True)
class _Waits:
    """What one incident has waited for, and what was said of it."""

    missed: int = 0
    reported: bool = False
    last: Exception | None = None
    reminder: Reminder = field(default_factory=Reminder)
    refused_since: float | None = None

    def repeat(self, error: Exception, *, waits: bool) -> bool:
        """Note what a try failed with; whether it is one wait after another."""
        self.missed += isinstance(error, DeadlineExceeded)
        repeated, self.reported, self.last = self.reported and waits, waits, error
        return repeated


class Executor:
    """Recovers runs, each in a task of its own.

    Args:
        collaborators: What it works with.
        queue: Where faults come from; one is acknowledged once its run is recovered or given up.
        find: The run of a given name, or None if it has ended meanwhile.
        watched: How many runs there are.
    """

    def __init__(
        self,
        collaborators: Collaborators,
        *,
        queue: FaultQueue,
        find: Callable[[str], Recoverable | None],
        watched: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._find = find
        self._policy = collaborators.policy
        self._events = collaborators.events
        self._endpoint = collaborators.reader.http.endpoint
        self._clock = collaborators.clock
        self._watched = watched
        self._reset()

    def _reset(self) -> None:
        policy = self._policy
        self._slots = Slots(
            policy.max_concurrent_recoveries,
            backoff_s=lambda failed: policy.backoff_before(failed + 1, self._clock.random()),
            sleep=self._clock.sleep,
        )
        self._mass = MassReporter(
            self._slots,
            watched=self._watched,
            poll_interval_s=policy.poll_interval_s,
            events=self._events,
            clock=self._clock,
        )

    async def serve(self, child: Child) -> None:
        """Recover for ever; a child of the supervision tree.

        What an earlier incarnation had taken when it died is delivered again first.
        """
        self._reset()
        self._queue.deliver_again()
        child.started()
        async with anyio.create_task_group() as group:
            group.start_soon(self._slots.serve)
            while True:
                fault = await self._queue.take()
                group.start_soon(self._handle_or_crash, fault, group.cancel_scope)

    async def _handle_or_crash(self, fault: Fault, scope: anyio.CancelScope) -> None:
        """Handle a fault; no task ends quietly with one that is not acknowledged."""
        try:
            await self._handle(fault)
        except anyio.get_cancelled_exc_class() as error:
            if scope.cancel_called:
                raise
            # Raised by something underneath, without our asking. A task group takes it for an
            # ordinary end, and the fault would never be acknowledged; a crash delivers it again.
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
                        run=run.name if self._policy.telemetry_run_label else None,
                    )
                self._mass.ended(fault, recovered=ended.outcome == names.RECOVERED)
                if ended.error is not None:
                    refuse(incident, type(ended.error).__qualname__, str(ended.error))
        self._queue.acknowledge(fault)

    async def _recover(self, run: Recoverable, fault: Fault) -> Ended:
        await self._look_for_progress(run, fault)
        run.budget.note_error(fault.as_error())
        patience = fault.verdict is Verdict.WAIT
        began = self._clock.monotonic()
        # The first attempt of an incident starts at once; a wait begins with a backoff.
        tries = 1 if patience else 0
        waits = _Waits(refused_since=began if fault.kind is Kind.UNAUTHORIZED else None)
        while run.awaits(fault):
            waited_s = self._clock.monotonic() - began
            number = 0 if patience else run.budget.spend()
            if waited_s > self._policy.max_wait_s if patience else not number:
                break
            tries = max(tries + 1, number)
            slot = self._slots.slot(
                left=run.budget.left, detected_at=fault.detected_at, tries=tries
            )
            try:
                await self._back_off(tries, self._grace_left_s(waits))
                return await self._try(
                    run, fault, slot, number, self._patience(run, tries, waits, waited_s)
                )
            except anyio.get_cancelled_exc_class():
                if number:
                    # The Executor ends, or has crashed; the next one has the attempt in full.
                    run.budget.refund()
                raise
            except (CheckpointError, LeaseLost) as error:
                self._failed(run, tries, error)
                await self._give_up(run, fault, error)
                lost = isinstance(error, LeaseLost)
                return Ended(names.REFUSED if lost else names.NO_CHECKPOINT, error)
            except Exception as error:  # noqa: BLE001 - whatever a service answers costs one attempt, never the run
                rule = judge(error, SeenIn.CREATE, self._policy.retryable_errors)
                refused = self._is_waited_for(run, fault, rule, waits)
                patience = refused or (rule is not None and rule.verdict is Verdict.WAIT)
                self._failed(run, tries, error, repeated=waits.repeat(error, waits=patience))
                if rule is not None and rule.verdict is Verdict.GIVE_UP and not refused:
                    return await self._refused(run, fault, rule)
                if slot.backend_blamed and number:
                    # Time is what a backend's failure costs, and no attempt of the run's.
                    run.budget.refund()
                patience |= slot.backend_blamed
                self._remind(run, waits, self._clock.monotonic() - began if patience else 0.0)
        if not run.awaits(fault):
            return Ended(names.ABANDONED)  # the user's own code ended the run meanwhile
        return await self._exhausted(run, fault, patience=patience)

    def _is_waited_for(
        self, run: Recoverable, fault: Fault, rule: VerdictRule | None, waits: _Waits
    ) -> bool:
        """Whether a credential is refused that may be rotated just now; says so the first time."""
        if rule is None or rule.kind is not Kind.UNAUTHORIZED:
            waits.refused_since = None
            return False
        if fault.detected_by in _NEVER_ACCEPTED:
            return False
        first = waits.refused_since is None or not waits.reported
        if waits.refused_since is None:
            waits.refused_since = self._clock.monotonic()
        left_s = self._grace_left_s(waits)
        if first and left_s > 0:
            self._events.emit(
                names.EVENT_WAITING,
                run.name,
                f"the credential is refused (HTTP 401); another one is waited for for {left_s:.0f} "
                "s (credential_grace_s), as it may be rotated just now",
            )
        return left_s > 0

    def _grace_left_s(self, waits: _Waits) -> float:
        """Seconds left to wait for a credential; infinite if none is refused."""
        if waits.refused_since is None:
            return math.inf
        waited_s = self._clock.monotonic() - waits.refused_since
        return max(0.0, self._policy.credential_grace_s - waited_s)

    async def _look_for_progress(self, run: Recoverable, fault: Fault) -> None:
        """A fault overtakes the answer to a save: see what is stored before giving a run up."""
        if run.budget.left > 0:
            return
        began = self._clock.monotonic()
        for tries in itertools.count(1):
            await self._back_off(tries)
            try:
                looking = run.restoration(ServiceTime(self._clock))
                async with self._slots.slot(left=0, detected_at=fault.detected_at, tries=tries):
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

    async def _refused(self, run: Recoverable, fault: Fault, rule: VerdictRule) -> Ended:
        errors = run.budget.errors
        if fault.kind is rule.kind is Kind.UNAUTHORIZED:
            # Nothing else was wrong: what the user's call has met says it best.
            error = fault.as_error()
            self._events.emit(
                names.EVENT_GAVE_UP,
                run.name,
                f"run {run.name!r} is given up after {self._policy.credential_grace_s:g} s "
                f"(credential_grace_s), because {rule.reason}: {error!r}",
                {names.FAULT_KIND: rule.kind.value},
            )
            await self._give_up(run, fault, error)
            return Ended(names.REFUSED, error)
        refused = RecoveryRefused(
            f"run {run.name!r} cannot be recovered, because {rule.reason}: {errors[-1]!r}",
            run=run.name,
            errors=errors,
        )
        self._events.emit(
            names.EVENT_GAVE_UP, run.name, str(refused), {names.FAULT_KIND: rule.kind.value}
        )
        await self._give_up(run, fault, refused)
        return Ended(names.REFUSED, refused)

    async def _exhausted(self, run: Recoverable, fault: Fault, *, patience: bool) -> Ended:
        error = exhausted(run, fault, self._policy, self._endpoint, patience=patience)
        self._events.emit(names.EVENT_EXHAUSTED, run.name, str(error), {})
        await self._give_up(run, fault, error)
        return Ended(names.EXHAUSTED, error)

    def _patience(self, run: Recoverable, tries: int, waits: _Waits, waited_s: float) -> Patience:
        def report(message: str) -> None:
            self._events.emit(names.EVENT_WAITING, run.name, message, {names.TRY: tries})

        silence_s = self._policy.create_deadline_s(waits.missed)
        return Patience(silence_s, self._policy.max_wait_s - waited_s, report)

    def _remind(self, run: Recoverable, waits: _Waits, waited_s: float) -> None:
        if waits.reminder.is_due(waited_s):
            self._events.emit(
                names.EVENT_WAITING,
                run.name,
                f"the service has been waited for for {waited_s:.0f} s; after "
                f"{self._policy.max_wait_s:g} s (max_wait_s) the run is given up; the last try "
                f"failed: {waits.last}",
            )

    def _failed(
        self, run: Recoverable, attempt: int, error: Exception, *, repeated: bool = False
    ) -> None:
        run.budget.note_error(error)
        self._events.emit(
            names.EVENT_FAILED,
            run.name,
            f"recovery attempt {attempt} failed: {error}",
            {names.TRY: attempt, names.ERROR_TYPE: type(error).__qualname__},
            repeated=repeated,
        )

    async def _give_up(self, run: Recoverable, fault: Fault, error: BaseException) -> None:
        await self._call(self._policy.on_failure, "on_failure", fault.run_id, error)
        run.give_up(error)

    async def _back_off(self, attempt: int, most_s: float = math.inf) -> None:
        delay_s = min(self._policy.backoff_before(attempt, self._clock.random()), most_s)
        if delay_s > 0:
            with phase(names.SPAN_BACKOFF, {names.BACKOFF_S: delay_s, names.TRY: attempt}):
                await self._clock.sleep(delay_s)

    async def _try(
        self, run: Recoverable, fault: Fault, slot: Slot, number: int, patience: Patience
    ) -> Ended:
        """One try, once there is a slot for it; its outcome may be the backend's doing."""
        tries = slot.ticket.tries
        async with slot:
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
                    ended = await self._restore_and_hand_over(run, fault, patience, ahead=ahead)
            except (CheckpointError, LeaseLost):
                raise
            except Exception as error:
                rule = judge(error, SeenIn.CREATE, self._policy.retryable_errors)
                if rule is None or rule.verdict is not Verdict.GIVE_UP:
                    slot.failed()
                raise
            slot.succeeded()
            return ended

    async def _restore_and_hand_over(
        self, run: Recoverable, fault: Fault, patience: Patience, *, ahead: bool
    ) -> Ended:
        waiting = ServiceTime(self._clock)
        restoration = run.restoration(waiting, ahead=ahead, patience=patience)
        restored = await restoration.restore()
        taken = False  # until the hand-over the new client is nobody's but ours to close
        try:
            if not run.awaits(fault):
                return Ended(names.ABANDONED)
            new = run.hold_ready(restored)
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
            await self._call(new.callback, "on_recovery", *new.arguments)
            recovery = Recovery(
                fault=fault,
                checkpoint=checkpoint,
                replayed_steps=replayed,
                attempt=fault.attempt + 1,
                handed_over_at=self._clock.monotonic(),
                service_s=waiting.total_s,
            )
            self._events.emit(
                names.EVENT_COMPLETED,
                run.name,
                "recovered: a client at a step unknown to us is handed over"
                if new.step is None
                else f"recovered: the loop runs again from step {new.step}, {replayed} steps are "
                "replayed",
                {**at, names.REPLAYED_STEPS: replayed},
            )
            run.hand_over(recovery)
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
