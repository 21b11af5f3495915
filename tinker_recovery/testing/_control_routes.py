"""The routes under ``/testing``, for :class:`LocalTinkerProcess`; no fault strikes them."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinker_recovery.testing._fault_book import FaultBook
from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing.actions import STATUSES

if TYPE_CHECKING:
    from tinker_recovery.testing._host import Host


def check_outage(status: int | None, for_s: float | None) -> None:
    """Check the arguments of an outage; raises ValueError for one that is not allowed."""
    if status is not None and status not in STATUSES:
        raise ValueError(f"status={status!r} is not allowed: 400 or more, or None to refuse")
    if for_s is not None and not for_s > 0:
        raise ValueError(f"for_s={for_s!r} is not allowed: seconds, more than 0")


def is_local(host: str) -> bool:
    """Whether a client is of this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class ControlRoutes:
    """Handlers that control a service, its faults and its outages."""

    def __init__(self, host: Host, book: FaultBook) -> None:
        self._host = host
        self._book = book

    async def inject(self, request: Request) -> Response:
        """Add a rule: the body is a FaultRule's fields."""
        self._book.add(FaultRule(**await request.json()))
        return JSONResponse({})

    async def release(self, request: Request) -> Response:
        """Take back the rule in the body, or all of them."""
        fields = await request.json()
        self._book.release(FaultRule(**fields) if fields else None)
        return JSONResponse({})

    async def fired(self, _: Request) -> Response:
        """The faults that have struck."""
        return JSONResponse({"fired": [asdict(fault) for fault in self._book.fired()]})

    async def outage(self, request: Request) -> Response:
        """Take the service down: ``status``, ``rollback``, ``for_s``."""
        body = await request.json()
        status, for_s = body.get("status"), body.get("for_s")
        check_outage(status, for_s)
        self._host.begin_outage(
            status=status,
            rollback=body.get("rollback"),
            for_s=for_s,
            asker=request.client,
        )
        return JSONResponse({}, headers={"Connection": "close"})

    async def end_outage(self, _: Request) -> Response:
        """End an outage; not reachable in one that refuses connections."""
        await self._host.end_outage()
        return JSONResponse({})

    async def fail_session(self, request: Request) -> Response:
        """Fail a session: ``message`` and ``category``."""
        body = await request.json()
        session = request.path_params["session"]
        self._host.state.fail_session(session, body["message"], body["category"])
        return JSONResponse({})

    async def add_runs(self, request: Request) -> Response:
        """Add runs without weights: ``count`` and ``saved``."""
        body = await request.json()
        runs = self._host.state.add_runs(body["count"], saved=body["saved"])
        return JSONResponse({"runs": runs})

    async def corrupt(self, request: Request) -> Response:
        """Mark the ``runs`` of these ids as corrupted."""
        self._host.state.corrupt((await request.json())["runs"])
        return JSONResponse({})

    async def expire_sampler(self, request: Request) -> Response:
        """Let a sampler expire."""
        self._host.state.samplers.expire(request.path_params["sampler"])
        return JSONResponse({})

    async def state(self, request: Request) -> Response:
        """The contents of a run."""
        return JSONResponse(asdict(self._host.state.run(request.path_params["run"]).state()))

    async def stats(self, _: Request) -> Response:
        """Requests by kind, sessions, runs and samplers."""
        state = self._host.state
        return JSONResponse(
            {
                "requests": dict(state.requests),
                "sessions": state.sessions.states(),
                "runs": [run.run_id for run in state.runs()],
                "samplers": state.samplers.ids(),
            }
        )
