"""Ctrl-C and SIGTERM, while a Supervisor is entered.

A loop that a signal stops saves its last step first, within the policy's limit. For that it must be
known whether a task is cancelled by a signal or by the user's own code, which is not made to wait.
Handlers wrap those already installed, in the main thread only, and are removed on the way out. A
forked child has those from before: ours would wake a loop that does not run there, and SIGTERM
would not end it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from tinker_recovery.forks import HomeProcess

Handler = Callable[[int, FrameType | None], object]

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended, as the shell tells it."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Installed(NamedTuple):
    number: signal.Signals
    ours: Handler
    there: Any

    def remove(self) -> None:
        """Put back what was there, unless another has been installed since."""
        if signal.getsignal(self.number) is self.ours:
            signal.signal(self.number, self.there)


_installed: list[_Installed] = []
"""Every handler of ours, the oldest first."""


class StopSignals:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.requested = False
        """By Ctrl-C or SIGTERM, or by whoever sets it."""
        self.terminated = False
        """By SIGTERM."""

    @contextmanager
    def listen_in_task(self) -> Iterator[None]:
        """Hear signals while the current task is in here.

        SIGTERM, where it would have ended the process on the spot, cancels the task; when that
        comes out, the process ends by ``SystemExit`` with status 143. A second one does end it on
        the spot.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        def cancel() -> None:
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        if not _in_main_thread():
            yield  # Python hears signals in its main thread alone
            return
        with self._heard(on_sigterm=cancel):
            try:
                yield
            except asyncio.CancelledError:
                if not self.terminated or task is None:
                    raise
                task.uncancel()
            if self.terminated:
                raise SystemExit(TERMINATED)

    @contextmanager
    def listen_here(self) -> Iterator[None]:
        """Hear signals while a loop without asyncio is in here; SIGTERM raises ``SystemExit``."""

        def leave() -> None:
            raise SystemExit(TERMINATED)

        if not _in_main_thread():
            yield
            return
        with self._heard(on_sigterm=leave):
            yield

    @contextmanager
    def _heard(self, *, on_sigterm: Callable[[], object]) -> Iterator[None]:
        home = HomeProcess()

        def terminate(number: int, frame: FrameType | None) -> None:
            del frame
            signal.signal(number, signal.SIG_DFL)
            if not home.is_here:  # forked past Python, which has had no moment to remove it
                signal.raise_signal(number)
                return
            self.requested = self.terminated = True
            on_sigterm()

        def before(handler: Handler) -> Handler:
            def note(number: int, frame: FrameType | None) -> object:
                self.requested = self.requested or home.is_here
                return handler(number, frame)

            return note

        mine: list[_Installed] = []
        for number in _SIGNALS:
            there = signal.getsignal(number)
            if callable(there):
                ours: Handler = before(there)
            elif number == signal.SIGTERM and there is signal.SIG_DFL:
                ours = terminate
            else:
                continue  # ignored, or not Python's
            mine.append(_Installed(number, ours, there))
            _installed.append(mine[-1])
            signal.signal(number, ours)
        try:
            yield
        finally:
            for each in mine:
                each.remove()
                _installed.remove(each)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


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
