"""Retiring: what is done about an attempt that a fault has ended, beside its recovery.

Its session is finished at the service at once, by a request of ours, while the checkpoint to go
back to is being chosen: a service may allow only so many training clients at a time, and the next
is about to be made. Its client is closed once the loop's body has let go of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tinker_recovery.recovery.resume import finish_session

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

CLOSE_BEHIND_S = 0.25
"""How long closing a client hit by a fault lets the one that replaces it go first."""

_DETAIL = "replaced by a recovery"


async def finish(attempt: AttemptScope) -> None:
    """Finish the session of an attempt, if it is ours; best effort, never raises an Exception.

    Beside :func:`retire` and not before it: a service that is silent must not hold up the closing
    of the client, which is all that ends a loop that blocks. That finishes the session once more,
    which changes nothing.
    """
    connection = attempt.connection
    if connection is not None and connection.service is not None:
        reader = attempt.run.collaborators.reader
        await finish_session(reader, attempt.run_id, "errored", _DETAIL)


async def retire(attempt: AttemptScope, replaced: anyio.Event) -> None:
    """Close the client of an attempt, once its body has let go of it.

    Args:
        attempt: The attempt.
        replaced: Set when another client has taken over.
    """
    try:
        if attempt.entered and not attempt.blocking:
            with anyio.move_on_after(attempt.run.policy.close_timeout_s):
                await attempt.left.wait()
            # All of the SDK shares one thread: closing the old client would hold up the new.
            with anyio.move_on_after(CLOSE_BEHIND_S):
                await replaced.wait()
    finally:
        await attempt.close("errored", _DETAIL)
