"""Claims: one process trains a run, on any number of machines, by the word of the service.

A claim is a session with the run's name in its metadata, kept by heartbeats, and opened before
anything of the run is touched. The service has no operation that only one of two can win, so a
claim becomes the holder in steps:

1. Look. If a claim of another is active, wait until none is, or refuse. Else open one.
2. Wait ``settle_s``, and until a look shows our own claim.
3. If that look shows no other active claim, the run is ours. Of two claims opened at once the later
   one sees the earlier, so never both find themselves alone. If it shows one, the younger of the
   two withdraws and goes back to 1; the older looks on, for one heartbeat at most, since the
   younger may have found itself alone before.
4. Finish every other claim that is not active: a process that was only paused is answered 410 from
   here on. If one of them was not released by its own process, finish the sessions it left as well:
   it had to note each of them at the service, and to ask for its claim again after that, before
   it used one (:meth:`Claim.announce`). So there is none that we do not find, or that is used.
5. Ask for our own claim once more. If it is gone, because this process was paused, go back to 1.

What that relies on, and nothing else:

- A session that is finished stays so, and once ``finish`` is answered, every request of that
  session's is refused. A heartbeat is refused if its session is over.
- Searches may lag behind. Either they show sessions in the order in which they were opened, as a
  replica that lags does: then by any time up to ``UNSHOWN_S``, since it is waited until they show
  our own. Or each look leaves out others: then for ``settle_s`` at most.
- Dates are only compared among each other, and by every process alike: they may be off by any time.
- Waiting longer does no harm, so it does not matter how any clock of ours runs, or whether it stops
  while the machine sleeps, as long as it does not run fast.

Not fenced is what is no request of a session: deletions, and changes of when a checkpoint expires.
Ask :meth:`Claim.still_held` before each.

What it costs: one session and a heartbeat every ten seconds for each named run, as much as the SDK
spends on the run's own session; one more session for each attempt, without heartbeats. A session's
metadata cannot be changed once it is open, so runs that begin and end at different times cannot
share one: a thousand named runs are a hundred heartbeats a second.
"""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import anyio

from tinker_recovery.clock import Clock, Reminder
from tinker_recovery.errors import RunHeld, StatusError, StatusRefused, StatusUnavailable
from tinker_recovery.service.claim_line import (
    CLAIM,
    JOB,
    NOTE,
    PREFIX,
    Alone,
    Behind,
    Claimant,
    SeenClaim,
    Unclear,
    Unlisted,
    place_of,
    rivals,
)
from tinker_recovery.service.claim_sessions import NOT_FOUND, ClaimSessions, Http, may_pass
from tinker_recovery.service.credentials import UNAUTHORIZED
from tinker_recovery.service.heartbeats import Heartbeats
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE
from tinker_recovery.service.patient import until_answered
from tinker_recovery.shielding import to_the_end
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

_T = TypeVar("_T")

SETTLE_S = 1.0
"""Seconds that the service may take to show a new session in a search."""

BEAT_S = 10.0
"""Seconds between two heartbeats, as the SDK sends them."""

LOOK_S = 2.0
"""Seconds between two looks of a process that waits."""

MAX_WAIT_S = 86_400.0
"""Seconds that a service which does not answer is asked again, where no other limit is set."""

UNSHOWN_S = 60.0
"""A service that does not show our claim as active for this long never will."""

_OVER = frozenset({409, 410})
"""What the service may answer to finishing a session that is over."""

_UNFOUND = "it does not find sessions by their metadata"

_ENTERED: set[str] = set()
"""Tries of this process that hold a run, or are about to.

A claim of this process that is of none of them was left behind: the service has opened it, or not
finished it, for a request whose answer did not come.
"""

_RELEASE_S = 5.0
_RELEASED = "success"
_TAKEN = "interrupted"


@dataclass(frozen=True, slots=True)
class Unguarded:
    """No claim can be held at this service, so the journal's lease has to do alone.

    Attributes:
        why: What the service does not do, for the log.
    """

    why: str


class _NoClaims(Exception):
    """This service cannot guard a run."""


