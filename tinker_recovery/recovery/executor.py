"""The Executor: takes a fault off the queue and brings its run back. It never detects.

A recovery that fails is tried again after a backoff, until the run's budget is spent. A service
that asks for patience is waited for instead, and one that refuses for good ends the run. As many
recoveries at once as the policy allows; many runs that fail alike are one incident. A run that was
stopped in an orderly way goes on by the same steps, and is no incident unless that goes wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import anyio
from opentelemetry.trace import Span

from tinker_recovery.detection.outage import Outage
from tinker_recovery.errors import (
    CheckpointError,
    LeaseLost,
    RecoveryRefused,
)
from tinker_recovery.faults import Fault, Kind, SeenIn, Verdict, VerdictRule, judge
from tinker_recovery.policy import Callback
from tinker_recovery.recovery import words
from tinker_recovery.recovery.admission import MassReporter, Slot, Slots
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.exhausted import exhausted
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.recoverable import Recoverable, Recovery
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.recovery.waits import Waits
from tinker_recovery.service import Patience
from tinker_recovery.service.refusals import in_words
from tinker_recovery.shielding import is_being_cancelled
from tinker_recovery.supervision import Child
from tinker_recovery.telemetry import metrics, names, past_span, phase, refuse, trying
from tinker_recovery.telemetry.text import seconds


class Ended(NamedTuple):
    """How dealing with one fault ended.

    Attributes:
        outcome: ``names.RECOVERED`` and so on.
        error: What the run was given up with, or was left alone with.
    """

    outcome: str
    error: BaseException | None = None


class Executor:
    """Recovers runs, each in a task of its own.

    Args:
        collaborators: What it works with.
        queue: Where faults come from; one is acknowledged once its run is recovered or given up.
        find: The run of a given name, or None if it has ended meanwhile.
        watched: How many runs there are.
        outage: Where it is noted whether the service answers; by default one of its own.
    """

    def __init__(
        self,
        collaborators: Collaborators,
        *,
        queue: FaultQueue,
        find: Callable[[str], Recoverable | None],
        watched: Callable[[], int],
        outage: Outage | None = None,
    ) -> None:
        self._queue = queue
        self._find = find
        self._policy = collaborators.policy
        self._events = collaborators.events
        self._endpoint = collaborators.reader.http.endpoint
        self._clock = collaborators.clock
        self._greeting = collaborators.greeting
        self._watched = watched
        self._outage = outage or Outage(
            self._events, self._clock.monotonic, self._policy.max_wait_s
        )

    def _reset(self) -> None:
        self._going_on: dict[Fault, Span] = {}  # what is no incident so far
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
            # It may have gone unseen since something last made progress.
            began_ns = fault.detected_ns - int(fault.silent_s * 1e9)
            telemetry = run.telemetry
            root = telemetry.going_on if fault.orderly else telemetry.recovery
            attributes = words.attributes_of(fault)
            with root(attributes, start_ns=began_ns) as incident:
                self._mass.began(fault)
                if fault.orderly:
                    self._going_on[fault] = incident
                else:
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
                    self._detected(run, fault)
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
                    if self._going_on.pop(fault, None) is None:
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

    def _detected_after_all(self, run: Recoverable, fault: Fault) -> None:
        """A run that was to go on has become an incident."""
        incident = self._going_on.pop(fault, None)
        if incident is not None:
            incident.update_name(names.SPAN_RECOVERY)
            self._detected(run, fault)

    def _detected(self, run: Recoverable, fault: Fault) -> None:
        self._events.emit(
            names.EVENT_DETECTED,
            run.name,
            words.detected(fault),
            {**words.attributes_of(fault), names.SILENT_S: fault.silent_s},
        )

    async def _recover(self, run: Recoverable, fault: Fault) -> Ended:
        await self._look_for_progress(run, fault)
        self._note_error(run, fault)
        patience = fault.verdict is Verdict.WAIT
        # The first attempt of an incident starts at once; a wait begins with a backoff.
        tries = 1 if patience else 0
        waits = Waits(fault, self._policy, self._events, self._clock, self._outage)
        while run.awaits(fault):
            waited_s = waits.lasted_s
            number = 0 if patience else run.budget.spend()
            if waited_s > self._policy.max_wait_s if patience else not number:
                break
            tries = max(tries + 1, number)
            slot = self._slots.slot(
                left=run.budget.left, detected_at=fault.detected_at, tries=tries
            )
            try:
                counted = (run.name, number) if number else None
                await self._back_off(tries, waits.grace_left_s(), counted)
                return await self._try(
                    run, fault, slot, number, self._patience(run, tries, waits, waited_s)
                )
            except anyio.get_cancelled_exc_class():
                if number:
                    # The Executor ends, or has crashed; the next one has the attempt in full.
                    run.budget.refund()
                raise
            except (CheckpointError, LeaseLost) as error:
                return await self._hopeless(run, fault, tries, error)
            except Exception as error:  # noqa: BLE001 - whatever a service answers costs one attempt, never the run
                rule = judge(error, SeenIn.CREATE, self._policy.retryable_errors)
                refused = waits.for_credential(rule)
                patience = refused or (rule is not None and rule.verdict is Verdict.WAIT)
                self._failed(run, tries, error, repeated=waits.failed(error, waits=patience))
                if rule is not None and rule.verdict is Verdict.GIVE_UP and not refused:
                    return await self._refused(run, fault, rule)
                if slot.backend_blamed and number:
                    # Time is what a backend's failure costs, and no attempt of the run's.
                    run.budget.refund()
                patience |= slot.backend_blamed
                waits.remind(rule, waits=patience)
        if not run.awaits(fault):
            return Ended(names.ABANDONED)  # the user's own code ended the run meanwhile
        return await self._exhausted(run, fault, patience=patience)

    async def _hopeless(
        self, run: Recoverable, fault: Fault, tries: int, error: CheckpointError | LeaseLost
    ) -> Ended:
        if not run.awaits(fault):  # it was stopped meanwhile, and has given its claim free
            return Ended(names.ABANDONED)
        self._detected_after_all(run, fault)
        self._failed(run, tries, error)
        await self._give_up(run, fault, error)
        lost = isinstance(error, LeaseLost)
        return Ended(names.REFUSED if lost else names.NO_CHECKPOINT, error)

    def _note_error(self, run: Recoverable, fault: Fault) -> None:
        if not fault.orderly:
            run.budget.note_error(fault.as_error())

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
        self._detected_after_all(run, fault)
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
        self._detected_after_all(run, fault)
        error = exhausted(run, fault, self._policy, self._endpoint, patience=patience)
        self._events.emit(names.EVENT_EXHAUSTED, run.name, str(error), {})
        await self._give_up(run, fault, error)
        return Ended(names.EXHAUSTED, error)

    def _patience(self, run: Recoverable, tries: int, waits: Waits, waited_s: float) -> Patience:
        def report(message: str) -> None:
            self._events.emit(names.EVENT_WAITING, run.name, message, {names.TRY: tries})

        silence_s = self._policy.create_deadline_s(waits.missed)
        return Patience(silence_s, self._policy.max_wait_s - waited_s, report)

    def _failed(
        self, run: Recoverable, attempt: int, error: Exception, *, repeated: bool = False
    ) -> None:
        run.budget.note_error(error)
        self._events.emit(
            names.EVENT_FAILED,
            run.name,
            f"recovery attempt {attempt} failed: {in_words(error)}",
            {names.TRY: attempt, names.ERROR_TYPE: type(error).__qualname__},
            repeated=repeated,
        )

    async def _give_up(self, run: Recoverable, fault: Fault, error: BaseException) -> None:
        await self._call(self._policy.on_failure, "on_failure", fault.run_id, error)
        run.give_up(error)

    async def _back_off(
        self,
        attempt: int,
        most_s: float = math.inf,
        counted: tuple[str, int] | None = None,
    ) -> None:
        """Wait before a try; said where attempts are counted, of which run and with the next."""
        delay_s = min(self._policy.backoff_before(attempt, self._clock.random()), most_s)
        if delay_s > 0:
            if counted is not None:
                run, number = counted
                of = self._policy.max_attempts
                message = f"recovery attempt {number} of {of} in {seconds(delay_s)}"
                self._events.emit(names.EVENT_WAITING, run, message, {names.TRY: attempt})
            with phase(names.SPAN_BACKOFF, {names.BACKOFF_S: delay_s, names.TRY: attempt}):
                await self._clock.sleep(delay_s)

    async def _try(
        self, run: Recoverable, fault: Fault, slot: Slot, number: int, patience: Patience
    ) -> Ended:
        """One try, once there is a slot for it; its outcome may be the backend's doing."""
        tries = slot.ticket.tries
        waited = tries > 2  # noqa: PLR2004 - the first wait is said
        async with slot:
            if not run.awaits(fault):
                return Ended(names.ABANDONED)
            if fault not in self._going_on:
                self._events.emit(
                    names.EVENT_STARTED,
                    run.name,
                    f"recovery attempt {number} of {self._policy.max_attempts}"
                    if number
                    else "trying again after a wait",
                    {names.TRY: tries},
                    repeated=not number and waited,
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
        self._outage.over(run.name)
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
            recovery = Recovery(
                fault=fault,
                checkpoint=checkpoint,
                replayed_steps=replayed,
                attempt=fault.attempt + 1,
                handed_over_at=self._clock.monotonic(),
                service_s=waiting.total_s,
            )
            if recovery.continued:
                run.budget.refund()
                event, message = names.EVENT_CONTINUED, f"goes on from step {new.step}"
            else:
                self._detected_after_all(run, fault)
                await self._skip_what_faults_again(run, fault)
                await self._call(new.callback, "on_recovery", *new.arguments)
                if not new.is_wanted():
                    return Ended(names.ABANDONED)
                event, message = names.EVENT_COMPLETED, words.recovered(new.step, replayed)
                at = {**at, names.REPLAYED_STEPS: replayed}
            self._events.emit(event, run.name, message, at)
            if recovery.continued:
                self._greeting.goes_on(run.name, message)
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
            if is_being_cancelled():
                raise
            # The callback waited for something that was cancelled, an old client's result perhaps.
            self._events.callback_failed(name, error)
        except Exception as error:  # noqa: BLE001 - the user's callback must never break a recovery
            self._events.callback_failed(name, error)
