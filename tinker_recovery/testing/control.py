"""The routes under ``/testing``: what tests in another process ask of the server.

No fault and no answering outage strikes them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinker_recovery.testing.actions import STATUSES
from tinker_recovery.testing.book import FaultBook
from tinker_recovery.testing.engine import ServiceState
from tinker_recovery.testing.faults import FaultRule


class Outages(Protocol):
    """Who can take the service down and up again."""

    def begin_outage(
        self,
        *,
        status: int | None,
        rollback: bool,
        for_s: float | None = None,
        asker: tuple[str, int] | None = None,
    ) -> None:
        """Take it down, for all but the one who asks for it."""

    async def end_outage(self) -> None:
        """Take it up again."""


def check_outage(status: int | None, for_s: float | None) -> None:
    """Let pass only an outage that can be.

    Raises:
        ValueError: It cannot.
    """
    if status is not None and status not in STATUSES:
        raise ValueError(f"status={status!r} is not allowed: 400 or more, or None to refuse")
    if for_s is not None and not for_s > 0:
        raise ValueError(f"for_s={for_s!r} is not allowed: seconds, more than 0")


class Control:
    """Handlers over an engine, its faults and its outages."""

    def __init__(self, engine: ServiceState, book: FaultBook, outages: Outages) -> None:
        self._engine = engine
        self._book = book
        self._outages = outages

    async def inject(self, request: Request) -> Response:
        """One more rule: the body is a FaultRule's fields."""
        self._book.add(FaultRule(**await request.json()))
        return JSONResponse({})

    async def release(self, request: Request) -> Response:
        """Take back the rule in the body, or all of them."""
        fields = await request.json()
        self._book.release(FaultRule(**fields) if fields else None)
        return JSONResponse({})

    async def fired(self, _: Request) -> Response:
        """What has struck."""
        return JSONResponse({"fired": [asdict(fault) for fault in self._book.fired()]})

    async def outage(self, request: Request) -> Response:
        """Take the service down: ``status``, ``rollback``, ``for_s``."""
        asked = await request.json()
        status, for_s = asked.get("status"), asked.get("for_s")
        check_outage(status, for_s)
        self._outages.begin_outage(
            status=status,
            rollback=bool(asked.get("rollback")),
            for_s=for_s,
            asker=request.client,
        )
        return JSONResponse({}, headers={"Connection": "close"})

    async def end_outage(self, _: Request) -> Response:
        """Take it up again; reachable only where it was not refusing connections."""
        await self._outages.end_outage()
        return JSONResponse({})

    async def fail_session(self, request: Request) -> Response:
        """A session fails: ``message`` and ``category``."""
        session = request.path_params["session"]
        asked = await request.json()
        fail_session(self._engine, session, asked["message"], asked["category"])
        return JSONResponse({})

    async def add_runs(self, request: Request) -> Response:
        """Runs that are listed and nothing else: ``count`` and ``saved``."""
        asked = await request.json()
        return JSONResponse({"runs": self._engine.add_runs(asked["count"], saved=asked["saved"])})

    async def corrupt(self, request: Request) -> Response:
        """Corrupt the ``runs`` of these ids."""
        self._engine.corrupt((await request.json())["runs"])
        return JSONResponse({})

    async def state(self, request: Request) -> Response:
        """What is inside a run."""
        return JSONResponse(asdict(self._engine.state(request.path_params["run"])))

    async def stats(self, _: Request) -> Response:
        """What was asked, and what there is."""
        return JSONResponse(
            {
                "requests": dict(self._engine.requests),
                "sessions": self._engine.sessions.states(),
                "runs": [run.run_id for run in self._engine.runs()],
            }
        )


def fail_session(engine: ServiceState, session: str, message: str, category: str) -> None:
    """Fail a session by one of its runs."""
    runs = [run.run_id for run in engine.runs() if run.run_id.startswith(f"{session}:train:")]
    reason = {"type": "training_run", "training_run_id": runs[0] if runs else ""}
    engine.fail_session(session, message, category, reason)
