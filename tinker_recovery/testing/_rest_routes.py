"""The routes of the SDK's RestClient: runs, checkpoints and sessions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinker_recovery.testing._options import Metadata
from tinker_recovery.testing._runs import ServiceError, ServiceRun
from tinker_recovery.testing._service_state import ServiceState
from tinker_recovery.testing._sessions import project_of

_T = TypeVar("_T")
_TYPES = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_TTL_S = (3600, 10 * 365 * 24 * 3600)


class RestRoutes:
    """Handlers that read the service's state and change checkpoints."""

    def __init__(self, state: ServiceState, *, sizes: bool) -> None:
        self._state = state
        self._sizes = sizes
        self._checkpoints = state.checkpoints

    # Runs and checkpoints

    async def training_runs(self, request: Request) -> Response:
        """All runs, newest first, in pages."""
        runs, cursor = _page(request, self._state.runs())
        page = [self._training_run(run) for run in runs]
        return JSONResponse({"training_runs": page, "cursor": cursor})

    async def training_run(self, request: Request) -> Response:
        """One run."""
        return JSONResponse(self._training_run(self._state.run(request.path_params["run"])))

    def _training_run(self, run: ServiceRun) -> dict[str, Any]:
        listed = self._checkpoints.listed(run.run_id)
        last = {facts["kind"]: self._entry(facts) for facts in listed}
        return _without_nulls(
            {
                "training_run_id": run.run_id,
                "base_model": run.facts["base_model"],
                "model_owner": "local",
                "is_lora": True,
                "lora_rank": run.facts["rank"],
                "corrupted": run.corrupted,
                "last_request_time": run.facts["last_request_time"],
                "last_checkpoint": last.get("weights"),
                "last_sampler_checkpoint": last.get("sampler_weights"),
                "user_metadata": run.facts["user_metadata"],
            }
        )

    async def run_checkpoints(self, request: Request) -> Response:
        """The checkpoints of one run."""
        run = self._state.run(request.path_params["run"])
        found = [self._entry(facts) for facts in self._checkpoints.listed(run.run_id)]
        return JSONResponse({"checkpoints": found})

    async def checkpoints(self, request: Request) -> Response:
        """The checkpoints of all runs, in pages."""
        found = [
            self._entry(facts)
            for run in self._state.runs()
            for facts in reversed(self._checkpoints.listed(run.run_id))
        ]
        page, cursor = _page(request, found)
        return JSONResponse({"checkpoints": page, "cursor": cursor})

    def _entry(self, facts: dict[str, Any]) -> dict[str, Any]:
        hidden = {} if self._sizes else {"size_bytes": None}
        named = {"base_model": self._state.run(facts["run_id"]).facts["base_model"]}
        return _without_nulls(_checkpoint(facts) | named | hidden | facts.get("listed_as", {}))

    async def weights_info(self, request: Request) -> Response:
        """What a client needs to know to load a checkpoint."""
        facts = self._checkpoints.find((await request.json())["tinker_path"])
        run = self._state.run(facts["run_id"])
        trained = {"train_mlp": True, "train_attn": True, "train_unembed": True}
        return JSONResponse(
            {
                "base_model": run.facts["base_model"],
                "is_lora": True,
                "lora_rank": run.facts["rank"],
                **trained,
            }
        )

    async def delete(self, request: Request) -> Response:
        """Delete a checkpoint."""
        self._checkpoints.delete(_path(request))
        return JSONResponse({})

    async def set_ttl(self, request: Request) -> Response:
        """Change when a checkpoint expires."""
        ttl_s = (await request.json()).get("ttl_seconds")
        check_ttl(ttl_s)
        self._checkpoints.set_ttl(_path(request), ttl_s)
        return JSONResponse({})

    async def publish(self, request: Request) -> Response:
        """Make a checkpoint public."""
        return self._set_public(_path(request), public=True)

    async def unpublish(self, request: Request) -> Response:
        """Make a checkpoint private."""
        return self._set_public(_path(request), public=False)

    def _set_public(self, path: str, *, public: bool) -> Response:
        if self._checkpoints.find(path)["public"] == public:
            raise ServiceError(409, f"{path} is {'public' if public else 'private'} already")
        self._checkpoints.change(path, public=public)
        return JSONResponse({})

    # Sessions

    async def session(self, request: Request) -> Response:
        """One session."""
        session = request.path_params["session"]
        facts = self._state.sessions.facts(session)
        runs = [run.run_id for run in self._state.runs_of(session)]
        named = {key: facts[key] for key in ("user_metadata", "display_name")}
        found = {"training_run_ids": runs, "sampler_ids": self._state.samplers.ids(session)}
        return JSONResponse({**found, **_without_nulls(named)})

    async def sessions(self, request: Request) -> Response:
        """The ids of all sessions, newest first."""
        limit = int(request.query_params.get("limit", 20))
        offset = int(request.query_params.get("offset", 0))
        found = self._state.sessions.listed()[offset : offset + limit]
        return JSONResponse({"sessions": found})

    async def search_sessions(self, request: Request) -> Response:
        """Sessions with their states, as ``tinker.types.SessionSearchResponse``."""
        found, cursor = self._state.sessions.search(await request.json())
        page = [self._summary(facts) for facts in found]
        return JSONResponse(_without_nulls({"sessions": page, "next_cursor": cursor}))

    def _summary(self, facts: dict[str, Any]) -> dict[str, Any]:
        checkpoints = [
            checkpoint
            for run in self._state.runs_of(facts["session_id"])
            for checkpoint in self._checkpoints.listed(run.run_id)
        ]
        return _without_nulls(
            {
                "session_id": facts["session_id"],
                "created_at": facts["created_at"],
                "owner": "local",
                "project_id": project_of(facts),
                "status": facts["status"] and _without_nulls(facts["status"]),
                "checkpoints_count": len(checkpoints),
                "display_name": facts["display_name"],
                "user_metadata": facts["user_metadata"],
                "checkpoint_storage_bytes": sum(one["size_bytes"] for one in checkpoints),
            }
        )


