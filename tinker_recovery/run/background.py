"""Background tasks of a Supervisor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

import anyio
from anyio.abc import TaskGroup


class Background:
    """Background tasks, each in a cancel scope of its own.

    Cancelling their group would cancel the user's task with it, and be seen as a cancellation from
    outside if an ``asyncio.TaskGroup`` has failed in the body: on Python 3.11 that leaves one in
    ``Task.cancelling()``.
    """

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._scopes: set[anyio.CancelScope] = set()
        self._cancelled = False

    def spawn(self, function: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run a function in the background."""
        self._group.start_soon(self._run, function)

    def start_soon(
        self, function: Callable[[], Coroutine[object, object, None]], /, *, name: object = None
    ) -> None:
        """The same under a name, as a task group does it."""
        self._group.start_soon(self._run, function, name=name)

    async def _run(self, function: Callable[[], Coroutine[object, object, None]]) -> None:
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if self._cancelled:
                    scope.cancel()  # its clean-up runs all the same
                await function()
            finally:
                self._scopes.discard(scope)

    def cancel(self) -> None:
        """Cancel every task, and those still to start."""
        self._cancelled = True
        for scope in self._scopes:
            scope.cancel()
