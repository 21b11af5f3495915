"""Closing a ServiceClient: within a deadline, whoever waits for it, and with nothing left behind.

The SDK tries for five minutes and more to say to a service that a session is over, and keeps the
session's heartbeats up meanwhile. Whoever begins a close has to end it as well, even if that was
only begun by the time nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from concurrent.futures import Future
from typing import Any

import anyio
import anyio.to_thread
import tinker
from tinker.lib.base_url import resolve_base_url

from tinker_recovery.service.base import CloseStatus
from tinker_recovery.service.missing_routes import is_missing, say_no_finish
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

ABANDON_S = 2.0
"""How long giving up a creation waits for its thread, and then for its session to close."""

CANCEL_AGAIN_S = 0.25
"""What was cancelled and goes on after this long is cancelled again ..."""

MOST_CANCELS = 40
"""... so often at most."""

_CLOSE = frozenset({"_close_async"})
_CREATE = frozenset({"_create_lora_training_client_async", "_create_via_load_weights_async"})
"""The SDK's coroutines, by name."""


class _Closing:
    """One close, which blocks where it is begun, and may be ended from any thread."""

    def __init__(self, service: tinker.ServiceClient, status: CloseStatus, detail: str) -> None:
        self._service = service
        self._status = status
        self._detail = detail
        self._begun = self._ended = False
        self._future: Future[Any] | None = None

    def begin(self) -> Future[Any]:
        """Begin; blocks while another thread opens the session. Done once all is closed."""
        self._begun = True
        self._future = future = self._service.close(self._status, self._detail).future()
        if self._ended:
            self._cancel(future)
        return future

    def end(self) -> None:
        """Nobody waits any more: skip what the service is still to be told.

        The SDK's own clean-up runs all the same. Without it, every future of that client would keep
        polling.
        """
        self._ended = True  # before the look: one of the two threads sees what the other has done
        if self._future is not None:
            self._cancel(self._future)
        elif not self._begun:
            # No worker thread was free in time, and what is cancelled by then none of them begins.
            threading.Thread(
                target=self.begin, name="tinker_recovery closing a session", daemon=True
            ).start()

    def _cancel(self, future: Future[Any]) -> None:
        if future.done():
            return
        get_loop = _loop_of(self._service)
        if get_loop is None:
            future.cancel()
        else:
            # Not the future: asyncio logs the error of a task that fails just then, for no one.
            asyncio.run_coroutine_threadsafe(_cancel_close(self._service), get_loop())


async def _cancel_close(service: tinker.ServiceClient) -> None:
    closing = _tasks_of(service, _CLOSE)
    for task in closing:
        task.cancel()
    await _cancel_again(closing)


async def _cancel_creation(service: tinker.ServiceClient) -> None:
    await _cancel_again(_tasks_of(service, _CREATE))


async def _cancel_again(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel what was cancelled, until that has an effect; on the SDK's loop.

    With Python 3.11, ``asyncio.wait_for``, in which the SDK's HTTP client waits, loses a
    cancellation that comes together with an answer or an error of the request (measured: 2 of 9
    closes, and 4 % of samples polled twenty times a second). The SDK takes an error for a failed
    connection, and tries for five minutes.
    """
    for _ in range(MOST_CANCELS):
        if not tasks:
            return
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)
        for task in tasks:
            task.cancel()


def _tasks_of(service: tinker.ServiceClient, names: frozenset[str]) -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if _is_of(service, names, task)}


def _is_of(service: tinker.ServiceClient, names: frozenset[str], task: asyncio.Task[Any]) -> bool:
    coroutine = task.get_coro()
    frame = getattr(coroutine, "cr_frame", None)
    if getattr(coroutine, "__name__", "") not in names or frame is None:
        return False
    # Either the SDK's method itself, or its wrapper that reports exceptions.
    inside = frame.f_locals.get("func")
    variables = frame.f_locals if inside is None else inspect.getclosurevars(inside).nonlocals
    return variables.get("self") is service


def give_up_creation(service: tinker.ServiceClient | None, creation: Future[Any]) -> None:
    """Cancel the creation of a client, which the SDK would otherwise try for minutes."""
    if creation.done():
        return
    creation.cancel()
    get_loop = _loop_of(service)
    if service is not None and get_loop is not None:
        asyncio.run_coroutine_threadsafe(_cancel_creation(service), get_loop())


def _loop_of(service: object) -> Any:
    """What returns the loop on which the SDK runs, if it has any."""
    return getattr(getattr(service, "_session_holder", None), "get_loop", None)


async def close(
    service: tinker.ServiceClient, status: CloseStatus, detail: str, *, deadline_s: float
) -> None:
    """Finish the session and stop everything that polls for it; never raises an Exception.

    Cancelling it, or reaching the deadline, leaves out what the service is still to be told.
    """
    closing = _Closing(service, status, detail)
    try:
        with anyio.fail_after(deadline_s):
            future = await anyio.to_thread.run_sync(closing.begin, abandon_on_cancel=True)
            await result_of(future)
    except TimeoutError:
        logger.warning(
            "closing a session took longer than %g s; the service will time it out", deadline_s
        )
    except Exception as error:  # noqa: BLE001 - nothing may depend on a session being closed
        if is_missing(error):
            say_no_finish(resolve_base_url(service._base_url))  # noqa: SLF001 - the SDK has no public way to ask
            return
        logger.warning("closing a session failed; the service will time it out: %r", error)
    finally:
        closing.end()


def close_here(
    service: tinker.ServiceClient, status: CloseStatus, detail: str, *, deadline_s: float
) -> None:
    """The same in a thread without an event loop, which it blocks."""
    closing = _Closing(service, status, detail)
    try:
        closing.begin().result(deadline_s)
    except Exception as error:  # noqa: BLE001 - as above
        logger.debug("closing a session that was given up: %r", error)
    finally:
        closing.end()
