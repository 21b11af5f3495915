"""Asking a database that may be out of reach: it is waited for, and no run ends by it."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from tinker_recovery.clock import Reminder
from tinker_recovery.telemetry.names import SCOPE
from tinker_recovery.telemetry.redaction import redact

logger = logging.getLogger(SCOPE)

_T = TypeVar("_T")

AGAIN_S: Final = 1.0
"""Seconds before a database that could not be reached is asked again."""


async def in_thread(function: Callable[..., _T], *given: object) -> _T:
    """What a blocking function returns, called in a worker thread."""
    return await anyio.to_thread.run_sync(functools.partial(function, *given))


def is_out_of_reach(error: Exception) -> bool:
    """Whether the database may answer again: it is restarted, there is no network, a full disk."""
    from sqlalchemy import exc  # noqa: PLC0415 - of the engine, which is imported when it is used

    passing = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, passing)


async def until_reached(function: Callable[..., _T], *given: object) -> _T:
    """What a call of the database returns; called again while that is out of reach. Cancellable.

    For what does no harm if it is done twice: whether a call was carried out whose connection broke
    is not known.
    """
    reminder, began = Reminder(at_once=True), time.monotonic()
    while True:
        try:
            return await in_thread(function, *given)
        except Exception as error:
            if not is_out_of_reach(error):
                raise
            lasted_s = time.monotonic() - began
            if reminder.is_due(lasted_s):
                logger.warning(
                    "the database of jobs cannot be reached (%s), for %.0f s so far: it is asked "
                    "again until it can, and runs go on",
                    reason(error),
                    lasted_s,
                )
        await anyio.sleep(AGAIN_S)


def reason(error: Exception) -> str:
    """Why it is out of reach, for people: in one line, without secrets."""
    return redact(str(getattr(error, "orig", None) or error)).partition("\n")[0]
