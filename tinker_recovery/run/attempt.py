"""Attempt: one try at the loop, and the scope that a fault ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio
from tinker import types

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Segment,
    schedule_of,
)
from tinker_recovery.checkpoints.metadata import encode_loop_state
from tinker_recovery.clock import Clock
from tinker_recovery.errors import NonFiniteLoss, StaleAttempt, UsageError, causes
from tinker_recovery.faults import RULES, DetectedBy, Fault, FaultRule, Kind, SeenIn, Verdict, judge
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.collaborators import Spawn
from tinker_recovery.run.mailbox import Mailbox
from tinker_recovery.run.saver import RunHistory, Saver
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.service import Connection, SaveRequest, SupervisedClient
from tinker_recovery.service.client import CUSTOM_LOSS
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.run.rollback_detector import RollbackDetector

logger = logging.getLogger(names.SCOPE)

DRAIN_WARNING_S = 30.0
"""A loop that has ended and still waits for requests after this long says so in the log."""

GRACE_S = 0.5
"""How long the body has to show what it makes of an error before the attempt acts on it."""


class Owner(Protocol):
    """The run, as its attempts see it."""

    name: str
    given_name: str | None
    lineage: str
    policy: RecoveryPolicy
    mailbox: Mailbox
    clock: Clock
    spawn: Spawn
    skipped: set[int]
    history: RunHistory
    interruption: StopSignals

    @property
    def rollbacks(self) -> RollbackDetector:
        """What notices that the service has lost weights."""
        ...

    @property
    def parent(self) -> str | None:
        """Path of the checkpoint the user started it from, if they did."""
        ...

    def fault_declared(self, fault: Fault) -> None:
        """An attempt reports a fault."""
        ...

    def saved_below(self, step: int) -> list[tuple[int, Mapping[str, float]]]:
        """The saves of the run's branch up to a step, with their metrics."""
        ...

    def note_report(self, attempt: Attempt, metrics: Mapping[str, float]) -> None:
        """What the loop reports."""
        ...

    def note_step_done(self, attempt: Attempt) -> None:
        """An optimizer step is complete."""
        ...

    def note_saved(self, attempt: Attempt, step: int, path: str, took_s: float | None) -> None:
        """A checkpoint is stored; ``took_s`` is what it took, where that was measured."""
        ...

    def note_save_failed(self, attempt: Attempt, step: int, error: BaseException) -> None:
        """A save did not succeed."""
        ...

    def note_canary(self, attempt: Attempt, step: int, output: types.ForwardBackwardOutput) -> None:
        """The canary was run on the weights of a checkpoint."""
        ...

    async def is_corrupted(self) -> bool:
        """Ask the service, now."""
        ...

    async def attempt_over(self, attempt: Attempt, error: BaseException | None) -> None:
        """The body was left for good."""
        ...

    async def interrupt(self, attempt: Attempt) -> None:
        """Close an attempt's client under its body."""
        ...


