"""The guard of a run: its claim at the service, asked for before anything of the run is changed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable

import anyio

from tinker_recovery.errors import LeaseLost, StatusError, StatusRefused
from tinker_recovery.service.claims import Claim, Claims
from tinker_recovery.service.contact import unknown_there
from tinker_recovery.service.status import StatusReader, session_id_of
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

ASK_HOLDER_S = 2.0
"""How long an error may take to find out which process has the run by now."""


class Guard:
    """What holds a run at the service: a claim; or nothing, and then it is always ours."""

    released: anyio.Event
    """Set once the run may be entered again by this process."""

    def __init__(self) -> None:
        self.released = anyio.Event()

    @property
    def claim(self) -> Claim | None:
        """The claim, if there is one."""
        return None

    @property
    def announce(self) -> Callable[[str], Awaitable[None]] | None:
        """What has to be called with a session's id before a model is made in it, if anything."""
        return None

    async def announce_run(self, run_id: str) -> None:
        """The same for a Tinker run that exists, whose session could not be known before."""

    async def begins(self, run_id: str) -> None:
        """An attempt is about to train in this Tinker run.

        Raises:
            LeaseLost: It must not.
        """
        await self.announce_run(run_id)
        await self.check()

    async def check(self, *, for_certain: bool = False) -> None:
        """Ask whether the run is still ours.

        Args:
            for_certain: Whether to fail if the service cannot be asked, for what can wait.

        Raises:
            LeaseLost: It is not: nothing of it may be recovered, saved or deleted here.
            StatusError: It could not be asked, with ``for_certain``. Else that proves nothing.
        """

    async def release(self) -> None:
        """Give the run free, once every session of it is closed.

        Never raises an Exception; completes within seconds even if cancelled.
        """
        self.released.set()


class ClaimGuard(Guard):
    """A guard with a claim.

    Args:
        claim: The claim.
        claims: What it was made by.
        reader: The service, to ask what it knows of the run once the claim is gone.
    """

    def __init__(self, claim: Claim, claims: Claims, reader: StatusReader | None = None) -> None:
        super().__init__()
        self._reader = reader
        self._run_ids: list[str] = []
        self._claim = claim
        self._claims = claims
        self._announced: set[str] = set()

    @property
    def claim(self) -> Claim:
        """The claim."""
        return self._claim

    @property
    def announce(self) -> Callable[[str], Awaitable[None]]:
        """Have whoever takes the run over find this session, before a model is made in it.

        Waits for a service that cannot be reached, for ``max_wait_s`` at most, and reports that at
        growing intervals. What it returns raises LeaseLost if the run is another process's by now,
        and StatusUnavailable if that cannot be asked.
        """
        return self._announce

    async def begins(self, run_id: str) -> None:
        """As :meth:`Guard.begins` says."""
        await super().begins(run_id)
        self._run_ids.append(run_id)

    async def announce_run(self, run_id: str) -> None:
        """The same for the session of a Tinker run; does nothing if that was announced before."""
        await self._announce(session_id_of(run_id))

    async def _announce(self, session_id: str) -> None:
        if session_id in self._announced:
            return
        announce = functools.partial(self._claim.announce, session_id)
        try:
            if not await self._claims.until_answered(self._claim.name, announce):
                raise await self.loss()
        except StatusRefused as error:
            logger.warning(
                "run %s: the service refuses to note that it is trained in session %s, so a "
                "process on another machine that takes the run over may not end it: %s",
                self._claim.name,
                session_id,
                error,
            )
        self._announced.add(session_id)

    async def check(self, *, for_certain: bool = False) -> None:
        """As :meth:`Guard.check` says."""
        try:
            held = await self._claim.still_held()
        except StatusError:
            if for_certain:
                raise
            return
        if not held:
            raise await self.loss()

    async def loss(self) -> LeaseLost:
        """The error of a claim that is gone, which says who has the run now, or why it is gone."""
        holder, emptied = None, ""
        with anyio.move_on_after(ASK_HOLDER_S):
            try:
                holder = await self._claim.holder_now()
                if holder is None:
                    emptied = await self._if_unknown()
            except StatusError as error:
                logger.debug("asking who claims run %s: %s", self._claim.name, error)
        name = self._claim.name
        gone = f"the service has ended the claim of this process (session {self._claim.session_id})"
        if emptied:
            said = f"run {name!r} is not held by this process any more: {emptied}"
        elif holder is None:
            said = (
                f"run {name!r} is not held by this process any more: {gone}, which gave no sign of "
                "life for too long. No other process is known to have it: run the same command "
                "again"
            )
        else:
            said = (
                f"run {name!r} has been taken over by another process, {holder}: {gone}. This "
                "process must stop training it, and saves and deletes nothing of it any more"
            )
        return LeaseLost(said, run=name)

    async def _if_unknown(self) -> str:
        """What to say if the service knows nothing of the run any more; else empty."""
        if self._reader is None or not await self._reader.knows_nothing_of(self._run_ids):
            return ""
        return unknown_there(self._reader.http.endpoint, self._claim.name)

    async def release(self) -> None:
        """As :meth:`Guard.release` says."""
        try:
            if not self.released.is_set():
                await self._claim.release()
        finally:
            await super().release()
