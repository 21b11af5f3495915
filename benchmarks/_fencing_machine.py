"""What a process of the fencing benchmark changes inside itself, to be on a machine of its own.

All that reaches into what is not public is here. Nothing is changed in how a run is claimed, held
and fenced; only the seconds are shorter, in proportion: the heartbeats of claims, and those that
the SDK sends for its own sessions, which are every 10 s otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable

import tinker
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType
from tinker.lib.internal_client_holder import InternalClientHolder

from tinker_recovery import RecoveryEvent
from tinker_recovery.journal import holder
from tinker_recovery.service import claims
from tinker_recovery.service.claim_line import CLAIM, NOTE, PREFIX
from tinker_recovery.service.claim_sessions import GONE, ClaimSessions

LIMIT_S = 2.0
"""The service's heartbeat limit; about 60 s would go with heartbeats every 10 s."""

BEAT_S = LIMIT_S / 6
LOOK_S = 0.1


def be_on_machine(name: str) -> None:
    """Have this process take itself for one on a machine of this name, to its end."""
    holder._machine = lambda: name  # type: ignore[assignment]  # noqa: SLF001 - called all the same
    socket.gethostname = lambda: name


def hurry(settle_s: float) -> None:
    """Shorten what is waited for, and send heartbeats as often as the service's limit asks."""
    claims.SETTLE_S, claims.BEAT_S, claims.LOOK_S = settle_s, BEAT_S, LOOK_S
    InternalClientHolder._session_heartbeat = _keep  # type: ignore[method-assign]  # noqa: SLF001 - it does the same, more often


async def _keep(self: InternalClientHolder, session_id: str) -> None:
    """As the SDK's own: until the service answers that the session is over."""
    while True:
        await asyncio.sleep(BEAT_S)
        try:
            with self.aclient(ClientConnectionPoolType.SESSION) as client:
                await client.service.session_heartbeat(
                    session_id=session_id, max_retries=0, timeout=10
                )
        except tinker.APIStatusError as error:
            if error.status_code in GONE:
                return
        except Exception:  # as the SDK: it is tried again
            logging.getLogger(__name__).debug("heartbeat of %s", session_id, exc_info=True)


class Fate(logging.Handler):
    """Where a process kills or stops itself, if anywhere, and what its log has said.

    The points: ``waiting`` (in line), ``claim`` (its own is open), ``fenced`` (an earlier holder's
    session is finished), ``note`` (of its own session), ``take-over`` (the look for those of
    others), each event of recovery by its name, and what its script calls :meth:`reached` with.

    Args:
        at: A point, with ``:N`` for the Nth time that it is reached; empty for nowhere.
        by: SIGKILL or SIGSTOP.
        say: Called with each point but the script's own, and more about it, right before that.
    """

    def __init__(self, at: str, by: signal.Signals, say: Callable[..., object]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._point, _, times = at.partition(":")
        self._times = int(times or 1)
        self._by = by
        self._seen: Counter[str] = Counter()
        self.log: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take over a line of the log."""
        text = record.getMessage()
        self.log.append(text)
        if "this process waits until that is over" in text:
            self._found("waiting")

    def event(self, event: RecoveryEvent) -> None:
        """Take over an event."""
        self._found(event.name)

    def _found(self, point: str, **more: object) -> None:
        self._say(point, **more)
        self.reached(point)

    def reached(self, point: str) -> None:
        """Die or stop, if it is here."""
        self._seen[point] += 1
        if point == self._point and self._seen[point] == self._times:
            self._say("strikes")
            os.kill(os.getpid(), self._by)

    def watch_claims(self) -> None:
        """Have what claims do at the service reach points, too."""
        fate, opened, finished = self, ClaimSessions.open, ClaimSessions.finish

        async def open_(self: ClaimSessions, title: str, metadata: dict[str, str]) -> str:
            session = await opened(self, title, metadata)
            if CLAIM in metadata:
                fate._found("claim", session=session)
            elif NOTE in metadata:
                fate._found("note" if PREFIX + "session" in metadata else "take-over")
            return session

        async def finish(self: ClaimSessions, session_id: str, how: str, detail: str) -> int | None:
            status = await finished(self, session_id, how, detail)
            if "taken over" in detail:
                fate._found("fenced")
            return status

        ClaimSessions.open = open_  # type: ignore[method-assign]  # it does the same, and says so
        ClaimSessions.finish = finish  # type: ignore[method-assign]  # it does the same, and says so
