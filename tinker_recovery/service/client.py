"""SupervisedClient: a TrainingClient that counts every optimizer step when it is submitted."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, cast

import tinker
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.checkpoints.canary import ASKED
from tinker_recovery.checkpoints.prompt import CanaryPrompt, tokens_of
from tinker_recovery.costs import Meter, tokens_in
from tinker_recovery.forks import HomeProcess
from tinker_recovery.service.base import SaveRequest
from tinker_recovery.service.future import SupervisedFuture, end_of, is_settled, succeeded
from tinker_recovery.service.iterating import Iterating
from tinker_recovery.service.iteration import Iterations
from tinker_recovery.service.queue_state import watch_queue_state
from tinker_recovery.service.request_errors import RequestErrors
from tinker_recovery.service.surface import ClosedClient
from tinker_recovery.service.waiting import ended as until_ended
from tinker_recovery.service.waits import Progress

if TYPE_CHECKING:
    from tinker_recovery.run.client_hooks import AttemptHooks

_T = TypeVar("_T")

CUSTOM_LOSS = "forward_backward_custom"
"""The one request that runs the user's own code."""

IDLE_S = 0.1
"""No service restarts in less."""

CANARY = "canary"
"""A forward pass of ours."""

SAVE = "save_state"
"""A request whose result may fail without anything being wrong with the training."""


