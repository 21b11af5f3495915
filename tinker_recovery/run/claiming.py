"""Claiming: how a Supervisor's named runs are claimed at the service, watched, and given free."""

from __future__ import annotations

import functools
import logging
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import anyio

from tinker_recovery.clock import SYSTEM_CLOCK, growing_intervals
from tinker_recovery.errors import LeaseLost, StatusUnavailable, UsageError
from tinker_recovery.faults import DetectedBy
from tinker_recovery.journal.holder import Holder
from tinker_recovery.run.held_words import while_held
from tinker_recovery.service import StatusReader, claims
from tinker_recovery.service.claim_line import Claimant
from tinker_recovery.service.claims import Claims, Unguarded
from tinker_recovery.service.contact import unanswered
from tinker_recovery.service.guard import ClaimGuard, Guard
from tinker_recovery.service.heartbeats import ThreadHeartbeats
from tinker_recovery.service.http import Unreached
from tinker_recovery.shielding import to_the_end
from tinker_recovery.telemetry.names import SCOPE

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun

logger = logging.getLogger(SCOPE)

Lease = Literal["service", "journal", "both"]
"""What a named run is held by: a claim at the service, the lease in the journal, or both."""

SAY_S = 10.0
"""A run that waits for the end of an earlier one says so after this long, and again."""

_LEASES: tuple[Lease, ...] = get_args(Lease)


def check_lease(lease: str) -> None:
    """Refuse what is no way to hold a run.

    Raises:
        UsageError: It is none.
    """
    if lease not in _LEASES:
        raise UsageError(f"lease={lease!r} is not allowed: 'service', 'journal' or 'both'")


async def _until_released(name: str, guard: Guard) -> None:
    """Wait for a run of that name that has just ended here: its clients are being closed."""
    waited_s = 0.0
    for interval_s in growing_intervals(SAY_S):
        with anyio.move_on_after(interval_s):
            await guard.released.wait()
            return
        waited_s += interval_s
        logger.warning(
            "run %s was under way in this process until now, and has not closed its clients after "
            "%g s: its next run waits for that",
            name,
            waited_s,
        )


def is_dead(claimant: Claimant) -> bool:
    """Whether the process of a claim is known to be dead, as only one on this machine can be."""
    holder = Holder(claimant.host, claimant.machine, claimant.pid, claimant.born, 0.0, 0.0)
    return holder.lives() is False


def _how_to_look(name: str, claimant: Claimant) -> str:
    machine, journal = Holder.here(now=0.0, lease_s=0.0).machine, claimant.journal
    return while_held(
        name,
        pid=claimant.pid,
        host=claimant.host,
        here=bool(machine) and claimant.machine == machine,
        journal=Path(journal) if journal else None,
    )


