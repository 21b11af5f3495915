"""The routes of the SDK's AdminClient, and copies between projects."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinker_recovery.testing._ledger import USD_PER_GIGABYTE_MONTH
from tinker_recovery.testing._rest_routes import check_ttl
from tinker_recovery.testing._runs import ServiceError
from tinker_recovery.testing._service_state import ServiceState
from tinker_recovery.testing._sessions import project_of
from tinker_recovery.testing._store import DamagedCheckpoint

_MOST = timedelta(days=14)
_GIGABYTE = 1e9


class OrganizationRoutes:
    """Handlers of what belongs to an organization and its projects."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._copies: dict[str, str] = {}

    async def audit(self, request: Request) -> Response:
        """The audit log of a day."""
        query = request.query_params
        day = date.fromisoformat(query["day"]) if "day" in query else None
        entries = self._state.ledger.audit(query.get("event_type", "all"), day)
        return JSONResponse({"entries": entries})

    async def billing_usage(self, request: Request) -> Response:
        """What was used in each hour of a window, and what it costs."""
        start, end = (_hour(request, name) for name in ("starting_on", "ending_before"))
        now = datetime.fromtimestamp(self._state.wall(), UTC)
        if start > now or not start < end <= start + _MOST:
            raise ServiceError(
                400,
                f"starting_on={start}, ending_before={end} is not allowed: a window of at most "
                f"{_MOST.days} days that has begun",
            )
        found = self._state.ledger.usage(start, end)
        facts = {one["session_id"]: self._state.sessions.facts(one["session_id"]) for one in found}
        for one in found:
            one["project_id"] = project_of(facts[one["session_id"]])
        about = {key: {"user_metadata": one["user_metadata"]} for key, one in facts.items()}
        return JSONResponse({"data": found, "sessions": about})

    async def storage_usage(self, request: Request) -> Response:
        """What is stored now, by project."""
        wanted, state = request.query_params.get("project_id"), self._state
        stored: dict[str, list[int]] = {}
        for run in state.runs():
            project = project_of(state.sessions.facts(run.session))
            if wanted in (None, project):
                sizes = [int(one["size_bytes"]) for one in state.checkpoints.every(run.run_id)]
                stored.setdefault(project, []).extend(sizes)
        data = [
            {
                "project_id": project,
                "checkpoint_count": len(sizes),
                "size_bytes": sum(sizes),
                "size_gigabytes": sum(sizes) / _GIGABYTE,
                "estimated_monthly_cost_usd": sum(sizes) / _GIGABYTE * USD_PER_GIGABYTE_MONTH,
            }
            for project, sizes in stored.items()
        ]
        rate = {"effective_rate_usd_per_gigabyte_month": USD_PER_GIGABYTE_MONTH}
        return JSONResponse({**rate, "data": data})

    async def session_project(self, request: Request) -> Response:
        """Move a session to another project."""
        project = (await request.json()).get("project_id")
        if not project:
            raise ServiceError(400, f"project_id={project!r} is not allowed: a project's id")
        self._state.sessions.move(request.path_params["session"], project)
        return JSONResponse({})

    async def copy_weights(self, request: Request) -> Response:
        """Copy a checkpoint to a new run in a new session; once per idempotency key."""
        body: dict[str, Any] = await request.json()
        state, source, ttl_s = self._state, body["source_path"], body.get("ttl_seconds")
        project = body.get("destination_project_id")
        if not project:
            raise ServiceError(400, "only copies with a destination_project_id are offered")
        check_ttl(ttl_s)
        facts = state.checkpoints.find(source)
        if facts["kind"] == "external_weights":
            raise ServiceError(400, f"source_path={source!r} is not allowed: no exports")
        key = request.headers.get("x-idempotency-key")
        if key is None or key not in self._copies:
            session = state.sessions.create(project=project)
            state.sessions.finish(session, "success")
            run = state.add_copy(session, state.run(facts["run_id"]))
            try:
                path = state.checkpoints.copy(facts, run, ttl_s=ttl_s)
            except DamagedCheckpoint as error:
                raise ServiceError(400, f"cannot copy {source}: {error}") from error
            if key is None:
                return JSONResponse({"tinker_path": path})
            self._copies[key] = path
        return JSONResponse({"tinker_path": self._copies[key]})


def _hour(request: Request, name: str) -> datetime:
    given = datetime.fromisoformat(request.query_params[name])
    given = given.replace(tzinfo=given.tzinfo or UTC)
    if given.minute or given.second or given.microsecond:
        raise ServiceError(400, f"{name}={given} is not allowed: a whole hour")
    return given
