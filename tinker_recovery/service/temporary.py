"""What is made at the service for a short while, and is gone afterwards, whatever happens."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import anyio

from tinker_recovery.errors import DeadlineExceeded
from tinker_recovery.service.base import Backend, CloseStatus, Connection, Origin
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.waiting import ended, result_of
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

TTL_S = 3600
"""The shortest the service allows: what could not be deleted is gone after that."""


@asynccontextmanager
async def opened(
    origin: Origin, backend: Backend, *, purpose: str, deadline_s: float, close_s: float
) -> AsyncGenerator[Connection]:
    """A client in a session of its own, which is finished on the way out, cancelled or not.

    Args:
        origin: How to make it.
        backend: Makes it.
        purpose: What it was for, in words; told to the service at the end.
        deadline_s: How long making it may take.
        close_s: How long finishing the session may take.

    Raises:
        DeadlineExceeded: Making it took longer than ``deadline_s``.
        Exception: Whatever the service answered.
    """
    connection = await backend.connect(origin, deadline_s=deadline_s)
    how: CloseStatus = "interrupted"
    try:
        yield connection
        how = "success"
    except Exception:
        how = "errored"
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close(connection, how, purpose, deadline_s=close_s)


@asynccontextmanager
async def stored(
    saving: Future[Any],
    expected: str,
    calls: CheckpointCalls,
    *,
    deadline_s: float,
    close_s: float,
) -> AsyncGenerator[str]:
    """A checkpoint or export that was just asked for, by its path; deleted on the way out.

    Being cancelled while the service still writes it waits, up to ``close_s``, for that to end:
    what is not there yet cannot be deleted.

    Args:
        saving: The request; its result has a ``path``.
        expected: The path it is going to have.
        calls: Where its deletion is asked for.
        deadline_s: How long saving it may take.
        close_s: How long it is waited for on the way out, and again how long deleting it may take.

    Raises:
        DeadlineExceeded: Saving it took longer than ``deadline_s``.
        Exception: Whatever the service answered.
    """
    try:
        try:
            with anyio.fail_after(deadline_s):
                saved = await result_of(saving)
        except TimeoutError as error:
            raise DeadlineExceeded(f"saving {expected}", deadline_s) from error
        yield str(saved.path)
    finally:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(close_s):
                await ended(saving)
            known = saving.done() and not saving.cancelled() and saving.exception() is None
            path = str(saving.result().path) if known else expected
            status = await calls.remove(path, deadline_s=close_s)
            if status is not None:
                logger.warning(
                    "%s was made for a short while and could not be deleted (%s): the service "
                    "deletes it by itself, %d s after it was made",
                    path,
                    status,
                    TTL_S,
                )
