"""The tasks of a supervisor: its children's and its own."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_recovery.supervision.life import Life


class Tasks:
    """Makes tasks, and keeps those that are the supervisor's own.

    Args:
        name: The supervisor's name, for the names of tasks.
        on_broken: Called with the exception that a task of the supervisor's own raised.
    """

    __slots__ = ("_context", "_loop", "_name", "_on_broken", "_own", "soon")

    def __init__(self, name: str, on_broken: Callable[[BaseException], None]) -> None:
        self._name = name
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._own: set[asyncio.Task[None]] = set()
        self.soon = functools.partial(self._loop.call_soon, context=self._context)
        """Have a call made once every task made before has had its first turn."""

    def make(self, work: Coroutine[object, object, None], what: str) -> asyncio.Task[None]:
        """A new task, made without the loop's task factory and with its own copy of the context.

        An eager task factory would run it at once, before the task is recorded. Without the copy,
        the next incarnation would inherit what the crashed one set in the context.
        """
        return asyncio.Task(
            work, loop=self._loop, name=f"{self._name}/{what}", context=self._context.copy()
        )

    def of_child(self, life: Life, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """The task of one incarnation, made as by :meth:`make`.

        A restart takes hardly more than this, so it makes as few calls as it can. The callback
        runs in the supervisor's context, of which it needs no copy.
        """
        name = f"{self._name}/{life.id}#{life.incarnation}"
        task = asyncio.Task(work, loop=self._loop, name=name, context=self._context.copy())
        task.add_done_callback(life.over, context=self._context)
        return task

    def background(self, work: Coroutine[object, object, None], what: str) -> asyncio.Task[None]:
        """A task of the supervisor's own."""
        task = self.make(work, what)
        self._own.add(task)
        task.add_done_callback(self._over)
        return task

    def waiter(self) -> asyncio.Future[None]:
        """A future of the supervisor's loop."""
        return self._loop.create_future()

    async def end(self) -> None:
        """Cancel all tasks of the supervisor's own, and wait for them."""
        if self._own:
            for task in self._own:
                task.cancel()
            await asyncio.wait(self._own)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._own.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_broken(error)
