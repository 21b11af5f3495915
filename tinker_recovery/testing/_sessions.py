"""The service's sessions: their states, and the search for them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tinker_recovery.testing._runs import ServiceError
from tinker_recovery.testing._store import Store

Facts = dict[str, Any]


class Sessions:
    """All sessions, oldest first."""

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall
        self._facts: dict[str, Facts] = {facts["session_id"]: facts for facts in store.sessions()}

    def create(
        self,
        user_metadata: Facts | None = None,
        display_name: str | None = None,
        *,
        stored: bool = True,
    ) -> str:
        """Make a session and return its id; one not ``stored`` is gone after a restart."""
        session = f"session-{secrets.token_hex(6)}"
        self._facts[session] = {
            "session_id": session,
            "order": len(self._facts),
            "created_at": datetime.fromtimestamp(self._wall(), UTC).isoformat(),
            "status": {"type": "active"},
            "user_metadata": user_metadata or {},
            "display_name": display_name,
        }
        if stored:
            self._store.save_session(session, self._facts[session])
        return session

    def states(self) -> dict[str, str]:
        """State by session id: ``active``, ``failed``, or how its client finished it."""
        return {session: _state(facts) for session, facts in self._facts.items()}

    def facts(self, session: str) -> Facts:
        """A session's stored record; raises ServiceError 404 if there is none of that id."""
        if session not in self._facts:
            raise ServiceError(404, f"no session {session!r}")
        return self._facts[session]

    def check_active(self, session: str) -> None:
        """Check that a session is active.

        Raises:
            ServiceError: 404 if there is no such session, 410 if it has finished or failed.
        """
        status = self.facts(session)["status"]
        if status["type"] == "failed":
            raise ServiceError(410, f"session {session} has failed: {status['message']}")
        if status["type"] != "active":
            raise ServiceError(410, f"session {session} has finished")

    def finish(self, session: str, how: str, detail: str | None = None) -> None:
        """The session's client is done; ignored if it has ended already."""
        status = {"type": "client_finished", "reason": {"type": how}, "detail": detail}
        self._end(session, status)

    def fail(self, session: str, message: str, category: str, reason: dict[str, str]) -> None:
        """The service fails a session; ignored if it has ended already."""
        category = "user" if category == "user" else "internal"
        status = {"type": "failed", "category": category, "reason": reason, "message": message}
        self._end(session, status)

    def _end(self, session: str, status: Facts) -> None:
        facts = self.facts(session)
        if facts["status"]["type"] == "active":
            facts["status"] = status
            self._store.save_session(session, facts)

    def search(self, query: Facts) -> tuple[list[Facts], dict[str, str] | None]:
        """A page of sessions, newest first, and the cursor of the next one.

        Args:
            query: As in ``tinker.types.SessionSearchRequest``; there is one owner and one project.
        """
        found = [facts for facts in reversed(self._facts.values()) if _wanted(facts, query)]
        if after := (query.get("cursor") or {}).get("last_session_id"):
            order = self.facts(after)["order"]
            found = [facts for facts in found if facts["order"] < order]
        limit = int(query.get("limit", 50))
        page = found[:limit]
        if len(found) <= limit:
            return page, None
        last = page[-1]
        return page, {
            "last_created_at": last["created_at"],
            "last_session_id": last["session_id"],
        }


def _state(facts: Facts) -> str:
    status = facts["status"]
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


def _has(status: Facts, wanted: Facts) -> bool:
    if "type" not in wanted:
        return True
    reasons = wanted.get("reasons")
    return bool(status["type"] == wanted["type"]) and (
        reasons is None or status["reason"]["type"] in reasons
    )
