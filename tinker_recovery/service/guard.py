"""The guard of a run: its claim at the service, asked for before anything of the run is changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from tinker_recovery.errors import LeaseLost, StatusError, StatusUnavailable
from tinker_recovery.service.claims import LOOK_S, Claim
from tinker_recovery.service.status import session_id_of

ASK_HOLDER_S = 2.0
"""How long an error may take to find out which process has the run by now."""


class Guard:
    """What holds a run at the service: its claim, or nothing, and then every question is answered.

    Args:
        claim: The claim; None for a run that has none.
    """

    def __init__(self, claim: Claim | None = None) -> None:
        self.claim = claim
        self.released = anyio.Event()
        """Set once the run may be entered again by this process."""
        self._announced: set[str] = set()

    async def check(self, *, for_certain: bool = False) -> None:
        """Ask whether the run is still ours.

        Args:
            for_certain: Whether to fail if the service cannot be asked, for what can wait.

        Raises:
            LeaseLost: It is not: nothing of it may be recovered, saved or deleted here.
            StatusError: It could not be asked, with ``for_certain``. Else that proves nothing.
        """
        if self.claim is None:
            return
        try:
            held = await self.claim.still_held()
        except StatusError:
            if for_certain:
                raise
            return
        if not held:
            raise await self.loss(self.claim)

    @property
    def announce(self) -> Callable[[str], Awaitable[None]] | None:
        """What has to be called with a session's id before a model is made in it, if anything.

        It raises LeaseLost if the run is not ours any more, and StatusError if the session could
        not be noted at the service; it must not be used then.
        """
        return None if self.claim is None else self._announce

    async def begins(self, run_id: str) -> None:
        """An attempt is about to train: its session is noted, and the claim asked for.

        Waits as long as the service cannot be reached, if the session was not noted before.

        Raises:
            LeaseLost: The run is another process's by now.
            StatusRefused: The service refuses the note.
        """
        while self.claim is not None and session_id_of(run_id) not in self._announced:
            try:
                return await self.announce_made(run_id)
            except StatusUnavailable:
                await anyio.sleep(LOOK_S)
        return await self.check()

    async def announce_made(self, run_id: str) -> None:
        """The same for a Tinker run that exists, whose session may not have been known before."""
        if self.claim is not None:
            await self._announce(session_id_of(run_id))

    async def _announce(self, session_id: str) -> None:
        if self.claim is None or session_id in self._announced:
            return
        if not await self.claim.announce(session_id):
            raise await self.loss(self.claim)
        self._announced.add(session_id)

    async def loss(self, claim: Claim) -> LeaseLost:
        """The error of a claim that is gone, which says who has the run now."""
        holder = None
        with anyio.move_on_after(ASK_HOLDER_S):
            try:
                holder = await claim.holder_now()
            except StatusError:
                holder = None
        gone = f"the service has ended the claim of this process (session {claim.session_id})"
        if holder is None:
            said = (
                f"run {claim.name!r} is not held by this process any more: {gone}, which gave no "
                "sign of life for too long. No other process is known to have it: run the same "
                "command again"
            )
        else:
            said = (
                f"run {claim.name!r} has been taken over by another process, {holder}: {gone}. "
                "This process must stop training it, and saves and deletes nothing of it any more"
            )
        return LeaseLost(said, run=claim.name)

    async def release(self) -> None:
        """Give the run free, once every session of it is closed.

        Never raises an Exception; completes within seconds even if cancelled.
        """
        try:
            if self.claim is not None and not self.released.is_set():
                await self.claim.release()
        finally:
            self.released.set()
