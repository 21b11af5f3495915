"""AttemptScope: what a fault ends. Declares faults, drains, saves before a stop, closes its client.

The user sees :class:`~tinker_recovery.run.attempt.Attempt`; this is the half that the run, the
client's hooks and the worker thread of a blocking loop work with.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import math
import reprlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.checkpoints import CheckpointRecord, Segment
from tinker_recovery.checkpoints.metadata import number_of
from tinker_recovery.errors import NonFiniteLoss, StaleAttempt, UsageError, causes, drop_frames
from tinker_recovery.faults import (
    RULES,
    DetectedBy,
    Fault,
    Kind,
    Verdict,
    VerdictRule,
)
from tinker_recovery.forks import HomeProcess
from tinker_recovery.run.canary_loss import CanaryLoss
from tinker_recovery.run.client_hooks import AttemptHooks
from tinker_recovery.run.judging import judge_leaving
from tinker_recovery.run.leaving import leave_body
from tinker_recovery.run.options import UPDATES_PER_STEP
from tinker_recovery.run.recall import AttemptRecall
from tinker_recovery.run.reporting import note_metrics
from tinker_recovery.run.save_refusal import SaveRefusal
from tinker_recovery.run.saver import Saver
from tinker_recovery.run.settling import finish_open
from tinker_recovery.service import Connection, SupervisedClient
from tinker_recovery.service.base import CloseStatus
from tinker_recovery.service.sampler import SupervisedService
from tinker_recovery.service.sampling import Sampling
from tinker_recovery.service.waiting import end_all
from tinker_recovery.service.waits import Progress
from tinker_recovery.shielding import is_being_cancelled, to_the_end
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.text import counted, is_are

if TYPE_CHECKING:
    from tinker_recovery.run.supervised import SupervisedRun

logger = logging.getLogger(names.SCOPE)

END_S = 0.25
"""How long the requests of a closed client may take to end by themselves."""

_REFUSALS = frozenset(
    {Kind.USER_ERROR, Kind.INVALID_REQUEST, Kind.METADATA_REFUSED, Kind.SAVE_REFUSED}
)
"""What a service may also answer because it has marked the run: its status is asked for first."""

IDLE_S = 0.5
"""A loop that has submitted nothing for this long behind a step that is due has that step saved."""
GRACE_S = 0.5
"""How long the body has to leave with an error of its own before the attempt acts on it."""


class AttemptScope:
    """One attempt of a run."""

    def __init__(
        self,
        run: SupervisedRun,
        number: int,
        connection: Connection,
        checkpoint: CheckpointRecord | None,
    ) -> None:
        self.run = run
        self.home = HomeProcess()
        """The process that it is of."""
        self.number = number
        self.id = secrets.token_hex(4)
        """Unique over all processes; part of every checkpoint's name."""
        self.checkpoint = checkpoint
        self.start_step = run.start_step if checkpoint is None else checkpoint.step
        self.connection: Connection | None = connection
        """Its client, and what is closed with it; None once it is closed."""
        self.run_id = connection.run_id
        """The Tinker run id it trains under."""
        self.fault: Fault | None = None
        """The fault it ended by, if one was declared."""
        self.entered = False
        """Whether its body was entered."""
        self.ending = False
        """Whether the body has ended, and at most what is still open is waited for."""
        self.left = anyio.Event()
        """Set once the body has been left, or if it was never entered."""
        self.finished = False
        """Whether the body came to its end."""
        self.closed = False
        """Whether its client has been closed, or is being closed."""
        self.gone = anyio.Event()
        """Set once its client is closed."""
        self._idle_step: int | None = None
        self.looked_into_save: anyio.Event | None = None
        """Set once it is known why the newest save that failed has."""
        self.blocking = False
        """Whether the body runs in a thread, which only its client can end."""
        self.made_once: dict[str, object] = {}
        """What it was given of what its run has made once, by key."""
        self.recall = AttemptRecall(self)
        """What it is given back of what was made for its steps before."""
        trail = self.recall.trail
        self.saver = Saver(run, self.segment, checkpoint, lambda: self.sound_step, trail)
        """When its client saves."""
        self.hooks = AttemptHooks(self, self.saver, trail)
        self.progress = Progress(run.clock.monotonic, run.history.waits)
        """When its training requests made progress."""
        self.client = SupervisedClient(
            connection.training,
            self.hooks,
            start_step=self.start_step,
            updates_per_step=run.history.origin.get(UPDATES_PER_STEP, 1),
            canary=run.checkpoints.prompt,
            guard_loss=run.policy.guard_loss,
            stopping=lambda: run.signals.requested,
            progress=self.progress,
        )
        self.sampling = Sampling(
            self.hooks,
            meter=self.client.meter,
            renews=run.policy.enabled,
            monotonic=run.clock.monotonic,
            waits=run.history.sample_waits,
        )
        """Its sampling clients and their requests."""
        self.refusal = SaveRefusal(self)
        """Whether the service refuses its saves, or their metadata."""
        self.canary_loss = CanaryLoss(self)
        """Whether the service refuses its canaries."""
        self._scope = anyio.CancelScope()
        run.collaborators.reader.metadata.know_attempt(self.id, self.segment.parent)

    @property
    def segment(self) -> Segment:
        """Its place in the run's lineage."""
        parent = self.checkpoint.path if self.checkpoint else self.run.parent
        return Segment(self.run_id, self.id, self.start_step, parent)

    @property
    def sound_step(self) -> int:
        """The step up to which every request is known to have succeeded, and no outage is open."""
        client = self.client
        return int(min(client.step, client.first_doubtful_step, self.run.rollbacks.sound_to))

    @property
    def faulty(self) -> bool:
        """Whether a fault was declared on it."""
        return self.fault is not None

    @property
    def service(self) -> SupervisedService:
        """See :attr:`Attempt.service`."""
        connection = self.connection
        if connection is None:
            self.sampling.check_live(self.client)
            raise StaleAttempt(f"attempt.service: {self.client!r} is closed")
        if connection.service is None:
            raise UsageError(
                "attempt.service: the client was given by adopt=, so its ServiceClient is yours; "
                "use that one"
            )
        return SupervisedService(self.sampling, connection.service)

    # What the loop does

    def report(self, given: Mapping[str, object]) -> None:
        """Keep the loop's newest metrics; with ``guard_loss``, look at its loss.

        What is no number is left out, and named in the log once: it must not end a loop later.
        """
        self.home.check(self.client)
        numbers = {name: number_of(value) for name, value in given.items()}
        metrics = {name: number for name, number in numbers.items() if number is not None}
        for name in given.keys() - metrics.keys() - self.run.history.no_metrics:
            self.run.history.no_metrics.add(name)
            logger.warning(
                "run %s: report(%s=%s) is left out: a metric is a number, or holds exactly one",
                self.run.name,
                name,
                reprlib.repr(given[name]),
            )
        note_metrics(self, metrics)
        self.saver.report(metrics)
        loss = metrics.get("loss")
        if loss is not None and self.run.policy.guard_loss and not math.isfinite(loss):
            # Reported once its own request is done, so no later step than this one.
            step = max(self.start_step, self.client.reported_step)
            self.post(self.declare_bad_loss, step, loss)

    def end_epoch(self) -> None:
        """Count an epoch; it is saved with its last step if the schedule wants it."""
        self.home.check(self.client)
        self.saver.end_epoch()
        self.post(self.save_when_idle, self.client.step)

    def save_when_idle(self, step: int) -> None:
        """Have this step, which is due, saved if the loop goes idle behind it."""
        begun, self._idle_step = self._idle_step is not None, step
        if not begun and not self.faulty and not self.left.is_set():
            self.run.spawn(self._watch_idle)

    async def _watch_idle(self) -> None:
        idle_at = None
        while (step := self._idle_step) is not None and not self.left.is_set():
            await anyio.sleep(IDLE_S)
            if self.client.step != step or not self.saver.may_save_at(step):
                self._idle_step = None if self._idle_step == step else self._idle_step
            elif self.client.oldest_open_step is None:
                # Twice in a row: what was just answered may have the loop set something first.
                if idle_at == step:
                    self.client.save_while_idle()
                idle_at = step

    def skip(self, step: int) -> bool:
        """Whether to leave a step out; counts it if so."""
        if step not in self.run.skipped:
            return False
        if self.client.step != step:
            raise UsageError(
                f"skip({step}) was asked while {counted(self.client.step, 'step')} "
                f"{is_are(self.client.step)} submitted: ask it "
                "right before submitting that step"
            )
        self.client.skip_step()
        return True

    # Entering and leaving

    def enter(self, name: str) -> None:
        """The body begins.

        Raises:
            UsageError: It was entered before, or in another process.
        """
        self.home.check(self.client)
        if self.entered:
            raise UsageError(f"{name} was entered before: each attempt is for one `async with`")
        self.entered = True
        self._scope.__enter__()

    def share_body(self, others: Sequence[AttemptScope]) -> None:
        """Have one body for several attempts: what ends it for one ends it for all."""
        for other in others:
            if other._scope.cancel_called:  # noqa: SLF001 - of the same class
                self._scope.cancel()
            other._scope = self._scope  # noqa: SLF001 - of the same class

    async def leave(self, error: BaseException | None) -> bool:
        """The body ends; whether its error is swallowed, because the run is recovered from it."""
        return await leave_body([self], error)

    async def settle(self) -> BaseException | None:
        """Wait for what is still open; returns what that failed with, to be judged and raised."""
        try:
            await finish_open(self)
            await self.run.rollbacks.settle(self)
        except BaseException as failure:  # noqa: BLE001 - raised again by leave_body, once the scope is closed
            return failure
        # What was open as the Supervisor ended was cancelled.
        return StaleAttempt(self._outlived) if self.run.ended else None

    def close_body(self, seen: BaseException | None) -> bool:
        """The body has been left, with this error; whether a fault has cancelled it."""
        exc_info = (type(seen), seen, seen.__traceback__) if seen else (None, None, None)
        return bool(self._scope.__exit__(*exc_info))

    # Detecting

    async def belongs_to_incident(self, error: BaseException) -> bool:
        """Whether what left the body is a fault to recover from; declares it if it is new.

        Raises:
            StaleAttempt: A request was cancelled as the Supervisor ended: there is no next attempt.
        """
        from_inside = isinstance(error, asyncio.CancelledError) and not is_being_cancelled()
        if self.run.ended and from_inside:
            raise StaleAttempt(self._outlived) from error
        if not self.run.policy.enabled or self.run.ended:
            return False
        if self.fault is not None and self._follows_from_fault(error):
            return True
        rule = RULES[Kind.CANCELLED] if from_inside else judge_leaving(self, error)
        if rule is None:
            return False
        rule = await self._unless_corrupted(rule)
        self.declare_fault(rule, DetectedBy.CALL, error)
        return rule.verdict is not Verdict.GIVE_UP

    @property
    def _outlived(self) -> str:
        return (
            f"run {self.run.name!r} was stopped at step {self.client.step}: its Supervisor has "
            "ended while its loop was under way. Wait for the loop inside `async with Supervisor()`"
        )

    def _follows_from_fault(self, error: BaseException) -> bool:
        """Whether the fault already declared left this error behind in the body.

        That is our own refusal of a retired client, and a cancellation that did not come from
        outside: in a task, or of a result that a thread was waiting for.
        """
        if isinstance(error, BaseExceptionGroup):
            # What a task group inside the body makes of it: each part has to be explained.
            return all(
                self._follows_from_fault(each) or self._is_recoverable(each)
                for each in error.exceptions
            )
        if isinstance(error, asyncio.CancelledError):
            return not is_being_cancelled()
        followers = (StaleAttempt, concurrent.futures.CancelledError)
        return any(isinstance(each, followers) for each in causes(error))

    def _is_recoverable(self, error: BaseException) -> bool:
        rule = judge_leaving(self, error)
        return rule is not None and rule.verdict is not Verdict.GIVE_UP

    async def _unless_corrupted(self, rule: VerdictRule) -> VerdictRule:
        """The rule, unless the service refuses because it has marked the run as corrupted."""
        if rule.kind in _REFUSALS and await self.run.is_corrupted():
            return RULES[Kind.CORRUPTED]
        return rule

    def declare_fault(
        self,
        rule: VerdictRule,
        detected_by: DetectedBy,
        error: BaseException | None = None,
        *,
        failed_step: int | None = None,
        silent_s: float | None = None,
    ) -> None:
        """Something went wrong: end the body, and report it to the run.

        Idempotent: later errors of the same incident are ignored, and so is what fails of a run
        that is over, as its client is closed.
        """
        if self.fault is not None or self.finished or self.run.ended:
            return
        if failed_step is None:
            failed_step = self.client.oldest_open_step
        self.fault = Fault(
            run=self.run.name,
            attempt=self.number,
            run_id=self.run_id,
            rule=rule,
            detected_by=detected_by,
            step=self.client.step,
            error=error,
            failed_step=failed_step,
            silent_s=self._silent_s() if silent_s is None else silent_s,
        )
        if self.run.policy.enabled:
            self._retire(f"the attempt ended by a fault ({rule.kind.value})")
            self._scope.cancel()
        self.run.report_fault(self.fault)

    def _silent_s(self) -> float:
        """For how long nothing has made progress, of its training or of the samples it awaits."""
        silent_s = self.client.silent_s()
        if silent_s is None:
            silent_s = min(self.progress.silent_s, self.sampling.silent_s() or 0.0)
        return silent_s

    def _retire(self, reason: str) -> None:
        self.client.retire(reason)
        self.sampling.retire(reason)

    def look_into_failed_save(self, error: BaseException) -> None:
        """A save's result failed: a fault only if the service is the reason.

        It has marked the run as corrupted, or was restarted.
        """

        async def look() -> None:
            try:
                if await self.run.is_corrupted():
                    self.declare_fault(RULES[Kind.CORRUPTED], DetectedBy.CALL, error)
                elif self.run.current is self:
                    self.run.rollbacks.note_save_failed(self)
            finally:
                looked.set()

        if self.run.policy.enabled and not self.left.is_set():
            looked = self.looked_into_save = anyio.Event()
            self.run.spawn(look)

    def declare_bad_loss(self, step: int, value: float) -> None:
        """The loss of a step is NaN or infinite."""
        error = NonFiniteLoss(step, value)
        self.declare_fault(RULES[Kind.LOSS_NOT_FINITE], DetectedBy.CALL, error, failed_step=step)

    def suspect_fault(
        self, rule: VerdictRule, error: BaseException | None, failed_step: int | None
    ) -> None:
        """Declare a fault unless the body is left soon: it may be leaving with this very error.

        A client with a gap in its requests would wait for ever, so the body is not left to it.
        """

        async def act() -> None:
            await self.run.clock.sleep(GRACE_S)
            if self.left.is_set():
                return
            found = await self._unless_corrupted(rule)
            if not self.left.is_set():
                self.declare_fault(found, DetectedBy.CALL, error, failed_step=failed_step)

        if self.run.policy.enabled and not self.left.is_set():
            self.run.spawn(act)

    def post(self, call: Callable[..., None], *args: object) -> None:
        """Have the event loop make this call; from any thread."""
        self.run.mailbox.post(functools.partial(call, *args))

    # Closing

    async def interrupt(self) -> None:
        """Close the client under a body that runs in a thread, so that its calls fail."""
        await self.close("errored" if self.faulty else "interrupted", "interrupted")

    async def close(self, status: CloseStatus, detail: str) -> None:
        """Finish the client's session; does nothing the second time, and never raises."""
        connection = self.connection
        if self.closed or connection is None:
            return
        self.closed = True
        self._retire("the attempt is over")
        # It has a deadline, and a session left open holds its place until it times out.
        await to_the_end(self._close(connection, status, detail))

    async def _close(self, connection: Connection, status: CloseStatus, detail: str) -> None:
        await self.run.collaborators.backend.close(
            connection, status, detail, deadline_s=self.run.policy.close_timeout_s
        )
        self.gone.set()
        # What still waits for its turn is ended by this alone.
        left = [*self.client.left_open(), *self.sampling.left_open()]
        await end_all(left, within_s=END_S)
        # A closed client of the SDK is half a megabyte, and every attempt of a run is kept.
        self.client.release()
        self.made_once.clear()
        self.connection = None

    def forget_frames(self) -> None:
        """Drop where its errors were raised: frames hold the SDK's client, and the loop's data."""
        faults = [] if self.fault is None or self.fault.error is None else [self.fault.error]
        drop_frames([*faults, *self.client.errors.every, *self.sampling.failed])