class Claim:
    """A run held at the service; made by :meth:`Claims.enter`."""

    def __init__(self, claims: Claims, name: str, entry: str, session_id: str) -> None:
        self._claims = claims
        self.name = name
        """The run's name."""
        self.entry = entry
        self.session_id = session_id
        """The claim's own session; no training is done in it."""
        self.lost = anyio.Event()
        """Set when a heartbeat or a question finds that the service has ended the claim."""
        self._notes: list[str] = []
        self._released = False
        self._end_heartbeats: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Claim of run {self.name!r} by session {self.session_id}>"

    def kept(self, end: Callable[[], None]) -> None:
        """Its heartbeats are being sent, until this is called."""
        self._end_heartbeats = end

    async def still_held(self) -> bool:
        """Whether the run is still ours, by the word of the service: one request, not retried.

        After a 404, which may be a gateway's, a search decides. False is final: another process may
        train the run, and this one must not save, delete or recover anything of it any more.

        Raises:
            StatusUnavailable: It could not be asked; that says nothing.
            StatusRefused: The service answers heartbeats with an error of another kind.
        """
        if self.lost.is_set():
            return False
        sessions = self._claims.sessions
        status = await sessions.beat(self.session_id)
        said = f"{_said(status)} to a heartbeat of the claim on run {self.name!r}"
        try:
            if await sessions.has_ended(self.session_id, status):
                self.lost.set()
                return False
        except StatusError as error:
            raise StatusUnavailable(f"{said}; {error}", status_code=status) from error
        if may_pass(status) or status == NOT_FOUND:
            raise StatusUnavailable(said, status_code=status)
        if status is None or status >= 400:  # noqa: PLR2004 - HTTP's errors begin there
            raise StatusRefused(said, status_code=status)
        return True

    async def holder_now(self) -> Claimant | None:
        """Who claims the run besides us, the oldest claim first; None if no one does.

        Raises:
            StatusError: The service could not be asked.
        """
        found = await self._claims.sessions.active_claims(self.name)
        others = rivals(found, self.entry, self._claims.is_over)
        return others[0].claimant if others else None

    async def announce(self, session_id: str) -> bool:
        """Note a session at the service before the first request of this run is sent in it.

        Whoever takes the run over finishes the sessions that were noted; one that was not would
        train on. Only if this returns True may the session be used.

        Args:
            session_id: A session that is open, and that no Tinker run was created in.

        Returns:
            Whether the run is still ours.

        Raises:
            StatusError: It could not be noted, or the claim not asked for: do not use the session.
        """
        note = await self._claims.sessions.open(
            f"session of run {self.name}",
            {NOTE: self.name, PREFIX + "session": session_id, PREFIX + "entry": self.entry},
        )
        if self._released:  # meanwhile, so it has not finished this one
            await self._claims.sessions.finish(note, _RELEASED, "released")
            return False
        self._notes.append(note)
        # In this order: if it is still ours now, a successor is sure to find the note.
        return await self.still_held()

    async def release(self) -> None:
        """Give the run free; call it once every session announced is closed.

        Never raises an Exception. If the service cannot be reached, it ends the claim itself when
        the heartbeats stop. Completes even if cancelled, within a few seconds. Of a claim that is
        lost nothing is finished: that is up to the successor.
        """
        self._released = True
        self._end_heartbeats()
        try:
            if not self.lost.is_set():
                await to_the_end(self._finish_all())
        finally:
            _ENTERED.discard(self.entry)

    async def _finish_all(self) -> None:
        with anyio.move_on_after(_RELEASE_S):
            for session in [*self._notes, self.session_id]:
                await self._claims.sessions.finish(session, _RELEASED, "released")


