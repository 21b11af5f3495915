"""A checkpoint's weights brought out of the service: loaded, exported, and cleaned up after.

The service hands out no file of a checkpoint as such. What can be had is an *export*: the
checkpoint is loaded into a session of its own, its weights are saved in an external format, and
their files lie behind signed addresses for a while. An export holds the weights alone, not the
optimizer's moments.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any

import anyio

from tinker_recovery.errors import DeadlineExceeded, UsageError
from tinker_recovery.service.base import Backend, CloseStatus, Connection, FromCheckpoint
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.waiting import ended, result_of
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

EXPORT_TTL_S = 3600
"""The shortest the service allows: an export nobody could delete is gone after that."""

_AGAIN_S = 0.5
_OK, _NOT_OK, _NOT_FOUND = 200, 300, 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long each part of an export may take, in seconds.

    Attributes:
        load_s: Loading the checkpoint into a session.
        answer_s: One forward pass of the loaded checkpoint.
        export_s: Saving its weights in the external format.
        silence_s: No byte of a download arrives.
        download_s: All files of one export.
        close_s: Each part of the cleaning up.

    Raises:
        UsageError: One is not above zero.
    """

    load_s: float = 240.0
    answer_s: float = 240.0
    export_s: float = 600.0
    silence_s: float = 60.0
    download_s: float = 7200.0
    close_s: float = 10.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not value > 0:
                raise UsageError(f"{each.name}={value!r} is not allowed: seconds, above 0")


@asynccontextmanager
async def loaded(path: str, backend: Backend, *, limits: Limits) -> AsyncGenerator[Connection]:
    """A checkpoint's weights in a session of their own, finished on the way out, whatever happens.

    Raises:
        DeadlineExceeded: It took longer than ``limits.load_s``.
        Exception: Whatever the service answered.
    """
    origin = FromCheckpoint(path, optimizer=False)
    connection = await backend.connect(origin, deadline_s=limits.load_s)
    how: CloseStatus = "interrupted"
    try:
        yield connection
        how = "success"
    except Exception:
        how = "errored"
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close(
                connection, how, "a checkpoint was looked at", deadline_s=limits.close_s
            )


@asynccontextmanager
async def exported(
    connection: Connection, calls: CheckpointCalls, *, limits: Limits
) -> AsyncGenerator[str]:
    """An export of a session's weights, by its path; deleted on the way out, whatever happens.

    Being cancelled while the service still writes it waits, up to ``limits.close_s``, for that to
    end: what is not there yet cannot be deleted.

    Raises:
        DeadlineExceeded: It took longer than ``limits.export_s``.
        Exception: Whatever the service answered.
    """
    name = f"verify-{secrets.token_hex(4)}"
    future = connection.training.save_weights_external(name, ttl_seconds=EXPORT_TTL_S)
    saving: Future[Any] = future.future()
    try:
        try:
            with anyio.fail_after(limits.export_s):
                saved = await result_of(saving)
        except TimeoutError as error:
            raise DeadlineExceeded("exporting a checkpoint's weights", limits.export_s) from error
        yield str(saved.path)
    finally:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(limits.close_s):
                await ended(saving)
            stored = saving.done() and not saving.cancelled() and saving.exception() is None
            path = f"tinker://{connection.run_id}/external_weights/{name}"
            await _delete(str(saving.result().path) if stored else path, calls, limits)


async def _delete(path: str, calls: CheckpointCalls, limits: Limits) -> None:
    status: int | None = None
    with anyio.move_on_after(limits.close_s):
        while True:
            status = await calls.delete(path)
            if status is not None and (_OK <= status < _NOT_OK or status == _NOT_FOUND):
                return
            await anyio.sleep(_AGAIN_S)
    logger.warning(
        "the temporary export %s could not be deleted (%s): the service deletes it by itself, %d s "
        "after it was made",
        path,
        "no answer" if status is None else f"HTTP {status}",
        EXPORT_TTL_S,
    )
