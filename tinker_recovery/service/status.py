"""The status reader: the service's word on runs and checkpoints, over an HTTP client of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Self, TypeVar

import httpx
from tinker import types

from tinker_recovery.errors import StatusRefused
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.http import ServiceHttp

PAGE = 100
"""Entries asked for in one page, as the SDK's own CLI does."""

_T = TypeVar("_T")
_NOT_FOUND = 404


class StatusReader:
    """Reads what the service says of runs and checkpoints.

    Every call is one or more GETs, each within ``timeout_s``; a passing failure is tried again up
    to twice within it. All raise :class:`StatusUnavailable` or :class:`StatusRefused`, and nothing
    else; all are cancellable at any point.

    Args:
        endpoint: Where the service is.
        timeout_s: Deadline of one read, retries included, in seconds.
        transport: Instead of the network, for tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.http = ServiceHttp(endpoint, timeout_s=timeout_s, transport=transport)
        """What it asks over; also good for other questions."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def run(
        self, run_id: str, troubled: Callable[[], object] = lambda: None
    ) -> types.TrainingRun:
        """One run's status.

        ``troubled`` is called the moment the service is found out of reach, though a further try
        may still make the read good.
        """
        return await self.http.ask(
            "GET", f"training_runs/{run_id}", types.TrainingRun.model_validate, troubled=troubled
        )

    async def runs(self) -> AsyncIterator[types.TrainingRun]:
        """All runs, page by page, newest first as the service orders them."""
        offset = 0
        while True:
            page = await self._get(
                "training_runs",
                {"limit": PAGE, "offset": offset},
                types.TrainingRunsResponse.model_validate,
            )
            for run in page.training_runs:
                yield run
            offset += len(page.training_runs)
            if not page.training_runs or offset >= page.cursor.total_count:
                return

    async def checkpoints(self, run_id: str) -> list[types.Checkpoint]:
        """The checkpoints of one run; empty if the service does not know the run."""
        try:
            reply = await self._get(
                f"training_runs/{run_id}/checkpoints",
                {},
                types.CheckpointsListResponse.model_validate,
            )
        except StatusRefused as error:
            if error.status_code == _NOT_FOUND:
                return []
            raise
        return list(reply.checkpoints)

    async def session_failure(
        self, run_id: str, troubled: Callable[[], object] = lambda: None
    ) -> str | None:
        """Why the session of a run failed for a reason of the service's own; None if it did not.

        The SDK calls this search experimental, so a service may not have it.
        """
        session_id = run_id.partition(":train:")[0]
        reply = await self.http.ask(
            "POST",
            "sessions/search",
            types.SessionSearchResponse.model_validate,
            troubled=troubled,
            json={"session_id": session_id, "limit": 1},
        )
        for session in reply.sessions:
            status = session.status
            if session.session_id == session_id and isinstance(status, types.SessionFailed):
                return None if status.category == "user" else status.message
        return None

    async def every_checkpoint(self) -> AsyncIterator[types.Checkpoint]:
        """The checkpoints of all runs, page by page."""
        offset = 0
        while True:
            page = await self._get(
                "checkpoints",
                {"limit": PAGE, "offset": offset},
                types.CheckpointsListResponse.model_validate,
            )
            for checkpoint in page.checkpoints:
                yield checkpoint
            offset += len(page.checkpoints)
            if not page.checkpoints or page.cursor is None or offset >= page.cursor.total_count:
                return

    async def _get(self, path: str, params: dict[str, int], parse: Callable[[Any], _T]) -> _T:
        return await self.http.ask("GET", path, parse, params=params)
