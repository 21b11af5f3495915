"""Heartbeats: what keeps the sessions of claims active at the service.

A Supervisor sends them from a thread of its own. An event loop that its user blocks, with a rollout
or an evaluation that is not async, runs no task meanwhile, and the service would end the claim of a
process that is well; the SDK sends its own from a thread for the same reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from tinker_recovery.clock import Clock
from tinker_recovery.errors import StatusError
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.http import Missed, ServiceHttp
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

TIMEOUT_S = 10.0
"""How long one may take, in seconds."""

JOIN_S = 5.0
"""How long the thread may take to end, in seconds."""

_AT_ONCE = 16


class Heartbeats(Protocol):
    """Where they are sent from."""

    def start(self, session_id: str, gone: Callable[[], object]) -> Callable[[], None]:
        """Keep a session active until the function that this returns is called.

        Args:
            session_id: The session.
            gone: Called from the event loop if the service has ended the session.
        """
        ...


class TaskHeartbeats:
    """Sent from tasks: for what is over soon, or waits by another clock than the system's.

    Args:
        sessions: The service.
        group: Where the tasks run; cancelling it leaves the sessions to the service's own limit.
        clock: For the wait in between.
        beat_s: Seconds between two.
    """

    def __init__(
        self, sessions: ClaimSessions, group: TaskGroup, clock: Clock, beat_s: float
    ) -> None:
        self._sessions = sessions
        self._group = group
        self._clock = clock
        self._beat_s = beat_s

    def start(self, session_id: str, gone: Callable[[], object]) -> Callable[[], None]:
        """As :class:`Heartbeats` says."""
        scope = anyio.CancelScope()
        self._group.start_soon(self._keep, scope, session_id, gone, name="heartbeats of a claim")
        return scope.cancel

    async def _keep(
        self, scope: anyio.CancelScope, session_id: str, gone: Callable[[], object]
    ) -> None:
        with scope:
            while True:
                await self._clock.sleep(self._beat_s)
                if await _is_gone(self._sessions, session_id):
                    gone()
                    return


class ThreadHeartbeats:
    """Sent from a thread, which runs while there is a session to keep; used from one event loop.

    Args:
        endpoint: The service.
        beat_s: Seconds between two of one session.
        unreachable: Called from the event loop if one finds the service out of reach.
    """

    def __init__(self, endpoint: Endpoint, beat_s: float, unreachable: Missed) -> None:
        self._endpoint = endpoint
        self._beat_s = beat_s
        self._unreachable = unreachable
        self._kept: dict[str, Callable[[], object]] = {}
        self._thread: _Thread | None = None

    def start(self, session_id: str, gone: Callable[[], object]) -> Callable[[], None]:
        """As :class:`Heartbeats` says."""
        self._kept[session_id] = gone
        if self._thread is None:
            self._thread = _Thread(self._send_all(asyncio.get_running_loop()))
        return functools.partial(self._stop, session_id)

    def _stop(self, session_id: str) -> None:
        self._kept.pop(session_id, None)

    async def aclose(self) -> None:
        """Send no more of them; completes even if cancelled."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(thread.stop)

    async def _send_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread's own main; ``loop`` is the event loop of the runs."""
        # First, as making an HTTP client would take its time from a run that is just beginning.
        await anyio.sleep(self._beat_s)

        def call(function: Callable[..., object], *given: object) -> None:
            with contextlib.suppress(RuntimeError):  # it has ended, and nobody needs to know
                loop.call_soon_threadsafe(function, *given)

        http = ServiceHttp(self._endpoint, timeout_s=TIMEOUT_S)
        http.unreachable = functools.partial(call, self._unreachable)
        sessions, free = ClaimSessions(http), anyio.Semaphore(_AT_ONCE)

        async def send(session_id: str) -> None:
            async with free:
                if await _is_gone(sessions, session_id):
                    call(self._end, session_id)

        try:
            while True:
                async with anyio.create_task_group() as group:
                    for session_id in list(self._kept):
                        group.start_soon(send, session_id)
                await anyio.sleep(self._beat_s)
        finally:
            with anyio.CancelScope(shield=True):
                await http.aclose()

    def _end(self, session_id: str) -> None:
        # One that was stopped meanwhile is finished by us: that it is over says nothing.
        gone = self._kept.pop(session_id, None)
        if gone is not None:
            gone()


class _Thread:
    """A thread with an event loop that runs a coroutine until it is stopped."""

    def __init__(self, main: Coroutine[Any, Any, None]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(main)
        # A daemon: where a Supervisor is never left, an interpreter that ends must not wait for it.
        # The service then ends the claims by itself.
        self._thread = threading.Thread(
            target=self._run, name="tinker-recovery/heartbeats", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        with contextlib.closing(self._loop), contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    def stop(self) -> None:
        """Cancel the coroutine, and wait for the thread; blocks."""
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(JOIN_S)


async def _is_gone(sessions: ClaimSessions, session_id: str) -> bool:
    """Send one heartbeat; whether the service has ended the session. Never raises an Exception."""
    try:
        status = await sessions.beat(session_id)
        if status is None or status >= 400:  # noqa: PLR2004 - HTTP's errors begin there
            logger.debug("heartbeat of the claim %s: HTTP %s", session_id, status)
        return await sessions.has_ended(session_id, status)
    except StatusError as error:
        logger.debug("heartbeat of the claim %s: %s", session_id, error)
        return False
    except Exception:
        # If it went further, no heartbeat of any claim would be sent any more.
        logger.exception("heartbeat of the claim %s failed; it is sent again", session_id)
        return False
