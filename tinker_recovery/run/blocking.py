"""Loops that block: a plain function in a worker thread, and scripts without asyncio.

A thread cannot be cancelled. What ends a blocked ``.result()`` is that its request is: so a fault
closes the client under the loop first, and the thread comes out with an error that belongs to the
incident.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import math
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal
from typing_extensions import Unpack

from tinker_recovery.forks import HomeProcess, keep_to_the_end
from tinker_recovery.run.attempt import Attempt, scope_of
from tinker_recovery.run.options import StartOptions
from tinker_recovery.run.settling import save_before_leaving
from tinker_recovery.run.signals import STOPPED, StopSignals
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")
_S = TypeVar("_S")

BlockingRunner = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a blocking function outside the event loop. Cancelling it leaves the function running."""


async def in_worker_thread(function: Callable[[], Any]) -> Any:
    """Run a blocking function in a worker thread; cancelling the wait abandons it.

    Not in one of the 40 that all share: a loop keeps its thread for hours, so the 41st would never
    begin, and whatever else needs a thread would wait for ever.
    """
    limiter = anyio.CapacityLimiter(math.inf)
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=limiter)


def is_async(train: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, as far as can be seen without calling it."""
    function = inspect.unwrap(train)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object's own
    )


async def run_body(
    train: Callable[[Attempt], Any],
    attempt: Attempt,
    *,
    runner: BlockingRunner,
    limit_s: float,
) -> Any:
    """Run a loop in its attempt, whether it is a coroutine function or a plain one.

    Args:
        train: The loop.
        attempt: Given to it.
        runner: Runs it if it is a plain function.
        limit_s: How long that has to notice a fault.
    """
    if is_async(train):
        return await train(attempt)
    return await run_blocking(train, attempt, runner=runner, limit_s=limit_s)


async def run_blocking(
    train: Callable[[Attempt], Any],
    attempt: Attempt,
    *,
    runner: BlockingRunner,
    limit_s: float,
) -> Any:
    """Run a plain function of an attempt where it may block; returns what it returned.

    Cancelling it (a fault does) closes the attempt's client under the function, and waits up to
    ``limit_s`` seconds for it to come out.

    Args:
        train: The loop.
        attempt: Given to it.
        runner: Runs it.
        limit_s: How long it has to notice.
    """
    out = anyio.Event()
    begun = threading.Event()
    loop = asyncio.get_running_loop()

    def body() -> Any:
        begun.set()
        try:
            return train(attempt)
        finally:
            loop.call_soon_threadsafe(out.set)

    scope = scope_of(attempt)
    scope.blocking = True
    try:
        result = await runner(body)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            scope.client.hold()
            await save_before_leaving(scope)
            await scope.interrupt()
            with anyio.move_on_after(limit_s) as waited:
                if begun.is_set():
                    await out.wait()
            if waited.cancelled_caught:
                logger.error(  # noqa: TRY400 - the cancellation being handled is no error
                    "the loop of %r runs on in its thread, %g s after its client was closed: a "
                    "thread cannot be stopped from outside, so have it call the client, or look "
                    "at what it waits for",
                    attempt,
                    limit_s,
                )
        raise
    return await result if inspect.isawaitable(result) else result


_Outcome = tuple[Any, Exception | None]
"""What a function returned, or raised, which goes as a value: a future does not take every one."""

_Todo = queue.SimpleQueue[tuple[Callable[[], Any], Future[_Outcome]] | None]

RunWith = Callable[
    [Callable[[Attempt], Any], BlockingRunner, StartOptions], Coroutine[Any, Any, Any]
]
"""``Supervisor._run_with``."""


class BlockingSupervisor(Generic[_S]):
    """What ``with Supervisor(policy) as supervisor:`` gives a script without asyncio.

    The supervisor works in a thread of its own; the loop runs in the calling one, so Ctrl-C
    reaches it as in any script.

    Attributes:
        supervisor: The Supervisor itself; its reports may be read, its coroutines belong to the
            other thread.
    """

    def __init__(
        self,
        supervisor: _S,
        context: AbstractAsyncContextManager[Any],
        run_with: RunWith,
        signals: StopSignals,
    ) -> None:
        self.supervisor = supervisor
        self._run_with = run_with
        self._home = HomeProcess()
        self._stopping = signals
        self._signals = signals.listen_here()
        self._opening = start_blocking_portal("asyncio")
        self._portal: BlockingPortal = self._opening.__enter__()
        self._inside: AbstractContextManager[Any] = self._portal.wrap_async_context_manager(context)
        try:
            self._inside.__enter__()
        except BaseException as error:
            # With the error, or the thread would wait for an end that nobody announces.
            self._opening.__exit__(type(error), error, error.__traceback__)
            raise
        self._signals.__enter__()

    def close(self, *exc_info: Any) -> bool | None:
        """Leave the supervisor, and end its thread; does nothing in a forked child."""
        if not self._home.is_here:
            keep_to_the_end(self)  # its finalizers would wait for the thread
            return None
        try:
            return self._inside.__exit__(*exc_info)
        except concurrent.futures.CancelledError:
            # What becomes of a cancellation on its way through the other thread.
            if len(exc_info) > 1 and isinstance(exc_info[1], asyncio.CancelledError):
                return None
            raise
        finally:
            self._opening.__exit__(None, None, None)
            self._signals.__exit__(None, None, None)

    if not TYPE_CHECKING:  # with it, every name would be taken for one that there is

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
                + _instead(name, vars(self).get("supervisor")),
                name=name,
                obj=self,
            )

    def run(self, train: Callable[[Attempt], _T], **start: Unpack[StartOptions]) -> _T:
        """Run ``train(attempt)`` until one attempt comes to its end; returns what that returned.

        As ``Supervisor.run``, with a plain function. An exception of the function's own leaves
        unchanged; KeyboardInterrupt ends the attempt and passes through. After
        ``Supervisor.stop()``, ``asyncio.CancelledError`` is raised once the attempt has ended.

        In a child that the function forks, what it returns or raises comes out at once, and nothing
        is done about the run, which is the parent's.

        Raises:
            UsageError: This process was forked from the supervisor's.
        """
        self._home.check(self.supervisor)
        todo: _Todo = queue.SimpleQueue()

        async def here(function: Callable[[], Any]) -> Any:
            done: Future[Any] = Future()
            todo.put((function, done))
            outcome: _Outcome = await asyncio.wrap_future(done)
            if isinstance(outcome[1], StopIteration):
                # Python lets none through a coroutine.
                raise RuntimeError("the loop raised StopIteration") from outcome[1]  # noqa: TRY004 - as Python itself does
            return _result_of(outcome)

        async def run_and_tell() -> Any:
            # The future is done the moment it is cancelled; this is, once all has been closed.
            try:
                return await self._run_with(train, here, start)
            finally:
                todo.put(None)

        running = self._portal.start_task_soon(run_and_tell)
        try:
            with self._stopping.ended_by_stop(running.cancel):
                of_child = self._serve(todo)
        except BaseException:
            if not self._home.is_here:
                raise
            # Ctrl-C, here or inside the loop: the attempt is ended before it passes through.
            running.cancel()
            while todo.get() is not None:
                pass
            raise
        if of_child:
            return _result_of(of_child)  # type: ignore[no-any-return]  # what train returned
        if running.cancelled():
            raise asyncio.CancelledError(STOPPED)
        return running.result()  # type: ignore[no-any-return]  # run_with returns what train does

    def _serve(self, todo: _Todo) -> _Outcome | None:
        """Carry out what the supervisor asks for; returns the outcome in a child forked by that."""
        while (item := todo.get()) is not None:
            function, done = item
            if done.set_running_or_notify_cancel():
                outcome = _carry_out(function)
                if not self._home.is_here:
                    return outcome
                if not done.cancelled():
                    done.set_result(outcome)
        return None


def _instead(name: str, supervisor: object) -> str:
    """What to use, in a script without asyncio, in place of what only the Supervisor has."""
    if name in {"attempts", "group"}:
        return (
            f": {name}() is for `async with Supervisor()`. After `with`, the loop is a function: "
            "supervisor.run(train, name=..., base_model=...) with def train(attempt), called again "
            "from attempt.start_step after a fault"
        )
    if name in {"events", "watch", "run_cookbook"}:
        return f": {name}() is for `async with Supervisor()`" + (
            "; Supervisor(on_event=...) is called with each event" if name == "events" else ""
        )
    if not name.startswith("_") and hasattr(type(supervisor), name):
        return f": it is the Supervisor's own, supervisor.supervisor.{name}"
    return ""


def _carry_out(function: Callable[[], Any]) -> _Outcome:
    try:
        return function(), None
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the result
        return None, error


def _result_of(outcome: _Outcome) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result
