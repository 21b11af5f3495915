"""Which task a Supervisor is of: the one that entered it, which alone can leave it.

Cells of a notebook are tasks of their own on one loop, and so are the two halves of a test's
fixture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from tinker_recovery.errors import UsageError
from tinker_recovery.shielding import to_the_end

_T = TypeVar("_T")

_WRITE = (
    "write `async with Supervisor(policy) as supervisor: ...` around the training, in one cell or "
    "function. To train beside other cells, put that into `async def main()`, begin it with "
    "`task = asyncio.create_task(main())`, and end it with `await supervisor.stop()` (see "
    "docs/stopping.md)"
)


class HomeTask:
    """The task in which this was made."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()

    @property
    def is_current(self) -> bool:
        """Whether this is that task."""
        return asyncio.current_task() is self._task

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._task is not None and self._task.done()

    def check(self) -> None:
        """Refuse the use of something once its task has ended.

        Raises:
            UsageError: It has.
        """
        if self.is_over:
            raise UsageError(
                "this Supervisor was entered in a task that has ended, as each cell of a notebook "
                f"is one, and nothing would look after its runs: {_WRITE}"
            )


class LeftByItsTask(Generic[_T]):
    """An async context manager that only the task that entered it can leave.

    Args:
        inner: What is entered.
        close: Closes what can be closed, where another task leaves it and its own has ended.
    """

    def __init__(
        self,
        inner: AbstractAsyncContextManager[_T, bool | None],
        close: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._inner = inner
        self._close = close
        self._home: HomeTask | None = None

    async def __aenter__(self) -> _T:
        entered = await self._inner.__aenter__()
        self._home = HomeTask()
        return entered

    async def __aexit__(self, *exc_info: object) -> bool | None:
        """Leave it.

        Raises:
            UsageError: This is not the task that entered it.
        """
        if self._home is None or self._home.is_current:
            return await self._inner.__aexit__(*exc_info)  # type: ignore[arg-type]  # as given
        closed = ""
        if self._home.is_over:
            await to_the_end(self._close())
            closed = "; its clients were closed, and it cannot be used any more"
        raise UsageError(
            "this Supervisor can only be left by the task that entered it, and this is another, as "
            f"each cell of a notebook is one{closed}: {_WRITE}"
        )