class Attempt:
    """One try at the loop: a client, the step it stands at, and the scope a fault ends.

    Enter it with ``async with attempt:`` around the loop's body. A recoverable fault inside is
    swallowed, and the next round of ``async for attempt in supervisor.attempts(...)`` gets a new
    attempt; everything else passes through unchanged. Leaving it normally waits for the requests
    still open, so a finished run is finished at the service too.

    Cancellation: a fault cancels the body, and only the body. Cancellation from outside passes
    through.
    """

    def __init__(
        self,
        run: Owner,
        number: int,
        connection: Connection,
        checkpoint: CheckpointRecord | None,
        *,
        start_step: int,
    ) -> None:
        self.number = number
        """Counts from 1."""
        self.id = secrets.token_hex(4)
        """Unique over all processes; part of every checkpoint's name."""
        self.checkpoint = checkpoint
        """What it was recovered from, or started from; None if it began afresh."""
        self.start_step = start_step
        """Optimizer steps already in the weights: where the loop has to begin."""
        self.connection = connection
        self.left = anyio.Event()
        """Set once the body has been left, or if it was never entered."""
        self.finished = False
        """Whether the body came to its end."""
        self.closed = False
        """Whether its client has been closed."""
        self.blocking = False
        """Whether the body runs in a thread, where it cannot be cancelled but by its client."""
        self._run = run
        self._scope = anyio.CancelScope()
        self._entered = False
        self._fault: Fault | None = None
        self.saver = Saver(
            attempt=self.id,
            schedule=schedule_of(run.policy.checkpoints),
            lineage=run.lineage,
            run_name=run.given_name,
            parent=self.segment.parent,
            start_step=start_step,
            epoch=checkpoint.epoch or 0 if checkpoint else 0,
            loop_state=checkpoint.loop_state if checkpoint else None,
            history=run.history,
            branch=run.saved_below(start_step),
            ttl_s=run.policy.checkpoints.ttl_s,
            monotonic=run.clock.monotonic,
        )
        """When its client saves."""
        self.client = SupervisedClient(
            connection.training,
            _Hooks(self, run),
            start_step=start_step,
            canary=run.policy.canary,
            guard_loss=run.policy.guard_loss,
            stopping=lambda: run.interruption.requested,
            monotonic=run.clock.monotonic,
        )
        """The client to train with; has TrainingClient's surface."""

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of run {self._run.name!r} from step {self.start_step}>"

    @property
    def run_id(self) -> str:
        """The Tinker run id it trains under."""
        return self.connection.run_id

    @property
    def segment(self) -> Segment:
        """Its place in the run's lineage."""
        parent = self.checkpoint.path if self.checkpoint else self._run.parent
        return Segment(self.run_id, self.id, self.start_step, parent)

    @property
    def faulty(self) -> bool:
        """Whether a fault was declared on it."""
        return self._fault is not None

    @property
    def fault(self) -> Fault | None:
        """The fault it ended by, if one was declared."""
        return self._fault

    @property
    def entered(self) -> bool:
        """Whether its body was entered."""
        return self._entered

    def report(self, **metrics: float) -> None:
        """Tell the newest metrics, by name; shown to people, and never slows the loop.

        With ``guard_loss``, a ``loss`` that is NaN or infinite is a fault.
        """
        self._run.note_report(self, metrics)
        self.saver.metrics = {**self.saver.metrics, **metrics}
        loss = metrics.get("loss")
        if loss is not None and self._run.policy.guard_loss and not math.isfinite(loss):
            # Reported once its own request is done, so no later step than this one.
            self.post(self._loss_bad, max(self.start_step, self.client.reported_step), loss)

    def _loss_bad(self, step: int, value: float) -> None:
        self.declare(
            RULES[Kind.LOSS_NOT_FINITE],
            DetectedBy.CALL,
            NonFiniteLoss(step, value),
            failed_step=step,
        )

    @property
    def loop_state(self) -> Any:
        """The loop's own state as JSON can hold it: a position, a seed.

        What is set here is stored with the next checkpoints, and is here again after a recovery
        from one. None at first.
        """
        return self.saver.loop_state

    @loop_state.setter
    def loop_state(self, state: object) -> None:
        encode_loop_state(state)  # refused here, where it is set, and not inside some later step
        self.saver.loop_state = state

    @property
    def epoch(self) -> int:
        """Epochs completed, over all attempts of the run."""
        return self.saver.epoch

    def end_epoch(self) -> None:
        """An epoch is complete; ``strategy="epoch"`` saves right behind its last step."""
        self.saver.epoch += 1
        self.client.save(self.saver.due)

    def skip(self, step: int) -> bool:
        """Whether the loop has to leave this step out, by ``on_repeated_fault="skip_step"``.

        Ask right where the step would be submitted: ``if attempt.skip(step): continue``. A step
        left out is counted, so that checkpoints still say where the loop stands.
        """
        if step not in self._run.skipped:
            return False
        if self.client.step != step:
            raise UsageError(
                f"skip({step}) was asked while {self.client.step} steps are submitted: ask it "
                "right before submitting that step"
            )
        self.client.skip_step()
        return True

    async def __aenter__(self) -> Self:
        if self._entered:
            raise UsageError(f"{self!r} was entered before: each attempt is for one `async with`")
        self._entered = True
        self._scope.__enter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        drained: BaseException | None = None
        # What a request failed with was posted before the body could see it, with the step it
        # belongs to.
        self._run.mailbox.deliver()
        if error is None:
            try:
                await self._drain()
                await self._run.rollbacks.settle(self)
            except BaseException as failure:  # noqa: BLE001 - judged and raised again below, once the scope is closed
                drained = failure
        seen = error or drained
        ours = bool(
            self._scope.__exit__(
                type(seen) if seen else None, seen, seen.__traceback__ if seen else None
            )
        )
        if seen is not None and not ours:
            await self.save_before_leaving()
        swallow = ours or seen is None or await self._is_incident(seen)
        fault = self._fault if self._run.policy.enabled else None
        gives_up = fault is not None and fault.verdict is Verdict.GIVE_UP
        goes_on = swallow and fault is not None and not gives_up
        self.finished = seen is None and fault is None
        self.left.set()
        if not goes_on:
            await self._run.attempt_over(self, seen)
        if fault is not None and gives_up and swallow:
            # The body was cancelled for it, or has ended without having looked.
            raise fault.as_error()
        if drained is not None and not swallow:
            raise drained
        return swallow

    async def save_before_leaving(self) -> None:
        """A signal has asked the process to stop: save the last step, within the policy's limit.

        Does nothing if none has, or if the attempt is in no state to be saved. Never raises.
        """
        limit_s = self._run.policy.checkpoints.save_on_stop_s
        if limit_s is None or not self._run.interruption.requested or self.closed:
            return
        with anyio.CancelScope(shield=True), anyio.move_on_after(limit_s) as waiting:
            try:
                # Once more after the first wait: a save in flight holds this one back.
                for _ in range(2):
                    if self._fault is not None or self.client.errors:
                        return
                    self.client.save(self.saver.last)
                    if self.client.open_requests:
                        logger.warning(
                            "run %s: stopping; step %d is saved first, for %g s at most. A second "
                            "Ctrl-C does not wait for it",
                            self._run.name,
                            self.client.step,
                            limit_s,
                        )
                    await self.client.drain()
                    self._run.mailbox.deliver()
            except Exception as error:  # noqa: BLE001 - whatever the service answers, the process was asked to stop
                logger.warning("run %s: its last step is not saved: %s", self._run.name, error)
        if waiting.cancelled_caught:
            logger.warning(
                "run %s: step %d was not saved within %g s",
                self._run.name,
                self.client.step,
                limit_s,
            )

    async def _is_incident(self, error: BaseException) -> bool:
        """Whether what left the body is a fault to recover from; declares it if it is news."""
        if not self._run.policy.enabled:
            return False
        if self._is_echo(error):
            return True
        if isinstance(error, asyncio.CancelledError) and _nobody_asked():
            rule: FaultRule | None = RULES[Kind.CANCELLED]
        else:
            known = any(error is failure for failure in self.client.errors)
            rule = judge(
                error, SeenIn.CALL if known else SeenIn.BODY, self._run.policy.retryable_errors
            )
        if rule is None:
            return False
        if rule.kind is Kind.USER_ERROR and await self._run.is_corrupted():
            rule = RULES[Kind.CORRUPTED]
        self.declare(rule, DetectedBy.CALL, error)
        return rule.verdict is not Verdict.GIVE_UP

    def _is_echo(self, error: BaseException) -> bool:
        """Whether a known incident left this behind in the body, and it is part of it.

        That is our own refusal of a retired client, and a cancellation that nobody outside asked
        for: in a task, or of a result that a thread was waiting for.
        """
        if self._fault is None:
            return False
        if isinstance(error, BaseExceptionGroup):
            # What a task group inside the body makes of it: each part has to be explained.
            return all(
                self._is_echo(each) or self._is_recoverable(each) for each in error.exceptions
            )
        if isinstance(error, asyncio.CancelledError):
            return _nobody_asked()
        echoes = (StaleAttempt, concurrent.futures.CancelledError)
        return any(isinstance(each, echoes) for each in causes(error))

    def _is_recoverable(self, error: BaseException) -> bool:
        rule = judge(error, SeenIn.BODY, self._run.policy.retryable_errors)
        return rule is not None and rule.verdict is not Verdict.GIVE_UP

    async def _drain(self) -> None:
        at_end = functools.partial(self.saver.due, end=True)
        # Once more after the first wait: a save still in flight holds back the one of the end.
        for _ in range(2):
            if self._fault is None:
                self.client.save(at_end)
            while self.client.open_requests:
                with anyio.move_on_after(DRAIN_WARNING_S):
                    await self.client.drain()
                    break
                logger.warning(
                    "run %s: the loop has ended, and %d requests are still open at the service",
                    self._run.name,
                    self.client.open_requests,
                )
        # A failure is posted before its request counts as ended, so none is missed here.
        self._run.mailbox.deliver()
        if self._fault is None and self._run.policy.enabled:
            unseen = self.client.unseen_errors
            if unseen:
                # Nobody awaited it, and the steps behind it went on without it.
                raise unseen[0]

    def declare(
        self,
        rule: FaultRule,
        detected_by: DetectedBy,
        error: BaseException | None = None,
        *,
        failed_step: int | None = None,
    ) -> None:
        """Something went wrong with this attempt; the first word counts, the rest is the echo."""
        if self._fault is not None or self.finished:
            return
        if failed_step is None:
            failed_step = self.client.oldest_open_step
        self._fault = Fault(
            run=self._run.name,
            attempt=self.number,
            run_id=self.run_id,
            rule=rule,
            detected_by=detected_by,
            step=self.client.step,
            error=error,
            failed_step=failed_step,
            silent_s=self.client.silent_s() or 0.0,
        )
        if self._run.policy.enabled:
            self.client.retire(f"the attempt ended by a fault ({rule.kind.value})")
            self._scope.cancel()
        self._run.fault_declared(self._fault)

    def suspect(
        self, rule: FaultRule, error: BaseException | None, failed_step: int | None
    ) -> None:
        """Declare it unless the body is left soon: it may be on its way out with this very error.

        A client with a gap in its requests would wait for ever, so the body is not left to it.
        """

        async def act() -> None:
            await self._run.clock.sleep(GRACE_S)
            if not self.left.is_set():
                self.declare(rule, DetectedBy.CALL, error, failed_step=failed_step)

        if self._run.policy.enabled and not self.left.is_set():
            self._run.spawn(act)

    async def interrupt(self) -> None:
        """Close its client under a body that runs in a thread, so that it notices."""
        await self._run.interrupt(self)

    def post(self, call: Callable[..., None], *args: object) -> None:
        """Have the event loop make this call; from any thread."""
        self._run.mailbox.post(functools.partial(call, *args))