def check_ttl(ttl_s: float | None) -> None:
    """Raise ServiceError 400 unless it is a time to live that the service allows."""
    low, high = _TTL_S
    if ttl_s is not None and not low <= ttl_s <= high:
        raise ServiceError(400, f"ttl_seconds={ttl_s!r} is not allowed: {low} to {high}, or null")


def kept_metadata(
    metadata: Metadata, run: ServiceRun, seq_id: int, given: dict[str, str] | None
) -> dict[str, str] | None:
    """What a save keeps of its ``user_metadata``; raises ServiceError 422 if it is refused."""
    if given is not None and metadata == "refused":
        run.lose(seq_id)
        raise ServiceError(422, "user_metadata: extra inputs are not permitted")
    return given if metadata == "kept" else None


def _path(request: Request) -> str:
    found = request.path_params
    return f"tinker://{found['run']}/{found['kind']}/{found['name']}"


def _page(request: Request, every: list[_T]) -> tuple[list[_T], dict[str, int]]:
    limit = int(request.query_params.get("limit", 20))
    offset = int(request.query_params.get("offset", 0))
    if limit < 1 or offset < 0:
        raise ServiceError(400, f"{limit=}, {offset=} is not allowed: 1 or more, 0 or more")
    cursor = {"offset": offset, "limit": limit, "total_count": len(every)}
    return every[offset : offset + limit], cursor


def _without_nulls(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


def _checkpoint(facts: dict[str, Any]) -> dict[str, Any]:
    expires = facts["expires"]
    return {
        "checkpoint_id": f"{facts['kind']}/{facts['name']}",
        "checkpoint_type": _TYPES[facts["kind"]],
        "time": facts["time"],
        "tinker_path": facts["path"],
        "size_bytes": facts["size_bytes"],
        "public": facts["public"],
        "user_metadata": facts["user_metadata"],
        "expires_at": None if expires is None else datetime.fromtimestamp(expires, UTC).isoformat(),
    }