class Claiming:
    """Claims the named runs of one Supervisor.

    Args:
        lease: What they are held by.
        reader: The service.
        journal: The Supervisor's journal; None if it is in memory.
        max_wait_s: How long a service that does not answer is waited for.
    """

    def __init__(
        self, lease: Lease, reader: StatusReader, journal: Path | None, *, max_wait_s: float
    ) -> None:
        here = Holder.here(now=0.0, lease_s=0.0)
        self._lease = lease
        self._reader = reader
        self._heartbeats = ThreadHeartbeats(reader.http.endpoint, claims.BEAT_S, self._not_reached)
        self._claims = Claims(
            reader.http,
            Claimant(
                here.host,
                here.pid,
                here.born,
                here.machine,
                "" if journal is None else str(journal.absolute()),
            ),
            is_dead=is_dead,
            heartbeats=self._heartbeats,
            # How long a service keeps a session that is silent is counted by no clock of a test's.
            clock=SYSTEM_CLOCK,
            settle_s=claims.SETTLE_S,
            beat_s=claims.BEAT_S,
            look_s=claims.LOOK_S,
        )
        self._claims.max_wait_s, self._claims.hint = max_wait_s, _how_to_look
        self._guards: dict[str, Guard] = {}
        self._said = False

    def _not_reached(self, how: Unreached, waited_s: float) -> None:
        self._reader.http.unreachable(how, waited_s)  # whoever listens now

    async def enter(
        self, name: str, *, on_held: Literal["wait", "refuse"], job: str | None = None
    ) -> Guard:
        """Claim a run, once no other process has it.

        The guard has to be released. It has no claim where the journal's lease has to do.

        Raises:
            RunHeld: Another process has it, and it is not to be waited for.
            ServiceUnusable: The service has not answered for ``max_wait_s``.
        """
        if self._lease == "journal":
            return Guard()
        earlier = self._guards.get(name)
        if earlier is not None:
            await _until_released(name, earlier)
        try:
            claim = await self._claims.enter(name, on_held=on_held, job=job)
        except StatusUnavailable as error:
            endpoint, limit_s = self._reader.http.endpoint, self._claims.max_wait_s
            raise unanswered(error, endpoint, name, limit_s) from error
        if isinstance(claim, Unguarded):
            self._say(name, claim)
            return Guard()
        guard = self._guards[name] = ClaimGuard(claim, self._claims, self._reader)
        return guard

    def robs_journal(self, guard: Guard) -> bool:
        """Whether the journal's lease is taken from whoever has it: the claim alone decides."""
        return self._lease == "service" and guard.claim is not None

    async def aclose(self) -> None:
        """Release what is still held, and send no more heartbeats; never raises an Exception."""
        await to_the_end(self._release_all())

    async def _release_all(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                for guard in self._guards.values():
                    group.start_soon(guard.release)
        finally:
            await self._heartbeats.aclose()

    def _say(self, name: str, why: Unguarded) -> None:
        if not self._said:
            self._said = True
            logger.warning(
                "two machines with a journal each could train run %s at once: at this service no "
                "claim on it can be held, as %s; the lease in the journal guards it from other "
                "processes that share the journal",
                name,
                why.why,
            )


async def end_when_lost(run: SupervisedRun) -> None:
    """End a run as soon as its claim is found to be lost; ends with the run."""
    guard = run.guard
    if not isinstance(guard, ClaimGuard):
        return
    async with anyio.create_task_group() as group:

        async def until_released() -> None:
            await guard.released.wait()
            group.cancel_scope.cancel()

        group.start_soon(until_released)
        await guard.claim.lost.wait()
        lost = await guard.loss()
        if not run.ended:
            run.lease_lost(lost, DetectedBy.CLAIM)
        group.cancel_scope.cancel()


async def claim_lost(run: SupervisedRun) -> LeaseLost | None:
    """Before a run says that it has come to its end: the error if it is another process's."""
    try:
        await run.guard.check()
    except LeaseLost as error:
        return error
    return None


async def end_and_give_free(
    ending: Coroutine[Any, Any, None],
    run: SupervisedRun,
    attempts: Iterable[AttemptScope | None],
    *,
    well: bool = False,
) -> None:
    """Carry out what a run's end needs, and release its guard then; both whoever cancels this.

    The next run of that name in this process waits for the guard. What no body has entered is
    closed in the background, where nobody waits for the guard.

    Args:
        ending: Has a deadline of its own.
        run: The run.
        attempts: All of its attempts.
        well: As of :func:`give_free`.
    """
    try:
        await to_the_end(ending)
    finally:
        if run.guard.claim is None:  # otherwise they are closed before it is given free
            for attempt in filter(None, attempts):
                if not (attempt.entered or attempt.closed):
                    run.spawn(functools.partial(attempt.close, "interrupted", "the run is over"))
        await give_free(run, attempts, well=well)


async def give_free(
    run: SupervisedRun, attempts: Iterable[AttemptScope | None], *, well: bool = False
) -> None:
    """Release the guard of a run that is over, once its sessions are closed.

    Never raises an Exception; completes even if cancelled, within two of ``close_timeout_s``. Of a
    run that has ended ``well``, what is owed to its checkpoints is done first, which may take one
    more and may be cancelled.
    """
    if run.guard.claim is None or run.guard.released.is_set():
        return
    limit_s = run.policy.close_timeout_s
    try:
        if well:
            await run.retention.settle_run(run, limit_s)
    finally:
        await to_the_end(_release(run, attempts, limit_s))


async def _release(
    run: SupervisedRun, attempts: Iterable[AttemptScope | None], limit_s: float
) -> None:
    with anyio.move_on_after(2 * limit_s):
        for attempt in filter(None, attempts):
            if attempt.faulty:
                # It is being replaced, and closed for that.
                with anyio.move_on_after(limit_s):
                    await attempt.gone.wait()
            await attempt.close("interrupted", "the run is over")
            await attempt.gone.wait()
    await run.guard.release()
