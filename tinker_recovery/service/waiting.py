"""Waiting for the SDK's futures without owning them."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


async def ended(future: Future[Any]) -> None:
    """Wait until a future of another thread is done, also if it fails or is cancelled.

    Cancelling this wait does not cancel the future, as awaiting it directly would.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()  # at a third of the cost of an anyio.Event

    def wake() -> None:
        if not done.done():  # this wait may have been cancelled
            done.set_result(None)

    def ended_(_: Future[Any]) -> None:
        # The loop may be gone by the time an abandoned request ends.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(ended_)
    await done


async def result_of(future: Future[_T]) -> _T:
    """The result of a future of another thread, or its error.

    Cancelling this wait does not cancel the future.
    """
    await ended(future)
    return future.result()
