"""Manual recovery: the same machinery, one call, no supervision."""

from __future__ import annotations

from dataclasses import dataclass

import tinker

from tinker_recovery.checkpoints import Listed
from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.errors import NoUsableCheckpoint
from tinker_recovery.policy import CREATE_TIMEOUT_S
from tinker_recovery.recovery.inspector import Inspector
from tinker_recovery.service import (
    Connection,
    FromCheckpoint,
    Patience,
    StatusReader,
    TinkerBackend,
)
from tinker_recovery.service.base import CloseStatus, ServiceFactory
from tinker_recovery.service.listing import find_checkpoint, is_as_listed


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """A client made from a checkpoint.

    Attributes:
        client: The SDK's client, unsupervised.
        run_id: Its new Tinker run id.
        step: Optimizer steps in its weights; None if the checkpoint does not say.
        checkpoint: The path it was made from.
    """

    client: tinker.TrainingClient
    run_id: str
    step: int | None
    checkpoint: str
    _backend: TinkerBackend
    _connection: Connection

    async def aclose(self, status: CloseStatus = "success", *, deadline_s: float = 10.0) -> None:
        """Finish its session; to be called once the client is no longer needed."""
        await self._backend.close(self._connection, status, "", deadline_s=deadline_s)


async def recover_from_checkpoint(
    path: str,
    *,
    service: ServiceFactory = tinker.ServiceClient,
    restore_optimizer: bool = True,
    create_timeout_s: float = CREATE_TIMEOUT_S,
    status_timeout_s: float = 10.0,
    clock: Clock = SYSTEM_CLOCK,
) -> Recovered:
    """A new client in a new session, made from a checkpoint.

    Args:
        path: ``tinker://RUN/weights/NAME``, saved by anyone.
        service: Returns a fresh ServiceClient.
        restore_optimizer: Whether to restore the optimizer's moments with the weights.
        create_timeout_s: Seconds to wait for the client without a word of the service that it is at
            work on it; while it says so, it is waited for.
        status_timeout_s: Deadline for looking the checkpoint up, in seconds.
        clock: Time, for tests.

    Raises:
        UsageError: ``path`` has another form.
        NoUsableCheckpoint: It has expired, is about to, or was written again meanwhile.
        StatusError: It could not be looked up.
        DeadlineExceeded: Making the client took too long.
        Exception: Whatever the service answered.

    Cancelling it leaves no session behind.
    """
    backend = TinkerBackend(service)
    step: int | None = None
    async with StatusReader(
        await backend.endpoint(), timeout_s=status_timeout_s, wall=clock.wall
    ) as reader:
        try:
            record = await find_checkpoint(reader, path)
        except NoUsableCheckpoint:
            # Not listed, or saved by someone else: the service decides whether it can be loaded.
            record = None
        if record is not None:
            # What the user names is taken whatever its metadata says, if it can still be loaded.
            listing = Inspector(reader).listing(path, Listed.of(record))
            if not listing.ok:
                raise NoUsableCheckpoint(f"{path}: {listing.reason}")
            step = record.step
        connection = await backend.connect(
            FromCheckpoint(path, optimizer=restore_optimizer), patience=Patience(create_timeout_s)
        )
        recovered = Recovered(
            connection.training, connection.run_id, step, path, backend, connection
        )
        good = False
        try:
            good = record is None or await is_as_listed(reader, Listed.of(record))
        finally:
            if not good:
                await recovered.aclose("interrupted")
    if not good:
        raise NoUsableCheckpoint(
            f"{path} was written again while it was loaded, so whether step {step} was loaded is "
            "not known: try again, or give a checkpoint that nothing overwrites"
        )
    return recovered
