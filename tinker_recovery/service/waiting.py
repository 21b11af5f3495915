"""Waiting for the SDK's futures without owning them."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, TypeVar

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


async def result_of(future: Future[_T]) -> _T:
    """The result of a future of another thread, or its error.

    Cancelling this wait does not cancel the future.
    """
    await ended(future)
    return future.result()
