"""Claims of named runs at the service, as a Supervisor and its runs hold them.

What a claim is, and how one is won, is in :mod:`tinker_recovery.service.claims`. Here is when it is
asked for: before anything of a run is touched, before a client is used, before a checkpoint is
deleted; and what happens once it is lost.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Literal, get_args

import anyio
from anyio.abc import TaskGroup

from tinker_recovery.clock import Clock
from tinker_recovery.errors import LeaseLost, StatusError, StatusRefused
from tinker_recovery.journal.holder import Holder
from tinker_recovery.recovery.collaborators import Spawn
from tinker_recovery.service import claims as at_service
from tinker_recovery.service.claim_line import Claimant
from tinker_recovery.service.claims import Claim, Claims, Unguarded
from tinker_recovery.service.http import ServiceHttp
from tinker_recovery.service.status import session_id_of
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

Guard = Literal["service", "journal", "both"]
"""Who sees to it that one process trains a named run."""

GUARDS: tuple[Guard, ...] = get_args(Guard)


class RunClaim:
    """The claim that guards one run.

    Args:
        claim: The claim.
        claims: What it was made by.
    """

    def __init__(self, claim: Claim, claims: Claims) -> None:
        self._claim = claim
        self._claims = claims
        self._announced: set[str] = set()
        self._watching = anyio.CancelScope()

    async def announce(self, run_id: str) -> None:
        """Have whoever takes the run over find the session of this Tinker run, before it trains.

        Waits as long as the service cannot be reached, and reports that at growing intervals.

        Raises:
            LeaseLost: Another process has the run by now.
        """
        session = session_id_of(run_id)
        if session in self._announced:
            return
        announce = functools.partial(self._claim.announce, session)
        try:
            if not await self._claims.until_answered(announce):
                raise await self.loss()
        except StatusRefused as error:
            logger.warning(
                "run %s: the service refuses to note that it is trained in session %s, so a "
                "process on another machine that takes the run over may not end it: %s",
                self._claim.name,
                session,
                error,
            )
        self._announced.add(session)

    async def still_held(self) -> bool:
        """Whether the run is still ours, by the word of the service.

        Raises:
            StatusError: The service does not say; that is no word for it.
        """
        return await self._claim.still_held()

    async def loss(self) -> LeaseLost:
        """The error that says who has the run now."""
        holder = None
        try:
            holder = await self._claim.holder_now()
        except StatusError as error:
            logger.debug("asking who claims run %s: %s", self._claim.name, error)
        who = "another process" if holder is None else str(holder)
        name = self._claim.name
        return LeaseLost(
            f"the claim on run {name!r} was ended at the service: {who} has taken the run over, as "
            "no heartbeat of this process arrived. This process must stop training it",
            run=name,
        )

    async def watch(self, lost: Callable[[LeaseLost], object]) -> None:
        """Wait until the claim is lost, and report that; returns as well once it is released."""
        with self._watching:
            await self._claim.lost.wait()
            lost(await self.loss())

    async def release(self) -> None:
        """Give the run free; never raises an Exception. What else it needs is in ``Claim``."""
        self._watching.cancel()
        await self._claim.release()


class ClaimedRuns:
    """Claims the named runs of one Supervisor.

    A run that has ended stays claimed until the Supervisor ends, as its checkpoints are looked
    after until then; or until it is run again, which claims it anew.

    Args:
        guard: ``"journal"`` claims none.
        http: The service.
        journal: The journal's file, for people to see; None if it is in memory.
        group: Where heartbeats run; each ends with its claim.
        spawn: Runs something until the Supervisor ends.
        clock: For waits.
    """

    def __init__(
        self,
        guard: Guard,
        http: ServiceHttp,
        *,
        journal: object,
        group: TaskGroup,
        spawn: Spawn,
        clock: Clock,
    ) -> None:
        self.guard = guard
        self._spawn = spawn
        self._said = False
        self._held: dict[str, RunClaim] = {}
        here = Holder.here(now=clock.wall(), lease_s=0.0)
        claimant = Claimant(here.host, here.pid, here.born, here.machine, str(journal or ""))
        self._claims = Claims(
            http,
            claimant,
            is_dead=_is_dead,
            group=group,
            clock=clock,
            settle_s=at_service.SETTLE_S,
            beat_s=at_service.BEAT_S,
        )

    async def claim(self, name: str, *, on_held: Literal["wait", "refuse"]) -> RunClaim | None:
        """Take a run for this process; None if it is not guarded by the service.

        Raises:
            RunHeld: Another process has it, and it is not to be waited for.
        """
        if self.guard == "journal":
            return None
        await self.release(name)
        claim = await self._claims.enter(name, on_held=on_held)
        if isinstance(claim, Unguarded):
            if not self._said:
                self._said = True
                logger.warning(
                    "two machines with a journal each could train run %s at once: at this service "
                    "no claim on it can be held, as %s; the lease in the journal guards it from "
                    "other processes that share the journal",
                    name,
                    claim.why,
                )
            return None
        held = self._held[name] = RunClaim(claim, self._claims)
        return held

    async def release(self, name: str) -> None:
        """Give a run free, if it is claimed; never raises an Exception."""
        held = self._held.pop(name, None)
        if held is not None:
            await held.release()

    async def aclose(self) -> None:
        """Give every run free, once their clients are closed; never raises an Exception."""
        async with anyio.create_task_group() as group:
            for name in list(self._held):
                group.start_soon(self.release, name)

    def watch(self, claim: RunClaim, lost: Callable[[LeaseLost], object]) -> None:
        """Report the loss of a claim until it is released."""
        self._spawn(functools.partial(claim.watch, lost))


def _is_dead(claimant: Claimant) -> bool:
    """Whether a process of this machine has ended; one of another cannot be seen."""
    seen = Holder(claimant.host, claimant.machine, claimant.pid, claimant.born, 0.0, 0.0)
    return seen.lives() is False