class SupervisedClient(Iterating):
    """A TrainingClient that counts.

    It has every method of ``tinker.TrainingClient``, and ``isinstance`` takes it for one; those not
    defined here are passed on to it.
    The last submitted ``optim_step`` of each iteration increments :attr:`step`; a save that is due
    is queued between that and the next training request, under one lock, so the step stored with a
    checkpoint is exactly the number of iterations in it. Requests may be submitted from several
    threads.

    Cancelling the await of a future cancels the request, as in the SDK; the SDK's client is
    unusable after that, which is a fault of its own. Let the attempt's body end instead.
    """

    def __init__(
        self,
        training: tinker.TrainingClient,
        hooks: AttemptHooks,
        *,
        start_step: int,
        updates_per_step: int = 1,
        canary: CanaryPrompt | None = None,
        guard_loss: bool = False,
        stopping: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> None:
        self._training = training
        self._hooks = hooks
        self._iterations = Iterations(start_step, updates_per_step)
        self._canary = CanaryPrompt(None) if canary is None else canary
        self.meter = Meter()
        """The tokens its attempt has cost."""
        self.meter.add("checked", self._canary.take_spent())
        self._guard_loss = guard_loss
        self._stopping = stopping
        self._home = HomeProcess()
        self._turn = threading.Lock()
        self._open: dict[Future[Any], int | None] = {}
        self._retired: str | None = None
        self._progress = Progress() if progress is None else progress
        self._trained_at = self._progress.begin()
        self._forwards_open: set[int] = set()
        self._own_saves: dict[Future[Any], str] = {}  # the path of each
        self._ours: dict[Future[Any] | None, tuple[str, int]] = {}
        self._lost_saves: set[str] = set()
        self._passed_on = set()
        self._last_update: Future[Any] = Future()
        self._canary_is_next = False
        self._canary_run: tuple[Future[Any], int] | None = None
        self.unanswered: dict[int, Future[Any] | None] = {}
        """The newest canary of each step saved at, or within the next, if it is not answered."""
        self.errors = RequestErrors()
        """What its requests have failed with."""
        self.failed, self.failed_saves = self.errors.failed, self.errors.failed_saves
        watch_queue_state(training, self._progress.begin)
        self.first_call_at: float | None = None
        """Monotonic seconds of the first submission; None before it."""

    def __repr__(self) -> str:
        state = "retired" if self._retired else "live"
        return f"<SupervisedClient {self._training.model_id} at step {self.step}, {state}>"

    @property
    def training(self) -> tinker.TrainingClient:
        """The SDK's client. Requests submitted through it directly are not counted.

        Raises:
            StaleAttempt: The attempt is over, and the client closed.
        """
        if isinstance(self._training, ClosedClient):
            self._check_live()
        return self._training

    @property
    def step(self) -> int:
        """Iterations in the weights once all submitted requests have been executed."""
        return self._iterations.step

    @property
    def begun(self) -> int:
        """The step, and one more where the weights lie inside an iteration."""
        with self._lock:
            return self._iterations.begun

    @property
    def weights(self) -> int:
        """Optimizer steps submitted here, which tells the weights of one from those of another."""
        return self._iterations.weights

    @property
    def open_requests(self) -> int:
        """How many submitted requests have not finished."""
        return len(self._open)

    @property
    def oldest_open_step(self) -> int | None:
        """The step of the loop that the oldest unfinished request belongs to."""
        return next((step for step in list(self._open.values()) if step is not None), None)

    @property
    def waits_for_ours(self) -> tuple[str, int] | None:
        """The request of ours that all open ones are behind, and its step; None if not ours."""
        return self._ours.get(next(iter(list(self._open)), None))

    @property
    def first_doubtful_step(self) -> float:
        """The first step of the loop with a request not known to have succeeded; infinite if none.

        Requests behind a failed one are executed all the same, so checkpoints above this step do
        not contain what their step number says.
        """
        # In this order: a failed request is among the doubts before it ceases to be open.
        oldest = self.oldest_open_step
        failed = self.errors.first_step
        return failed if oldest is None else min(failed, oldest)

    @property
    def unsettled_saves(self) -> set[str]:
        """Paths that a save of the user's may still write to: it is open, or its outcome unknown.

        Those of the schedule write to no path twice.
        """
        return self._lost_saves | {
            path for future, path in list(self._own_saves.items()) if not is_settled(future)
        }

    @property
    def reported_step(self) -> int:
        """The step that metrics reported at this moment belong to.

        Metrics come with the forward pass: if the oldest open request is a step's update, they are
        that step's, otherwise those of the step before the oldest open one.
        """
        oldest = self.oldest_open_step
        if oldest is None:
            return self.step - 1
        return oldest - 1 if oldest in self._forwards_open else oldest

    def silent_s(self) -> float | None:
        """Seconds without progress while requests are open; None when idle.

        Progress is a request that finishes, or a capacity pause, which the service keeps reporting.
        """
        if not self._open:
            return None
        return self._progress.silent_s

    @property
    def slow_s(self) -> float | None:
        """Seconds that slow requests take; None during the first step, which may take longer."""
        return self._progress.slow_s

    def optim_step(
        self,
        optim_params: types.OptimParams | None = None,
        *,
        adam_params: types.AdamParams | None = None,
    ) -> APIFuture[types.OptimStepResponse]:
        """Submit an optimizer step, and count it; a save behind it is queued if due."""
        with self._lock:
            self._before_submitting()
            future = self._training.optim_step(optim_params, adam_params=adam_params)
            self._hooks.training_submitted("optim_step", optim_params, adam_params)
            step, whole = self._iterations.step, self._iterations.updated()
            watched = self._watch("optim_step", future, step, self._step_ended if whole else None)
            self._last_update = future.future()
            if whole:
                self._hooks.step_submitted(*self._iterations.ended())
            else:
                self._hooks.update_submitted()
        return watched

    def _queue_if_due(self) -> None:
        # Right before the next training request: by now the loop has set what belongs to the step.
        due = self._hooks.save_due(self._iterations.step)
        if due is not None:
            self._queue(due)

    def save(self, request_at: Callable[[int], SaveRequest | None]) -> None:
        """Queue a save behind everything submitted so far, if ``request_at`` returns one.

        ``request_at`` is called with the step, under the client's lock. Inside an iteration nothing
        is saved.
        """
        with self._lock:
            self._check_live()
            if self._iterations.inside:
                self._hooks.left_inside(self._iterations.where)
                return
            request = request_at(self.step)
            if request is not None:
                self._queue(request)

    def _queue(self, request: SaveRequest) -> None:
        saving = self._training.save_state(
            request.name, ttl_seconds=request.ttl_s, user_metadata=request.metadata
        )
        self.meter.mark(self.step)
        self._ours[saving.future()] = SAVE, self.step
        self._watch(SAVE, saving, None, functools.partial(self._save_ended, self.step))
        # Directly behind the save, so on exactly these weights.
        self._submit_canary(record=True)

    def record_canary(self) -> None:
        """Run the canary on the weights the run begins with, and report its results to the hooks.

        More than once: by how much the answers differ is the service's noise.
        """
        with self._lock:
            self._check_live()
            self._ask_at_start()

    def _ask_at_start(self) -> None:
        for _ in range(ASKED):
            self._submit_canary(record=True)

    def run_canary(self) -> tuple[Future[Any], int] | None:
        """Run the canary on the current weights; returns its result and their step.

        Inside an iteration, that is the one it ends with. None without a canary.
        If :meth:`run_canary_next` has run it since, returns that run.
        """
        with self._lock:
            self._check_live()
            earlier, self._canary_run, self._canary_is_next = self._canary_run, None, False
            return earlier or self._submit_canary()

    def run_canary_next(self) -> int:
        """Run the canary before the next request; returns how many requests of the loop are open.

        After an outage, older weights can be recognised only until a step is applied to them.
        """
        with self._lock:
            self._canary_is_next, self._canary_run = self._canary.batch is not None, None
            return sum(step is not None for step in self._open.values())

    def _submit_canary(self, *, record: bool = False) -> tuple[Future[Any], int] | None:
        batch = self._canary.batch  # read once: the SDK's thread may drop it meanwhile
        if batch is None or (record and self._iterations.inside):
            self.unanswered |= {self.step: None} if record else {}
            return None  # inside an iteration, there is no step that these weights are of
        running = self._training.forward(batch, "cross_entropy")
        self.meter.add("checked", tokens_in(batch))
        step = self._iterations.begun
        # A run that is to examine the weights must not define what they should answer.
        ended = functools.partial(self._canary_ended, step) if record else None
        self.unanswered |= {step: running.future()} if record else {}
        self._ours[running.future()] = CANARY, step
        self._watch(CANARY, running, None, ended)
        return running.future(), step

    def _before_submitting(self, data: Sequence[types.Datum] = ()) -> None:
        # Under the lock, so in the right process; the first time is noted by the check.
        if self._retired is not None or self._held or self.first_call_at is None:
            self._check_trains()
        if data and self._canary.pending:
            if self._canary.make_of(tokens_of(data)):
                # Right before the loop's first step, so of the weights that it begins with.
                self._ask_at_start()
            else:
                self._canary.drop("the loop's first batch has images, or less than two tokens")
                self._hooks.no_canary()
        # With nothing of the loop under way, no request of its would fail by a restart.
        idle = self._progress.monotonic() - self._trained_at >= IDLE_S
        if idle and self.oldest_open_step is None and self._hooks.was_cut():
            self._canary_is_next = self._canary.batch is not None
        self._queue_if_due()
        if self._canary_is_next:
            self._canary_is_next = False
            self._canary_run = self._submit_canary()

    def forward_backward(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Submit a forward and backward pass."""
        data = list(data)  # it is read more than once, and may be an iterator
        submit = self._training.forward_backward
        return self._pass(
            "forward_backward", data, functools.partial(submit, data, loss_fn, loss_fn_config)
        )

    def forward_backward_custom(
        self, data: list[types.Datum], loss_fn: Any, **options: Any
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Submit a pass with a loss of the user's own; what that raises is not a fault."""
        data = list(data)
        submit = self._training.forward_backward_custom
        watched = self._pass(CUSTOM_LOSS, data, functools.partial(submit, data, loss_fn, **options))
        if getattr(loss_fn, "loss_id", None) is None:
            self.meter.add("trained", tokens_in(data))  # the SDK makes a second pass
        return watched

    def _pass(
        self,
        operation: str,
        data: Sequence[types.Datum],
        submit: functools.partial[APIFuture[types.ForwardBackwardOutput]],
    ) -> APIFuture[types.ForwardBackwardOutput]:
        with self._lock:
            self._before_submitting(data)
            self._hooks.training_submitted(operation, *submit.args, submit.keywords)
            self._iterations.passed()
            step = self._iterations.step
            ended = functools.partial(self._check_loss, step) if self._guard_loss else None
            watched = self._watch(operation, submit(), step, ended)
        self.meter.add("trained", tokens_in(data))
        return watched

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        """Save a checkpoint for the user; the exact step is stored beside their metadata.

        Inside an iteration there is none, and such a checkpoint is never recovered from.
        """
        with self._lock:
            self._check_live()
            step = None if self._iterations.inside else self.step
            metadata = self._hooks.user_metadata(step, user_metadata)
            path = f"tinker://{self._training.model_id}/weights/{name}"
            self._hooks.saving(path)
            future = self._training.save_state(name, ttl_seconds, overwrite, metadata)
            if step is not None:
                self.meter.mark(step)
            open_saves = self._own_saves.items()
            self._own_saves = {each: at for each, at in open_saves if not is_settled(each)}
            self._own_saves[future.future()] = path
            watched = self._watch(SAVE, future, None, functools.partial(self._save_ended, step))
            # A service that loses weights goes back to its last checkpoint, whoever saved it.
            self._submit_canary(record=True)
        return watched

    def _watch(
        self,
        operation: str,
        future: APIFuture[_T],
        step: int | None,
        ended: Callable[[Future[Any]], None] | None = None,
    ) -> APIFuture[_T]:
        plain: Future[Any] = future.future()
        if not self._open:
            self._progress.begin()
        self._open[plain] = step
        if step is not None and operation != "optim_step":
            self._forwards_open.add(step)
        plain.add_done_callback(functools.partial(self._request_ended, operation, step, ended))
        return SupervisedFuture(plain, self._is_over, self.errors.has_seen, self._home)

    def _is_over(self) -> bool:
        # A request cancelled while stopping would leave a gap that blocks the last save.
        return self._retired is not None or self._stopping()

    def _request_ended(
        self,
        operation: str,
        step: int | None,
        ended: Callable[[Future[Any]], None] | None,
        future: Future[Any],
    ) -> None:
        # In the SDK's thread, where nothing may raise. Removed from the open requests last, so that
        # their failures are reported by the time drain() returns.
        cancelled, error = end_of(future)
        sound = not cancelled and error is None
        now_s = self._progress.made(sound=sound and self._retired is None)
        if step is not None:
            self._trained_at = now_s
            if operation != "optim_step":
                self._forwards_open.discard(step)
            if not sound:
                self.errors.doubt(step, error)
        if ended is not None:
            ended(future)
        if cancelled:
            if self._retired is None:
                self._hooks.call_cancelled(operation, step)
        elif error is not None:
            if operation == SAVE and isinstance(error, tinker.RequestFailedError):
                self.failed_saves.append(error)
            elif operation != CUSTOM_LOSS:
                self.errors.note(operation, error)
            self._hooks.call_failed(operation, step, error)
        self._ours.pop(future, None)
        self._open.pop(future, None)

    def _check_loss(self, step: int, future: Future[Any]) -> None:
        if succeeded(future):
            for name, value in (future.result().metrics or {}).items():
                if name.startswith("loss") and not math.isfinite(value):
                    self._hooks.loss_not_finite(step, value)

    def _canary_ended(self, step: int, future: Future[Any]) -> None:
        if succeeded(future):
            self._hooks.canary_answered(step, future.result())

    def _step_ended(self, future: Future[Any]) -> None:
        if succeeded(future):
            self._progress.step_done()
            self._hooks.step_done()

    def _save_ended(self, step: int | None, future: Future[Any]) -> None:
        scheduled = future in self._ours
        if succeeded(future):
            self._hooks.saved(step, future.result().path)
        elif not future.cancelled() and (error := future.exception()) is not None:
            self._hooks.save_failed(step, error, scheduled=scheduled)

    def save_while_idle(self) -> None:
        """Queue the save of the newest step if it is due, and complete by now; else do nothing."""
        with self._lock:
            due = None if self._retired else self._hooks.save_while_idle(self.step)
            if due is not None:
                self._queue(due)

    async def drain(self) -> None:
        """Wait until every submitted request has finished, and a save that is due with them.

        Raises the first failure, except of a save that the service could not carry out. Cancelling
        this wait does not cancel the requests.
        """
        self.save_while_idle()
        while still_open := list(self._open):
            for future in still_open:
                await until_ended(future)
                if not future.cancelled():
                    error = future.exception()
                    if error is not None and error not in list(self.failed_saves):
                        raise error

    def retire(self, reason: str) -> None:
        """Refuse every further submission, with ``reason`` in the error."""
        with self._lock:
            self._retired = self._retired or reason

    def left_open(self) -> Sequence[Future[Any]]:
        """Every open request: each holds a task on the SDK's loop, even after a close."""
        return list(self._open)

    def release(self) -> None:
        """Let go of the SDK's client, which is closed; what is read of the attempt later stays."""
        with self._turn:
            self._lost_saves = self.unsettled_saves
            self._own_saves = {}
            self._training = cast("tinker.TrainingClient", ClosedClient(self._training))
            self._last_update, self._canary_run = Future(), None
            for name in self._passed_on:
                self.__dict__.pop(name, None)