class Claims:
    """Opens claims at one service.

    Args:
        http: The HTTP client of the service, for example ``StatusReader.http``.
        claimant: This process.
        is_dead: Whether another process is known to be dead, as only one on this machine can be.
            Its claim is not waited for.
        heartbeats: What keeps claims active until they are released.
        clock: For waits; dates are the service's.
        settle_s: How long the service may take to show a new session in a search, in seconds.
        beat_s: Seconds between two heartbeats, for which a claim may be seen late.
        look_s: Seconds between two looks while waiting.
    """

    def __init__(
        self,
        http: Http,
        claimant: Claimant,
        *,
        is_dead: Callable[[Claimant], bool],
        heartbeats: Heartbeats,
        clock: Clock,
        settle_s: float = SETTLE_S,
        beat_s: float = BEAT_S,
        look_s: float = LOOK_S,
    ) -> None:
        self.sessions = ClaimSessions(http)
        self._is_dead = is_dead
        self._claimant = claimant
        self._heartbeats = heartbeats
        self._clock = clock
        self._settle_s = settle_s
        self._beat_s = beat_s
        self._look_s = look_s
        self.max_wait_s = MAX_WAIT_S
        """How long one question is asked again of a service that does not answer, in seconds."""
        self.hint: Callable[[str, Claimant], str] = lambda *_: ""
        """What is said beside whoever has a run, by its name, while that is waited for."""
        self._unguarded: Unguarded | None = None

    async def enter(
        self, name: str, *, on_held: Literal["wait", "refuse"], job: str | None = None
    ) -> Claim | Unguarded:
        """Take a run, once no other process has it.

        Waits for a service that cannot be reached, for ``max_wait_s`` at most. If it is cancelled
        or fails, what it opened is finished.

        Args:
            name: The run's name.
            on_held: What to do if another process has it: wait for its end, or refuse.
            job: Kept with the claim, for people: what has submitted the run.

        Returns:
            The claim, which holds the run; or why no claim can be held at this service, which is
            then not tried again by this object.

        Raises:
            RunHeld: Another process has the run, and it is not to be waited for.
            StatusUnavailable: The service has not answered for ``max_wait_s``.
            StatusRefused: It refuses the credential.
        """
        if self._unguarded is not None:
            return self._unguarded
        entry = secrets.token_hex(8)
        _ENTERED.add(entry)
        taken: Claim | Unguarded | None = None
        try:
            taken = await self._enter(name, entry, on_held=on_held, job=job)
        finally:
            if not isinstance(taken, Claim):
                _ENTERED.discard(entry)
        return taken

    async def _enter(
        self, name: str, entry: str, *, on_held: Literal["wait", "refuse"], job: str | None
    ) -> Claim | Unguarded:
        reminder = Reminder(at_once=True)
        began = self._clock.monotonic()
        try:
            while True:
                held_by = await self._first_rival(name, entry)
                if held_by is None:
                    taken = await self._try(name, entry, {} if job is None else {JOB: job})
                    if isinstance(taken, Claim):
                        return taken
                    held_by = taken
                if held_by is not None and on_held == "refuse":
                    raise self._held(name, held_by)
                if held_by is not None and reminder.is_due(self._clock.monotonic() - began):
                    logger.warning(
                        "run %s is claimed by %s; this process waits until that is over%s",
                        name,
                        held_by.claimant,
                        self.hint(name, held_by.claimant),
                    )
                await self._clock.sleep(self._look_s)
        except _NoClaims as error:
            self._unguarded = Unguarded(str(error))
            return self._unguarded

    def is_over(self, claim: SeenClaim) -> bool:
        """Whether a claim is nobody's any more: of a dead process, or left behind by this one."""
        if claim.claimant.is_process_of(self._claimant) and claim.entry not in _ENTERED:
            return True
        return self._is_dead(claim.claimant)

    async def _try(
        self, name: str, entry: str, more: Mapping[str, str]
    ) -> Claim | SeenClaim | None:
        """Open a claim; returns it if it holds, or whom it withdrew for, or None to try again."""
        opening = functools.partial(
            self.sessions.open,
            f"claim on run {name}",
            {CLAIM: name, PREFIX + "entry": entry, **self._claimant.metadata(), **more},
        )
        claim = Claim(self, name, entry, await self._patiently(name, opening))
        try:
            claim.kept(self._heartbeats.start(claim.session_id, claim.lost.set))
            place = await self._place(claim)
            if isinstance(place, Alone) and await self._clear(claim, place):
                return claim
        except BaseException:
            await claim.release()
            raise
        await claim.release()
        return place.first if isinstance(place, Behind) else None

    async def _place(self, claim: Claim) -> Alone | Behind | None:
        """Where the claim stands for good; None if it was lost meanwhile."""
        if await self.sessions.beat(claim.session_id) in NO_SUCH_ROUTE:
            raise _NoClaims("it takes no heartbeats")
        await self._clock.sleep(self._settle_s)
        unshown_s = older_s = 0.0
        while not claim.lost.is_set():
            look = functools.partial(self.sessions.every_claim, claim.name)
            claims = await self._patiently(claim.name, look)
            place = place_of(claims, claim.session_id, claim.entry, self.is_over)
            match place:
                case Alone():
                    return place
                case Behind(withdraw=withdraw):
                    # The younger has withdrawn after a heartbeat's time, or holds the run.
                    if withdraw or older_s >= self._beat_s:
                        return place
                    older_s += self._look_s
                case Unlisted() | Unclear():
                    await self._check_shown(claim, place, unshown_s)
                    unshown_s += self._look_s
            await self._clock.sleep(self._look_s)
        return None

    async def _check_shown(self, claim: Claim, place: Unlisted | Unclear, unshown_s: float) -> None:
        """Raise _NoClaims if the service will never show the claim as it is."""
        if not await self._patiently(claim.name, claim.still_held):
            return
        if isinstance(place, Unclear):
            if unshown_s >= UNSHOWN_S:
                raise _NoClaims("it does not say which sessions are active")
        elif unshown_s >= UNSHOWN_S or await self._patiently(
            claim.name, functools.partial(self.sessions.keeps_no_metadata, claim.session_id)
        ):
            raise _NoClaims(_UNFOUND)

    async def _clear(self, claim: Claim, place: Alone) -> bool:
        """End what others have left; whether the run is ours then."""
        # First: nothing is ended in the name of a claim that is gone.
        if not await self._patiently(claim.name, claim.still_held):
            return False
        for session in place.finish:
            await self._finish(claim.name, session)
        if place.fence:
            await self._fence(claim, place.fence)
        return await self._patiently(claim.name, claim.still_held)

    async def _fence(self, claim: Claim, entries: Collection[str]) -> None:
        """Finish the sessions that earlier holders have noted, and no successor of ours."""
        # A note of our own: what was noted before it is shown no later than it is.
        own = await self._patiently(
            claim.name,
            functools.partial(
                self.sessions.open,
                f"take-over of run {claim.name}",
                {NOTE: claim.name, PREFIX + "entry": claim.entry},
            ),
        )
        await self._clock.sleep(self._settle_s)
        look = functools.partial(self.sessions.every_note, claim.name)
        unshown_s = 0.0
        while own not in (notes := await self._patiently(claim.name, look)):
            if claim.lost.is_set():
                return
            if unshown_s >= UNSHOWN_S:
                raise _NoClaims(_UNFOUND)
            unshown_s += self._look_s
            await self._clock.sleep(self._look_s)
        for each, note in notes.items():
            if note.open and note.entry in entries:
                if note.session_id:
                    await self._finish(claim.name, note.session_id, listed=False)
                # Only now, as a note that is finished counts as seen to.
                await self._finish(claim.name, each)
        await self.sessions.finish(own, _RELEASED, "done")

    async def _first_rival(self, name: str, entry: str) -> SeenClaim | None:
        claims = await self._patiently(name, functools.partial(self.sessions.active_claims, name))
        return next(iter(rivals(claims, entry, self.is_over)), None)

    async def _finish(self, name: str, session_id: str, *, listed: bool = True) -> None:
        """Finish a session of another, for certain; one not ``listed`` may be unknown there."""
        detail = f"run taken over by {self._claimant}"

        async def finish() -> None:
            status = await self.sessions.finish(session_id, _TAKEN, detail)
            over = status in _OVER or (status == NOT_FOUND and not listed)
            if over or (status is not None and status < 300):  # noqa: PLR2004 - HTTP's successes end there
                return
            said = f"finishing session {session_id}: {_said(status)}"
            if may_pass(status):
                raise StatusUnavailable(said, status_code=status)
            raise _NoClaims(f"it does not finish sessions (HTTP {status})")

        await self._patiently(name, finish)

    async def _patiently(self, name: str, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until the service answers; raises _NoClaims if it refuses, but not a credential."""
        try:
            return await self.until_answered(name, ask)
        except StatusRefused as error:
            if error.status_code == UNAUTHORIZED:
                raise
            raise _NoClaims(str(error)) from error

    async def until_answered(self, name: str, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the service about a run until it answers, for ``max_wait_s`` at most; cancellable.

        Reports at growing intervals that it does not.

        Raises:
            StatusRefused: It refuses.
            StatusUnavailable: It has not answered by then.
        """
        return await until_answered(
            name,
            ask,
            asked="whether another process trains it",
            clock=self._clock,
            look_s=self._look_s,
            max_wait_s=self.max_wait_s,
        )

    def _held(self, name: str, by: SeenClaim) -> RunHeld:
        return RunHeld(
            f"run {name!r} is being trained by {by.claimant}, as its claim at the service says "
            f'(session {by.session_id}): two must not train it; wait for it (on_lease="wait"), end '
            "it, or choose another name",
            run=name,
            pid=by.claimant.pid,
            host=by.claimant.host,
            since=by.created_s,
            # How much longer the service would keep it is not known.
            expires=self._clock.wall(),
        )


def _said(status: int | None) -> str:
    return "no answer" if status is None else f"HTTP {status}"
