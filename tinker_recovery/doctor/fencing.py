"""Whether a service lets only one process train a run: two claims, the second of which takes over.

It is done as a Supervisor does it, with a session of training that the first claim has announced:
the first holds, the second is refused, then it takes the run over as from a process that is known
to be dead. From then on the service has to refuse what the first still asks.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import replace

import anyio
import anyio.abc
import tinker

from tinker_recovery.clock import Clock
from tinker_recovery.doctor.examination import PROBE, results
from tinker_recovery.doctor.facts import FAILED, Fact, fact, short
from tinker_recovery.errors import RunHeld, StatusError, causes
from tinker_recovery.service.claim_line import CLAIM, Claimant, SeenClaim
from tinker_recovery.service.claim_sessions import ClaimSessions, Http
from tinker_recovery.service.claims import BEAT_S, UNSHOWN_S, Claim, Claims, Unguarded
from tinker_recovery.service.heartbeats import TaskHeartbeats

LIMIT_S = 2 * UNSHOWN_S
"""How long it may take: the longest wait for a service that never shows a claim, and the rest."""

_WHAT = "one trainer"
_GONE = frozenset({404, 409, 410})
"""What the service may answer to training in a session that is finished."""


class _NotFenced(Exception):
    """Claims do not hold at this service."""


class _Unguarded(Exception):
    """No claim can be held at this service, so the journal's lease has to do."""


async def try_fencing(
    http: Http,
    training: tinker.TrainingClient,
    session_id: str,
    *,
    clock: Clock,
    close_s: float,
    limit_s: float = LIMIT_S,
) -> Fact:
    """Try it; the training's session is finished where the service fences.

    Opens up to four sessions, which are finished on every way out, cancellation included. What
    fails is a fact of its own, and no error.

    Args:
        http: The HTTP client of the service.
        training: A client, which is not to be used afterwards.
        session_id: The session of that client.
        clock: For the waits of claims.
        close_s: How long finishing the sessions may take, in seconds.
        limit_s: How long the rest may take, in seconds.
    """
    sessions = _Sessions(http)
    found = fact(_WHAT, FAILED, f"it took longer than {limit_s:g} s")
    try:
        with anyio.move_on_after(limit_s):
            async with anyio.create_task_group() as group:
                try:
                    found = await _tried(sessions, training, session_id, clock, group)
                except _Unguarded as error:
                    found = fact(_WHAT, "by the journal", short(error))
                except _NotFenced as error:
                    found = fact(_WHAT, "no", short(error))
                except (tinker.TinkerError, StatusError) as error:
                    found = fact(_WHAT, FAILED, short(error))
                group.cancel_scope.cancel()
    finally:
        with anyio.move_on_after(close_s, shield=True):
            for each in sessions.opened:
                await sessions.finish(each, "success", "an experiment ended")
    return found


async def _tried(
    sessions: _Sessions,
    training: tinker.TrainingClient,
    session_id: str,
    clock: Clock,
    group: anyio.abc.TaskGroup,
) -> Fact:
    name = f"doctor-{secrets.token_hex(4)}"
    here = Claimant(socket.gethostname(), os.getpid(), "", "", "")
    there = replace(here, host=f"{here.host}, tried as another")
    dead: set[Claimant] = set()

    def claims_of(claimant: Claimant) -> Claims:
        claims = Claims(
            sessions.http,
            claimant,
            is_dead=dead.__contains__,
            heartbeats=TaskHeartbeats(sessions, group, clock, BEAT_S),
            clock=clock,
        )
        claims.sessions = sessions
        return claims

    other = claims_of(there)
    first = _guarded(await claims_of(here).enter(name, on_held="refuse"))
    if not await first.announce(session_id):
        raise _NotFenced("a claim ended although its heartbeats were answered")
    try:
        _guarded(await other.enter(name, on_held="refuse"))
    except RunHeld:
        pass
    else:
        raise _NotFenced("two claims were held at once")
    dead.add(here)
    _guarded(await other.enter(name, on_held="wait"))
    if await first.still_held():
        raise _NotFenced("heartbeats of a finished session are taken")
    if not await _refused(training):
        return fact(_WHAT, "claims alone", "a finished session is trained in")
    return fact(_WHAT, "listed late" if sessions.late else "on any machine")


def _guarded(entered: Claim | Unguarded) -> Claim:
    if isinstance(entered, Unguarded):
        raise _Unguarded(entered.why)
    return entered


async def _refused(training: tinker.TrainingClient) -> bool:
    """Whether the service refuses to train; raises any error that is no refusal."""
    try:
        await results([training.forward_backward(PROBE, "cross_entropy")])
    except tinker.TinkerError as error:
        if any(getattr(each, "status_code", None) in _GONE for each in causes(error)):
            return True
        raise
    return False


class _Sessions(ClaimSessions):
    """Remembers what it has opened, and whether a look did not show it yet."""

    def __init__(self, http: Http) -> None:
        super().__init__(http)
        self.opened: list[str] = []
        self.late = False
        self._claims: set[str] = set()

    async def open(self, title: str, metadata: dict[str, str]) -> str:
        # Not to be cancelled: one that is open and not known here would be left behind.
        with anyio.CancelScope(shield=True):
            self.opened.append(await super().open(title, metadata))
        if CLAIM in metadata:
            self._claims.add(self.opened[-1])
        return self.opened[-1]

    async def every_claim(self, name: str) -> list[SeenClaim]:
        found = await super().every_claim(name)
        self.late |= not self._claims <= {each.session_id for each in found}
        return found