def _nobody_asked() -> bool:
    """Whether the current task has no cancellation pending that came from outside."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() == 0


class _Hooks:
    """What the client of one attempt tells its run, brought to the event loop's thread."""

    def __init__(self, attempt: Attempt, run: Owner) -> None:
        self._attempt = attempt
        self._run = run

    def call_failed(self, operation: str, step: int | None, error: BaseException) -> None:
        place = SeenIn.BODY if operation == CUSTOM_LOSS else SeenIn.CALL
        rule = judge(error, place, self._run.policy.retryable_errors)
        if rule is None:
            return
        if rule.verdict is not Verdict.GIVE_UP:
            self._attempt.post(self._declare, rule, step, error)
        elif rule.breaks_client:
            self._attempt.post(self._attempt.suspect, rule, error, step)

    def _declare(self, rule: FaultRule, step: int | None, error: BaseException) -> None:
        self._attempt.declare(rule, DetectedBy.CALL, error, failed_step=step)

    def call_cancelled(self, operation: str, step: int | None) -> None:
        del operation
        self._attempt.post(self._attempt.suspect, RULES[Kind.CANCELLED], None, step)

    def loss_not_finite(self, step: int, value: float) -> None:
        self._attempt.post(self._attempt._loss_bad, step, value)  # noqa: SLF001 - the other half of Attempt

    def canary_answered(self, step: int, output: types.ForwardBackwardOutput) -> None:
        self._attempt.post(self._run.note_canary, self._attempt, step, output)

    def step_done(self) -> None:
        self._attempt.saver.step_done()
        self._run.note_step_done(self._attempt)

    def saved(self, step: int, path: str) -> None:
        took_s = self._attempt.saver.stored(step)
        self._attempt.post(self._run.note_saved, self._attempt, step, path, took_s)

    def save_failed(self, step: int, error: BaseException) -> None:
        if self._attempt.saver.failed(step):
            self._attempt.post(self._run.note_save_failed, self._attempt, step, error)

    def save_due(self, step: int) -> SaveRequest | None:
        return self._attempt.saver.due(step)

    def user_metadata(self, step: int, given: Mapping[str, str] | None) -> dict[str, str]:
        return {**(given or {}), **self._attempt.saver.metadata(step, "user")}
