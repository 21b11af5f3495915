"""Blocking requests in a worker thread that can be cancelled at any point.

Streaming a file by httpx's blocking client takes two thirds of the CPU time of its asynchronous
one, and none of it on the event loop that a training loop shares. What a thread lacks is
cancellation: here the socket that it reads from is shut down, which ends the read at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread

_T = TypeVar("_T")

LOOK_S = 0.002
"""How often it is looked whether a thread has ended whose socket was shut down."""


class _Interrupted(Exception):
    """Raised in the thread: whoever waited for it was cancelled."""


class Interruption:
    """Ends the request of a thread from outside.

    Args:
        connection: What the last request of the same client was made over: this one may be, too.
    """

    def __init__(self, connection: socket.socket | None = None) -> None:
        self._lock = threading.Lock()
        self._socket = connection
        self._stopped = False
        self.begun = self.ended = False

    @property
    def connection(self) -> socket.socket | None:
        """What it was made over."""
        return self._socket

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """The ``trace`` extension of the request, for httpx.

        Raises:
            _Interrupted: It was stopped while it connected.
        """
        _, _, what = event.partition(".")  # of a connection or of a proxy
        if what in ("connect_tcp.started", "start_tls.started"):
            self._take(None)  # TLS takes the socket over, and is known once it has shaken hands
        elif what in ("connect_tcp.complete", "start_tls.complete"):
            connection: socket.socket = info["return_value"].get_extra_info("socket")
            try:
                self._take(connection)
            except _Interrupted:
                connection.close()  # nobody else knows it yet
                raise

    def _take(self, connection: socket.socket | None) -> None:
        with self._lock:
            self._socket = connection
            self.check()

    def check(self) -> None:
        """To be called before anything that changes something.

        Raises:
            _Interrupted: It was stopped.
        """
        if self._stopped:
            raise _Interrupted

    def stop(self) -> bool:
        """End it; whether that is at once: a connection that is being made can only be left."""
        with self._lock:
            self._stopped = True
            if self._socket is None or not self.begun:
                return False
            with contextlib.suppress(OSError):  # it was closed meanwhile
                # Not by the method of a TLS socket, which is in use by its thread.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return True


async def interruptible(
    work: Callable[[Interruption], _T],
    *,
    limiter: anyio.CapacityLimiter,
    connection: socket.socket | None = None,
) -> _T:
    """Call ``work`` in a thread; if this is cancelled, it has ended or does nothing any more.

    Args:
        work: It passes :meth:`Interruption.trace` on with its request, and calls
            :meth:`Interruption.check` before it changes anything.
        limiter: For its threads: not the default one, where all else would wait for it.
        connection: As of :class:`Interruption`.
    """
    interruption = Interruption(connection)

    def in_thread() -> _T:
        interruption.begun = True
        try:
            return work(interruption)
        finally:
            interruption.ended = True

    done = False
    try:
        result = await anyio.to_thread.run_sync(in_thread, abandon_on_cancel=True, limiter=limiter)
        done = True
        return result
    finally:
        if not done and interruption.stop():
            with anyio.CancelScope(shield=True):
                while not interruption.ended:  # noqa: ASYNC110 - its own thread
                    await anyio.sleep(LOOK_S)
