"""Exporting a checkpoint's weights: loaded, exported, and cleaned up afterwards.

The service gives no access to the files of a checkpoint. An *export* does: the checkpoint is loaded
into a session of its own, its weights are saved in an external format, and the files are behind
signed URLs for a while. An export contains the weights, not the optimizer state.
"""

from __future__ import annotations

import secrets
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields

from tinker_recovery.errors import UsageError
from tinker_recovery.service.backend import TinkerBackend
from tinker_recovery.service.base import Connection, FromCheckpoint
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.temporary import TTL_S, opened, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long each part of an export may take, in seconds.

    Attributes:
        load_s: Loading the checkpoint into a session.
        answer_s: One forward pass of the loaded checkpoint.
        export_s: Saving its weights in the external format.
        silence_s: The longest gap between two bytes of a download.
        download_s: All files of one export.
        close_s: Each step of the cleanup.

    Raises:
        UsageError: A value is not above zero.
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


def loaded(
    path: str, backend: TinkerBackend, *, limits: Limits
) -> AbstractAsyncContextManager[Connection]:
    """A checkpoint's weights, loaded into a session of their own; see :func:`opened`."""
    return opened(
        FromCheckpoint(path, optimizer=False),
        backend,
        purpose="a checkpoint was verified",
        deadline_s=limits.load_s,
        close_s=limits.close_s,
    )


def exported(
    connection: Connection, calls: CheckpointCalls, *, limits: Limits
) -> AbstractAsyncContextManager[str]:
    """An export of a session's weights, by its path; see :func:`stored`."""
    name = f"verify-{secrets.token_hex(4)}"
    future = connection.training.save_weights_external(name, ttl_seconds=TTL_S)
    return stored(
        future.future(),
        f"tinker://{connection.run_id}/external_weights/{name}",
        calls,
        deadline_s=limits.export_s,
        close_s=limits.close_s,
    )
