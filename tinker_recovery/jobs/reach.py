"""Asking a database that may be out of reach: it is waited for, and no run ends by it."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from tinker_recovery.clock import Reminder
from tinker_recovery.errors import JournalError
from tinker_recovery.jobs.database import shown
from tinker_recovery.telemetry.names import SCOPE
from tinker_recovery.telemetry.redaction import redact

logger = logging.getLogger(SCOPE)

_T = TypeVar("_T")

AGAIN_S: Final = 1.0
"""Seconds before a database that could not be reached is asked again."""

_READ_ONLY: Final = "25006"
"""PostgreSQL's code for a database that cannot be written for now."""


async def in_thread(function: Callable[..., _T], *given: object) -> _T:
    """What a blocking function returns, called in a worker thread."""
    return await anyio.to_thread.run_sync(functools.partial(function, *given))


def why_out_of_reach(error: Exception) -> str | None:
    """Why the database does not answer now and may again, in one line without secrets.

    It is restarted, there is no network, a full disk, or it is the standby of one that has failed.
    None of an error that asking again does not end.
    """
    from sqlalchemy import exc  # noqa: PLC0415 - of the engine, which is imported when it is used

    passing = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)
    why = getattr(error, "orig", None)
    if not isinstance(error, passing) and not (
        isinstance(error, exc.DBAPIError)
        and (error.connection_invalidated or getattr(why, "sqlstate", None) == _READ_ONLY)
    ):
        return None
    return redact(str(why or error)).partition("\n")[0]


@contextlib.contextmanager
def named_outage(url: str) -> Iterator[None]:
    """Have what asks the database once raise an error that says what to do while that is away.

    Raises:
        JournalError: The database is out of reach.
    """
    try:
        yield
    except Exception as error:
        why = why_out_of_reach(error)
        if why is None:
            raise
        raise JournalError(
            f"the database of jobs at {shown(url)} cannot be reached: {why}. Runs go on, and doing "
            "this twice does no harm: do it again once the database answers"
        ) from None


async def once_if_reached(function: Callable[..., object], *given: object, otherwise: str) -> None:
    """Ask the database once; if it is out of reach, log what follows from that."""
    try:
        await in_thread(function, *given)
    except Exception as error:
        why = why_out_of_reach(error)
        if why is None:
            raise
        logger.warning("the database of jobs cannot be reached (%s), and so %s", why, otherwise)


async def until_answered(ask: Callable[[], Awaitable[_T]]) -> _T:
    """What the database is asked for; asked again while that is out of reach. Cancellable.

    For what does no harm if it is done twice: whether a call was carried out whose connection broke
    is not known.
    """
    reminder, began = Reminder(at_once=True), time.monotonic()
    while True:
        try:
            return await ask()
        except Exception as error:
            why = why_out_of_reach(error)
            if why is None:
                raise
            lasted_s = time.monotonic() - began
            if reminder.is_due(lasted_s):
                logger.warning(
                    "the database of jobs cannot be reached (%s), for %.0f s so far: it is asked "
                    "again until it can, and runs go on",
                    why,
                    lasted_s,
                )
        await anyio.sleep(AGAIN_S)


async def until_reached(function: Callable[..., _T], *given: object) -> _T:
    """The same of a blocking call of the database, made in a worker thread."""
    return await until_answered(functools.partial(in_thread, function, *given))
