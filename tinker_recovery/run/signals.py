"""Ctrl-C and SIGTERM, while a Supervisor is entered.

A loop that a signal stops saves its last step first, within the policy's limit. For that it must be
known whether a task is cancelled by a signal or by the user's own code, which is not made to wait.
Handlers wrap those already installed, in the main thread only, and are removed on the way out.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], object]

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended, as the shell tells it."""


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
        def terminate(number: int, frame: FrameType | None) -> None:
            del frame
            self.requested = self.terminated = True
            signal.signal(number, signal.SIG_DFL)
            on_sigterm()

        def before(handler: Handler) -> Handler:
            def note(number: int, frame: FrameType | None) -> object:
                self.requested = True
                return handler(number, frame)

            return note

        back: list[tuple[signal.Signals, Handler, Any]] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            there = signal.getsignal(number)
            if callable(there):
                ours: Handler = before(there)
            elif number == signal.SIGTERM and there is signal.SIG_DFL:
                ours = terminate
            else:
                continue  # ignored, or not Python's
            signal.signal(number, ours)
            back.append((number, ours, there))
        try:
            yield
        finally:
            for number, ours, there in back:
                if signal.getsignal(number) is ours:
                    signal.signal(number, there)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
