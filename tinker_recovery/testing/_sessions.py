"""The service's sessions: their states, and the search for them."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tinker_recovery.testing._options import ServerOptions
from tinker_recovery.testing._runs import ServiceError
from tinker_recovery.testing._store import Store

Facts = dict[str, Any]

_ACTIVE = {"type": "active"}


class Sessions:
    """All sessions, oldest first.

    Args:
        store: Where they are kept.
        wall: Seconds since the epoch.
        clock: Seconds, for the heartbeats and the delay of listings.
        options: How long they live, how they are dated, and when they are listed.
    """

    def __init__(
        self,
        store: Store,
        wall: Callable[[], float],
        clock: Callable[[], float],
        options: ServerOptions,
    ) -> None:
        self._store = store
        self._wall = wall
        self._clock = clock
        self._options = options
        self._jitter = random.Random(f"{options.chance} created_at")  # noqa: S311 - not a secret
        self._facts: dict[str, Facts] = {facts["session_id"]: facts for facts in store.sessions()}
        self._listed_from: dict[str, float] = {}
        self._beats = dict.fromkeys(self._facts, clock())

    def create(
        self,
        user_metadata: Facts | None = None,
        display_name: str | None = None,
        *,
        project: str | None = None,
        stored: bool = True,
    ) -> str:
        """Make a session and return its id; one not ``stored`` is gone after a restart."""
        session = f"session-{secrets.token_hex(6)}"
        self._facts[session] = {
            "session_id": session,
            "order": len(self._facts),
            "created_at": datetime.fromtimestamp(self._dated(), UTC).isoformat(),
            "status": _ACTIVE,
            "user_metadata": user_metadata or {},
            "display_name": display_name,
            "project_id": project,
        }
        if stored:
            self._beats[session] = self._clock()
            self._store.save_session(session, self._facts[session])
        self._listed_from[session] = self._clock() + self._options.listing_delay_s
        return session

    def _dated(self) -> float:
        most = self._options.created_jitter_s
        return self._wall() + self._options.created_skew_s + self._jitter.uniform(-most, most)

    def states(self) -> dict[str, str]:
        """State by session id.

        ``active``, ``failed``, ``ended`` if its heartbeats stopped, or how its client finished it.
        """
        return {session: _state(self.facts(session)) for session in self._facts}

    def facts(self, session: str) -> Facts:
        """A session's stored record; raises ServiceError 404 if there is none of that id."""
        if session not in self._facts:
            raise ServiceError(404, f"no session {session!r}")
        facts = self._facts[session]
        limit_s = self._options.heartbeat_limit_s
        silent = limit_s is not None and (
            self._clock() - self._beats.get(session, math.inf) > limit_s
        )
        # Nothing happens at the limit itself: whoever asks from then on finds it ended.
        if silent and facts["status"] == _ACTIVE:
            facts["status"] = None
            self._store.save_session(session, facts)
        return facts

    def beat(self, session: str) -> None:
        """A heartbeat has come; raises ServiceError as :meth:`check_active` does."""
        self.check_active(session)
        self._beats[session] = self._clock()

    def end_silent(self) -> None:
        """End those that have been silent for too long, before the service goes down."""
        for session in self._facts:
            self.facts(session)

    def forgive_silence(self) -> None:
        """Count every session's silence anew: the service was down."""
        self._beats = dict.fromkeys(self._beats, self._clock())

    def has_ended(self, session: str) -> bool:
        """Whether a session has ended because its heartbeats stopped."""
        return session in self._facts and self.facts(session)["status"] is None

    def check_not_ended(self, session: str) -> None:
        """Raise ServiceError 410 if a session has ended because its heartbeats stopped."""
        if self.has_ended(session):
            limit_s = self._options.heartbeat_limit_s
            raise ServiceError(
                410, f"session {session} has ended: no heartbeat for {limit_s or 0:g} s"
            )

    def check_active(self, session: str) -> None:
        """Check that a session is active.

        Raises:
            ServiceError: 404 if there is no such session, 410 if it has finished, failed or ended.
        """
        status = self.facts(session)["status"]
        self.check_not_ended(session)
        if status["type"] == "failed":
            raise ServiceError(410, f"session {session} has failed: {status['message']}")
        if status["type"] != "active":
            raise ServiceError(410, f"session {session} has finished")

    def finish(self, session: str, how: str, detail: str | None = None) -> None:
        """The session's client is done; ignored if it has finished or failed already."""
        status = {"type": "client_finished", "reason": {"type": how}, "detail": detail}
        self._end(session, status)

    def fail(self, session: str, message: str, category: str, reason: dict[str, str]) -> None:
        """The service fails a session; ignored if it has ended already."""
        category = "user" if category == "user" else "internal"
        status = {"type": "failed", "category": category, "reason": reason, "message": message}
        self._end(session, status)

    def _end(self, session: str, status: Facts) -> None:
        facts = self.facts(session)
        if facts["status"] in (None, _ACTIVE):
            facts["status"] = status
            self._store.save_session(session, facts)

    def move(self, session: str, project: str) -> None:
        """Move a session to another project."""
        facts = self.facts(session)
        facts["project_id"] = project
        self._store.save_session(session, facts)

    def search(self, query: Facts) -> tuple[list[Facts], dict[str, str] | None]:
        """A page of sessions, newest first, and the cursor of the next one.

        Args:
            query: As in ``tinker.types.SessionSearchRequest``; there is one owner and one project.
        """
        found = [facts for facts in self._listed() if _wanted(facts, query)]
        found.sort(key=_dated_order, reverse=True)
        if after := (query.get("cursor") or {}).get("last_session_id"):
            last_seen = _dated_order(self.facts(after))
            found = [facts for facts in found if _dated_order(facts) < last_seen]
        limit = int(query.get("limit", 50))
        page = found[:limit]
        if len(found) <= limit:
            return page, None
        last = page[-1]
        return page, {
            "last_created_at": last["created_at"],
            "last_session_id": last["session_id"],
        }

    def listed(self) -> list[str]:
        """The ids of all sessions that lists show, newest first."""
        return [facts["session_id"] for facts in sorted(self._listed(), key=_dated_order)][::-1]

    def _listed(self) -> list[Facts]:
        now = self._clock()
        return [
            self.facts(session)
            for session in self._facts
            if self._listed_from.get(session, now) <= now
        ]


def project_of(facts: Facts) -> str:
    """The id of a session's project."""
    return str(facts.get("project_id") or "local")


def _dated_order(facts: Facts) -> tuple[datetime, int]:
    return datetime.fromisoformat(facts["created_at"]), facts["order"]


def _state(facts: Facts) -> str:
    status = facts["status"]
    if status is None:
        return "ended"
    return str(status["reason"]["type"] if status["type"] == "client_finished" else status["type"])


def _wanted(facts: Facts, query: Facts) -> bool:
    session, name = query.get("session_id"), query.get("display_name")
    shown = (facts["display_name"] or "").lower()
    named = name is not None and all(word in shown for word in name.lower().split())
    metadata = query.get("user_metadata") or {}
    return (
        ((session is None and name is None) or facts["session_id"] == session or named)
        and all(facts["user_metadata"].get(key) == value for key, value in metadata.items())
        and any(_has(facts["status"], wanted) for wanted in query.get("statuses") or [{}])
    )


def _has(status: Facts | None, wanted: Facts) -> bool:
    if "type" not in wanted:
        return True
    if status is None:
        return False
    reasons = wanted.get("reasons")
    return bool(status["type"] == wanted["type"]) and (
        reasons is None or status["reason"]["type"] in reasons
    )
