"""Attempt: one try at the loop, as the user's code sees it. How it works is in ``scope``."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.errors import UsageError
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.service import SupervisedClient
from tinker_recovery.service.sampler import SupervisedService

_F = TypeVar("_F")


class Iteration:
    """See :meth:`Attempt.iteration`; to be entered once."""

    __slots__ = ("_client",)

    def __init__(self, client: SupervisedClient) -> None:
        self._client = client

    def __enter__(self) -> Self:
        self._client.begin_iteration()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._client.end_iteration()
        else:
            self._client.leave_iteration()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, error, traceback)


class Attempt:
    """One try at the loop: a client, the step it starts from, and the scope that a fault ends.

    Enter it with ``async with attempt:`` around the loop's body. A recoverable fault inside is
    swallowed, and the next round of ``async for attempt in supervisor.attempts(...)`` gets a new
    attempt; everything else passes through unchanged. Leaving it normally waits for the requests
    still open, so a finished run is finished at the service too.

    Cancellation: a fault cancels the body, and only the body. Cancellation from outside passes
    through.
    """

    __slots__ = ("_scope",)

    def __init__(self, scope: AttemptScope) -> None:
        self._scope = scope

    def __repr__(self) -> str:
        run = self._scope.run.name
        return f"<Attempt {self.number} of run {run!r} from step {self.start_step}>"

    @property
    def number(self) -> int:
        """Counts the run's attempts from 1, over all processes."""
        return self._scope.number

    @property
    def client(self) -> SupervisedClient:
        """The client to train with; has the surface of ``tinker.TrainingClient``."""
        return self._scope.client

    @property
    def service(self) -> SupervisedService:
        """The ServiceClient behind :attr:`client`; its sampling clients belong to the attempt too.

        Raises:
            UsageError: The client was given by ``adopt=``, and its ServiceClient is the user's.
        """
        return self._scope.service

    async def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returned when the run first asked for this key, here or in any process.

        For what belongs to the run and not to an attempt: a reference model, a value drawn at
        random. Of a sampling client, the weights are saved for samplers once, under the run, and
        each attempt gets a client of them; without this, a reference made inside the loop would be
        of the trained weights after a recovery. Other values are kept as JSON, in the journal.
        Asked again in the same attempt, the same object is returned; tasks that ask at once share
        one call.

        Args:
            key: Names it within the run.
            make: Takes nothing; returns the value or the sampling client, a future of that, or a
                coroutine. An exception of its leaves unchanged, and nothing is kept.

        Raises:
            UsageError: It cannot be kept as JSON; or it would be made of weights that an earlier
                attempt has trained, since what that made is lost.
            StatusError: What an earlier process made is not in the journal, and the service cannot
                be asked for it.
        """
        return await self._scope.run.history.once.get(self._scope, key, make)

    async def recall(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returned for this step before, if that was of these very weights.

        For rollouts: an attempt that replays a step, here or in a later process of a named run,
        gets those that the step was begun with, and samples nothing. Given back is what was made
        for this step and key on weights made of the same training requests, from a checkpoint
        restored with its optimizer; whatever else was submitted since (other data, a step left
        out), a restore of the weights alone, and a run started over have it made again. So does
        what was kept of steps not known to have succeeded. Ask before each step's first
        ``forward_backward``, from the first step on: steps trained before the first ``recall`` are
        like no others. Of a custom loss, the name is compared, not what it does.

        Kept as ``recall_bytes`` allows, in files beside the journal that only their owner can read,
        removed when the run ends well; with ``journal=None`` or without a name, in memory. In a
        loop that blocks, write ``asyncio.run(attempt.recall(...))``.

        Args:
            key: Names it within the step.
            make: Takes nothing; returns the value, or an awaitable of it. It runs once, even if
                tasks ask at once. What it raises leaves unchanged, and nothing is kept then, nor
                if it is cancelled.

        Raises:
            UsageError: The value cannot be kept: JSON, tuples, bytes, arrays of numbers and the
                types of the SDK can.
            StaleAttempt: The attempt is over.
            LeaseLost: The run is another process's by now.
        """
        return await self._scope.recall.get(key, make)

    def watch(self, future: _F) -> _F:
        """Count a future of the loop's own among the work that must not be silent; returns it.

        For what goes on outside the clients of the attempt, such as a request to another service:
        if it is open for ``stall_after_s`` and nothing of it or of sampling ends, that is a fault.
        What it fails with is the loop's own matter.

        Args:
            future: An APIFuture, a ``concurrent.futures.Future``, or an ``asyncio`` future or task.

        Raises:
            UsageError: It is none of these.
        """
        plain = future.future() if isinstance(future, APIFuture) else future
        if not isinstance(plain, concurrent.futures.Future | asyncio.Future):
            raise UsageError(
                f"watch({future!r}): it takes an APIFuture, a concurrent.futures.Future, or an "
                "asyncio future or task; make a task of a coroutine first"
            )
        self._scope.sampling.watch(plain)
        return future

    @property
    def start_step(self) -> int:
        """Steps already in the weights: the step at which the loop has to begin.

        With ``updates_per_step``, a step is an iteration of that many optimizer steps.
        """
        return self._scope.start_step

    @property
    def checkpoint(self) -> CheckpointRecord | None:
        """The checkpoint it was recovered or started from; None if it began afresh."""
        return self._scope.checkpoint

    def report(self, **metrics: object) -> None:
        """Report the newest metrics, by name, for people to see; never slows or breaks the loop.

        Numbers of any kind: Python's, Decimal, numpy's and torch's, also in an array of one. What
        is no number is left out with one warning. They are stored with the next checkpoint, as far
        as 16 KiB hold them, ``best_metric`` first; the journal has all. With ``guard_loss``, a
        ``loss`` that is NaN or infinite is a fault.
        """
        self._scope.report(metrics)

    @property
    def loop_state(self) -> Any:
        """The loop's own state, as JSON can hold it: a position in the data, a seed.

        Set it behind ``optim_step``, or between ``forward_backward`` and ``optim_step``, to where
        the loop has to continue after that step: what is set until the next ``forward_backward``
        is stored with the checkpoint of that step, and is here again after a recovery from it.
        None at first, and nothing needs to be set before the first step. A loop stopped by Ctrl-C
        has its last step saved only if it had set its state for it.

        Raises:
            UsageError: On setting: it cannot be stored as JSON, or is too large; or it was set
                ahead of the first ``forward_backward`` and again ahead of another, so that which
                step it belongs to cannot be known.
        """
        return self._scope.saver.loop_state

    @loop_state.setter
    def loop_state(self, state: object) -> None:
        self._scope.saver.set_loop_state(state)

    @property
    def epoch(self) -> int:
        """Epochs completed, over all attempts of the run."""
        return self._scope.saver.epoch

    def end_epoch(self) -> None:
        """Count an epoch as complete; ``strategy="epoch"`` saves its last step.

        That is the newest ``optim_step``; in the middle of a window of ``forward_backward`` calls,
        the one to come.
        """
        self._scope.end_epoch()

    def iteration(self) -> Iteration:
        """A block that is one step, whatever number of optimizer steps it has.

        ``async with attempt.iteration():`` around an iteration of the loop, or ``with`` in a loop
        that blocks; where the number is always the same, ``updates_per_step=`` says so once. No
        checkpoint lies inside, so a recovery never begins there. A block without an optimizer step
        counts as a step left out. One that an exception leaves is not counted, and the attempt's
        body has to end with that exception if it had trained.

        Raises:
            UsageError: On entering: another one is under way.
            StaleAttempt: On entering: the attempt is over.
        """
        return Iteration(self._scope.client)

    def skip(self, step: int) -> bool:
        """Whether the loop has to leave this step out, by ``on_repeated_fault="skip_step"``.

        Ask right where the step would be submitted: ``if attempt.skip(step): continue``. A step
        left out is counted, so checkpoints still say where the loop is.

        Raises:
            UsageError: ``step`` is not the next step to submit.
        """
        return self._scope.skip(step)

    async def __aenter__(self) -> Self:
        self._scope.enter(repr(self))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # In a forked child, the run is the parent's: it is neither finished nor recovered there.
        return self._scope.home.is_here and await self._scope.leave(error)


def scope_of(attempt: Attempt) -> AttemptScope:
    """The half of an attempt that its user does not see."""
    return attempt._scope  # noqa: SLF001 - the other half of Attempt
