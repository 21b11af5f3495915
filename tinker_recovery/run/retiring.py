"""Retiring: what is done about an attempt that a fault has ended, beside its recovery.

Its session is finished at the service at once, by a request of ours, while the checkpoint to go
back to is being chosen: a service may allow only so many training clients at a time, and the next
is about to be made. Its client is closed once the loop's body has let go of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tinker_recovery.faults import Fault, Kind
from tinker_recovery.recovery.resume import finish_session

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

CLOSE_BEHIND_S = 0.25
"""How long closing a client hit by a fault lets the one that replaces it go first."""

_DETAIL = "replaced by a recovery"


async def retire(attempt: AttemptScope, replaced: anyio.Event, fault: Fault | None = None) -> None:
    """Finish the session of an attempt, and close its client.

    Args:
        attempt: The attempt.
        replaced: Set when another client has taken over.
        fault: What has ended it; None if it was never used.
    """
    try:
        connection = attempt.connection
        ours = connection is not None and connection.service is not None
        if fault is not None and ours and fault.kind is not Kind.UNAVAILABLE:
            reader = attempt.run.collaborators.reader
            # Closing its client finishes it once more, which changes nothing.
            await finish_session(reader, attempt.run_id, "errored", _DETAIL)
        if attempt.entered and not attempt.blocking:
            with anyio.move_on_after(attempt.run.policy.close_timeout_s):
                await attempt.left.wait()
            # All of the SDK shares one thread: closing the old client would hold up the new.
            with anyio.move_on_after(CLOSE_BEHIND_S):
                await replaced.wait()
    finally:
        await attempt.close("errored", _DETAIL)
