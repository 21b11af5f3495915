"""What claims ask of the service: sessions opened, kept, finished and found by their metadata."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

import tinker
from tinker import types

from tinker_recovery.errors import StatusError
from tinker_recovery.service.bounded import DEFAULT_LIMITS, Listing
from tinker_recovery.service.claim_line import CLAIM, NOTE, PREFIX, Claimant, SeenClaim, State
from tinker_recovery.service.routes import route
from tinker_recovery.shielding import to_the_end

_T = TypeVar("_T")

_PAGE = 200
_LATER = frozenset({408, 409, 425, 429})

NOT_FOUND = 404
GONE = frozenset({NOT_FOUND, 410})
"""What the service answers about a session that it has ended."""


class Http(Protocol):
    """What is needed of :class:`~tinker_recovery.service.http.ServiceHttp`."""

    def ask(
        self, method: str, path: str, parse: Callable[[Any], _T], **request: Any
    ) -> Coroutine[Any, Any, _T]:
        """Send a request, with retries, and parse the answer."""
        ...

    async def send(self, method: str, path: str, **request: Any) -> int | None:
        """Send one request; its HTTP status, or None if no answer came in time."""
        ...


class Note(NamedTuple):
    """A note as a look shows it: whose it is, of which session, and whether it is not finished."""

    entry: str
    session_id: str
    open: bool


class ClaimSessions:
    """The sessions of claims and notes.

    Args:
        http: The HTTP client of the service, for example ``StatusReader.http``.
    """

    def __init__(self, http: Http) -> None:
        self.http = http

    async def open(self, title: str, metadata: dict[str, str]) -> str:
        """Open a session; its id.

        If it is cancelled, the service's answer is waited for all the same, and the session
        finished: one that is open and not known here would stand in our own way.

        Raises:
            StatusError: The service did not.
        """
        opening = self.http.ask(
            "POST",
            "create_session",
            lambda reply: types.CreateSessionResponse.model_validate(reply).session_id,
            json={
                "tags": [],
                "user_metadata": metadata,
                "sdk_version": tinker.__version__,
                "display_name": f"tinker_recovery: {title}",
                "type": "create_session",
            },
        )

        async def finish(session_id: str) -> None:
            with contextlib.suppress(StatusError):
                await self.finish(session_id, "interrupted", "it was not needed any more")

        return await to_the_end(opening, undo=finish)

    async def active_claims(self, name: str) -> list[SeenClaim]:
        """The claims on a run that a search shows as active.

        Raises:
            StatusError: The service did not answer.
        """
        query = {"statuses": [{"type": "active"}]}
        return [_claim(each) async for each in self._search(CLAIM, name, query)]

    async def every_claim(self, name: str) -> list[SeenClaim]:
        """All claims ever opened on a run; raises as :meth:`active_claims` does."""
        return [_claim(each) async for each in self._search(CLAIM, name, {})]

    async def every_note(self, name: str) -> dict[str, Note]:
        """All notes ever made of a run, by their own session; raises the same."""
        return {
            each.session_id: Note(
                (each.user_metadata or {}).get(PREFIX + "entry", ""),
                (each.user_metadata or {}).get(PREFIX + "session", ""),
                _state(each) in {"active", "silent"},
            )
            async for each in self._search(NOTE, name, {})
        }

    async def _search(
        self, key: str, name: str, query: dict[str, Any]
    ) -> AsyncIterator[types.SessionSummary]:
        query = {**query, "user_metadata": {key: name}, "limit": _PAGE}
        listing = Listing("sessions", DEFAULT_LIMITS)
        while True:
            page = await self.http.ask(
                "POST", "sessions/search", types.SessionSearchResponse.model_validate, json=query
            )
            listing.note_page(len(page.sessions))
            for each in page.sessions:
                if (each.user_metadata or {}).get(key) == name:
                    yield each
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor.model_dump(mode="json")

    async def keeps_no_metadata(self, session_id: str) -> bool:
        """Whether a search by its id shows a session, and without what it was opened with.

        Raises:
            StatusError: The service did not answer.
        """
        found = await self._by_id(session_id)
        return any(not (each.user_metadata or {}).get(CLAIM) for each in found)

    async def _by_id(self, session_id: str) -> list[types.SessionSummary]:
        query = {"session_id": session_id, "limit": 1}
        page = await self.http.ask(
            "POST", "sessions/search", types.SessionSearchResponse.model_validate, json=query
        )
        return [each for each in page.sessions if each.session_id == session_id]

    async def beat(self, session_id: str) -> int | None:
        """Send a heartbeat; the HTTP status, None without an answer."""
        body = {"session_id": session_id, "type": "session_heartbeat"}
        return await self.http.send("POST", "session_heartbeat", json=body)

    async def has_ended(self, session_id: str, status: int | None) -> bool:
        """Whether the service has ended a session, by the answer to its heartbeat.

        A gateway whose service is being replaced answers 404 as well, so by that a session is over
        only if a search, answered by the service itself, does not show it as active.

        Raises:
            StatusError: That could not be asked.
        """
        if status != NOT_FOUND:
            return status in GONE
        return not any(_state(each) == "active" for each in await self._by_id(session_id))

    async def finish(self, session_id: str, how: str, detail: str) -> int | None:
        """Ask the service to finish a session; the HTTP status, None without an answer."""
        return await self.http.send(
            "POST",
            route("sessions", session_id, "finish"),
            json={"reason": {"type": how}, "detail": detail},
        )


def may_pass(status: int | None) -> bool:
    """Whether asking again may help."""
    return status is None or status in _LATER or status >= 500  # noqa: PLR2004 - the server's errors


def _claim(session: types.SessionSummary) -> SeenClaim:
    metadata = session.user_metadata or {}
    return SeenClaim(
        session.session_id,
        session.created_at.timestamp(),
        _state(session),
        metadata.get(PREFIX + "entry", ""),
        Claimant.of(metadata),
    )


def _state(session: types.SessionSummary) -> State:
    match session.status:
        case None:
            return "silent"
        case types.SessionActive():
            return "active"
        case types.ClientSessionFinished(reason=types.ClientSessionFinishSuccess()):
            return "released"
        case _:
            return "ended"
