"""Temporary sessions and checkpoints at the service, removed on the way out in any case."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import anyio

from tinker_recovery.errors import DeadlineExceeded
from tinker_recovery.service.at_work import Patience
from tinker_recovery.service.backend import TinkerBackend
from tinker_recovery.service.base import CloseStatus, Connection, Origin
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.waiting import ended, result_of
from tinker_recovery.shielding import to_the_end
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

TTL_S = 3600
"""The shortest lifetime the service allows, for what cannot be deleted."""


@asynccontextmanager
async def opened(
    origin: Origin, backend: TinkerBackend, *, purpose: str, deadline_s: float, close_s: float
) -> AsyncGenerator[Connection]:
    """A client in a session of its own, which is closed on the way out, also when cancelled.

    Args:
        origin: How to create the client.
        backend: Creates it.
        purpose: What it was for; sent to the service when the session is closed.
        deadline_s: How long creating it may take.
        close_s: How long closing the session may take.

    Raises:
        DeadlineExceeded: Creating it took longer than ``deadline_s``.
        Exception: The service's error.
    """
    connection = await backend.connect(origin, patience=Patience(deadline_s, limit_s=deadline_s))
    status: CloseStatus = "interrupted"
    try:
        yield connection
        status = "success"
    except Exception:
        status = "errored"
        raise
    finally:
        await backend.close(connection, status, purpose, deadline_s=close_s)


@asynccontextmanager
async def stored(
    saving: Future[Any],
    expected: str,
    calls: CheckpointCalls,
    *,
    deadline_s: float,
    close_s: float,
) -> AsyncGenerator[str]:
    """The path of a checkpoint or export that is being saved; it is deleted on the way out.

    If cancelled while it is being saved, waits up to ``close_s`` for that to end, since only then
    can it be deleted.

    Args:
        saving: The request; its result has a ``path``.
        expected: The path it is going to have.
        calls: Deletes it.
        deadline_s: How long saving it may take.
        close_s: How long to wait for it on the way out, and again how long deleting it may take.

    Raises:
        DeadlineExceeded: Saving it took longer than ``deadline_s``.
        Exception: The service's error.
    """
    try:
        try:
            with anyio.fail_after(deadline_s):
                saved = await result_of(saving)
        except TimeoutError as error:
            raise DeadlineExceeded(f"saving {expected}", deadline_s) from error
        yield str(saved.path)
    finally:
        await to_the_end(_delete(saving, expected, calls, close_s))


async def _delete(
    saving: Future[Any], expected: str, calls: CheckpointCalls, close_s: float
) -> None:
    with anyio.move_on_after(close_s):
        await ended(saving)
    known = saving.done() and not saving.cancelled() and saving.exception() is None
    path = str(saving.result().path) if known else expected
    status = await calls.remove(path, deadline_s=close_s)
    if status is not None:
        logger.warning(
            "%s was temporary but could not be deleted (%s): the service deletes it %d s "
            "after it was saved",
            path,
            status,
            TTL_S,
        )
