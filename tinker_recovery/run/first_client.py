"""The first client of a run, made as the user said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinker_recovery.checkpoints import Listed
from tinker_recovery.errors import NoUsableCheckpoint
from tinker_recovery.service import Connection, Origin, Patience
from tinker_recovery.service.listing import is_as_listed
from tinker_recovery.telemetry.text import counted

if TYPE_CHECKING:
    from tinker_recovery.run.supervised import SupervisedRun


async def first_client(run: SupervisedRun, origin: Origin, patience: Patience) -> Connection:
    """A client made as the user said; cancelling it leaves no session behind.

    Raises:
        LeaseLost: The run is another process's by now.
        NoUsableCheckpoint: The checkpoint it was made from was written again meanwhile.
        StatusError: Whether it was cannot be found out.
        Exception: Whatever the service answered.
    """
    having = run.collaborators
    connection = await having.backend.connect(
        origin, patience=patience, announce=run.guard.announce
    )
    good = False
    try:
        await run.guard.announce_run(connection.run_id)
        good = run.root is None or await is_as_listed(having.reader, Listed.of(run.root))
    finally:
        if not good:
            await having.backend.close(
                connection,
                "interrupted",
                "it may have been made from another checkpoint",
                deadline_s=run.policy.close_timeout_s,
            )
    if not good:
        raise NoUsableCheckpoint(
            f"{run.parent} was written again while run {run.name!r} was started from it, so it is "
            f"not known whether its weights have {counted(run.start_step, 'step')}: run it again, "
            "which starts from what is there by then, or start from a checkpoint that nothing "
            "overwrites"
        )
    return connection
