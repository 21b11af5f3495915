"""Ctrl-C and SIGTERM, and ``Supervisor.stop()``, while a Supervisor is entered.

A loop that these stop saves its last step first, within the policy's limit. For that it must be
known whether a task is cancelled by them or by the user's own code, which is not made to wait.
Handlers wrap those already installed, in the main thread only, and are removed on the way out. A
forked child has those from before: ours would wake a loop that does not run there, and SIGTERM
would not end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from tinker_recovery.forks import HomeProcess
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended, as the shell tells it."""

_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
"""What is heard, as people call it."""


class _Installed:
    """A handler of ours, and what is called in its place once it is removed.

    Two Supervisors of one process may be left in any order, and others install handlers over ours
    and keep what they found there. So one that is removed while it is not the newest is taken out
    from under the next of ours, and under one of others' it calls on to what was there before it.
    """

    def __init__(
        self,
        number: signal.Signals,
        there: Any,
        heard: Callable[[], object],
        end: Callable[[], object],
    ) -> None:
        self.number = number
        self._there = there
        self._heard = heard
        self._end = end
        self._home = HomeProcess()
        self._removed = False

    def __call__(self, number: int, frame: FrameType | None) -> object:
        # Forked past Python, a process has had no moment to remove it.
        inert = self._removed or not self._home.is_here
        if not inert:
            self._heard()
        if callable(self._there):
            return self._there(number, frame)
        signal.signal(number, signal.SIG_DFL)
        if inert:
            signal.raise_signal(number)
        else:
            self._end()
        return None

    def remove(self) -> None:
        """Put back what was there, unless another has been installed since."""
        self._removed = True
        newest: object = signal.getsignal(self.number)
        if newest is self:
            signal.signal(self.number, self._there)
        for each in _installed:
            if each._there is self:  # noqa: SLF001 - another of this class
                each._there = self._there  # noqa: SLF001 - likewise


_installed: list[_Installed] = []
"""Every handler of ours, the oldest first."""


STOPPED = "Supervisor.stop() was called"
"""What the cancellation says."""


class StopSignals:
    """Whether this Supervisor was asked to stop, by a signal or by its ``stop()``.

    Args:
        saves: Whether a step is to be saved then.
    """

    def __init__(self, *, saves: bool = False) -> None:
        self.requested = False
        """By Ctrl-C, SIGTERM or ``stop()``, or by whoever sets it."""
        self.terminated = False
        """By SIGTERM."""
        self.by: str | None = None
        """What asked first: ``Ctrl-C``, ``SIGTERM`` or ``stop()``; None as long as nothing has."""
        self._stopped = False
        self._saves = saves
        self._ends: list[Callable[[], object]] = []
        self._left: Future[None] = Future()
        # Running from the start, so that cancelling a wait cannot cancel the future.
        self._left.set_running_or_notify_cancel()

    def stop(self) -> APIFuture[None]:
        """See :meth:`Supervisor.stop`; from any thread, and from a signal handler."""
        if not self.over:
            self._stopped = True
            self._note("stop()")
            for end in list(self._ends):
                end()
        return AwaitableConcurrentFuture(self._left)

    def _note(self, by: str) -> None:
        self.by = self.by or by
        self.requested = True

    def note_left(self) -> None:
        """The Supervisor has been left."""
        if not self._left.done():
            self._left.set_result(None)

    @property
    def over(self) -> bool:
        """Whether it has been left."""
        return self._left.done()

    @contextmanager
    def ended_by_stop(self, end: Callable[[], object]) -> Iterator[None]:
        """Have ``end`` called if a stop is asked for while in here, or was before.

        From the thread that asks, and perhaps more than once.
        """
        self._ends.append(end)
        try:
            if self._stopped:
                end()
            yield
        finally:
            self._ends.remove(end)

    @contextmanager
    def listen_in_task(self) -> Iterator[None]:
        """Hear signals while the current task is in here; ``stop()`` cancels it.

        SIGTERM, where it would have ended the process on the spot, cancels the task; when that
        comes out, the process ends by ``SystemExit`` with status 143. A second one does end it on
        the spot.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        inside = True

        def cancel() -> None:
            if task is None or task.done():  # it was never left: nothing here would end
                signal.raise_signal(signal.SIGTERM)
            else:
                loop.call_soon_threadsafe(task.cancel)

        def cancel_once() -> None:
            nonlocal inside
            if inside and task is not None:
                inside = False
                task.cancel(STOPPED)

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(cancel_once)

        with self.ended_by_stop(end), self._hear(cancel):
            try:
                yield
            except asyncio.CancelledError:
                if not self.terminated or task is None:
                    raise
                task.uncancel()
            finally:
                inside = False
            if self.terminated:
                raise SystemExit(TERMINATED)

    @contextmanager
    def listen_here(self) -> Iterator[None]:
        """Hear signals while a loop without asyncio is in here; SIGTERM raises ``SystemExit``."""

        def leave() -> None:
            raise SystemExit(TERMINATED)

        with self._hear(leave):
            yield

    def _hear(self, on_sigterm: Callable[[], object]) -> AbstractContextManager[None]:
        if threading.current_thread() is threading.main_thread():
            return self._heard(on_sigterm)
        # Python hears signals in its main thread alone.
        if self._saves:
            logger.warning(
                "entered outside the main thread, where Ctrl-C and SIGTERM are not heard: no step "
                "is saved for them (save_on_stop_s); end it by supervisor.stop(), which can be "
                "called in any thread, and the last step is saved first"
            )
        return contextlib.nullcontext()

    @contextmanager
    def _heard(self, on_sigterm: Callable[[], object]) -> Iterator[None]:
        def terminate() -> None:
            self.terminated = True
            on_sigterm()

        mine: list[_Installed] = []
        for number, called in _SIGNALS.items():
            there = signal.getsignal(number)
            ends = number == signal.SIGTERM and there is signal.SIG_DFL
            if callable(there) or ends:  # neither ignored, nor another language's
                note = functools.partial(self._note, called)
                mine.append(_Installed(number, there, note, terminate))
                _installed.append(mine[-1])
                signal.signal(number, mine[-1])
        try:
            yield
        finally:
            for each in mine:
                _installed.remove(each)
                each.remove()


class _Fork(threading.local):
    """What is done around a fork, in the thread that forks."""

    def __init__(self) -> None:
        self._mask: set[signal.Signals | int] | None = None

    def before(self) -> None:
        """Hold signals back: Python drops those that reach a child before it is ready for them."""
        if _installed:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def after(self) -> None:
        """Let signals through again."""
        mask, self._mask = self._mask, None
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def in_child(self) -> None:
        """Remove our handlers first."""
        for each in reversed(_installed):
            each.remove()
        self.after()


if hasattr(os, "register_at_fork"):
    _fork = _Fork()
    os.register_at_fork(
        before=_fork.before, after_in_parent=_fork.after, after_in_child=_fork.in_child
    )
