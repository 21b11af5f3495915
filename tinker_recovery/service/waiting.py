"""Waiting for the SDK's futures without owning them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio

_T = TypeVar("_T")


def ended(future: Future[Any]) -> asyncio.Future[None]:
    """Done when a future of another thread is, also if that fails or is cancelled.

    Cancelling a wait for it does not cancel the future, as awaiting that directly would. A loop
    calls this twice a step, so it is no coroutine, at a third of the cost of an ``anyio.Event``.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not done.done():  # the wait for it may have been cancelled
            done.set_result(None)

    def call(_: Future[Any]) -> None:
        try:  # noqa: SIM105 - suppress() costs more than all else here
            loop.call_soon_threadsafe(wake)
        except RuntimeError:
            pass  # the loop may be gone by the time an abandoned request ends

    future.add_done_callback(call)
    return done


async def end_all(futures: Sequence[Future[Any]], *, within_s: float) -> None:
    """Let futures of the SDK end by themselves for so long, and then cancel those that have not.

    One that is cancelled just as its task fails leaves an exception that nobody retrieves: the
    task finds its future cancelled and drops it unread, for which asyncio prints a traceback. What
    a closed session still answers comes within a moment of its closing.
    """
    with anyio.move_on_after(within_s):
        for future in futures:
            await ended(future)
    for future in futures:
        future.cancel()


async def result_of(future: Future[_T]) -> _T:
    """The result of a future of another thread, or its error.

    Cancelling this wait does not cancel the future.
    """
    await ended(future)
    return future.result()
