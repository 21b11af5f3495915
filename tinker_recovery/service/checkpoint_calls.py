"""What is asked of the service about one stored checkpoint: delete it, change its lifetime."""

from __future__ import annotations

from tinker import types

from tinker_recovery.service.http import ServiceHttp


class CheckpointCalls:
    """Calls about single checkpoints, each by its ``tinker://RUN/weights/NAME`` path.

    Args:
        http: The way to the service.
    """

    def __init__(self, http: ServiceHttp) -> None:
        self._http = http

    async def delete(self, path: str) -> int | None:
        """Ask once for its deletion; the HTTP status, or None if no answer came in time."""
        return await self._http.tell("DELETE", _route(path))

    async def set_ttl(self, path: str, ttl_s: int | None) -> int | None:
        """Let it expire so many whole seconds from now, or never; the HTTP status, or None."""
        return await self._http.tell("PUT", f"{_route(path)}/ttl", json={"ttl_seconds": ttl_s})

    async def weights_info(self, path: str) -> types.WeightsInfoResponse:
        """What the service says of its weights.

        Raises:
            StatusError: It says nothing; StatusRefused with status 404 if it knows no such path.
        """
        return await self._http.ask(
            "POST",
            "weights_info",
            types.WeightsInfoResponse.model_validate,
            json={"tinker_path": path},
        )


def _route(path: str) -> str:
    run_id, _, name = path.removeprefix("tinker://").partition("/")
    return f"training_runs/{run_id}/checkpoints/{name}"
