"""Which process something is of. A forked child has copies of all, and must use none of them.

It has none of its parent's threads: a lock that one of them held stays locked, and nothing is
delivered by an event loop that ran in another. Connections and files are shared with the parent.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from tinker_recovery.errors import UsageError

_T = TypeVar("_T")

_here = os.getpid()
"""Of this process. A look at it is asked for ten times a training step, and a system call each time
would take longer than all else that is ours."""


def _note_fork() -> None:
    global _here  # noqa: PLW0603 - a forked child has a copy of every module, and no other way to know
    _here = os.getpid()


os.register_at_fork(after_in_child=_note_fork)


class HomeProcess:
    """The process in which this was made."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = _here

    @property
    def is_here(self) -> bool:
        """Whether this is that process, and not one forked from it."""
        return self.pid == _here

    def check(self, what: object) -> None:
        """Refuse the use of something outside its process.

        Raises:
            UsageError: This process was forked from the one in which it was made.
        """
        if self.pid != _here:
            raise UsageError(
                f"this {type(what).__name__} is of process {self.pid} and cannot be used in "
                f"process {_here}, which was forked from it: hand what was computed here "
                "back to that process, and use it there"
            )


class LeftAtHome(Generic[_T]):
    """An async context manager that a forked child passes by on its way out, and does not leave."""

    def __init__(self, inner: AbstractAsyncContextManager[_T, bool | None]) -> None:
        self._inner = inner
        self._home = HomeProcess()

    async def __aenter__(self) -> _T:
        return await self._inner.__aenter__()

    async def __aexit__(self, *exc_info: object) -> bool | None:
        if not self._home.is_here:
            keep_to_the_end(self._inner)
            return None
        return await self._inner.__aexit__(*exc_info)  # type: ignore[arg-type]  # as given


def keep_to_the_end(inherited: object) -> None:
    """Have an object never be finalized, not even at the interpreter's exit.

    For what a forked child has inherited, and whose end would wait for its parent's threads or
    disturb its parent's files.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
