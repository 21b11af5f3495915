"""The status reader: the service's word on runs and checkpoints, over an HTTP client of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Self, TypeVar

import httpx
from tinker import types

from tinker_recovery.checkpoints import WeightsFacts
from tinker_recovery.errors import StatusRefused
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.http import ServiceHttp

PAGE = 100
"""Entries asked for in one page, as the SDK's own CLI does."""

FAILED_PAGE = 200
"""Sessions asked for in one page of the search, the most it gives."""

_T = TypeVar("_T")
_NOT_FOUND = 404


class RunStatus(NamedTuple):
    """What a watcher needs of a run's status.

    Attributes:
        run_id: The Tinker run id.
        corrupted: Whether the service says that its weights can no longer be trusted.
        base_model: What it is trained on; None if the service does not say.
        lora_rank: Its LoRA rank, where it has one.
    """

    run_id: str
    corrupted: bool
    base_model: str | None = None
    lora_rank: int | None = None

    @classmethod
    def of(cls, run: types.TrainingRun) -> Self:
        """Of the SDK's own model of a run."""
        return cls(run.training_run_id, run.corrupted, run.base_model, run.lora_rank)

    @property
    def weights(self) -> WeightsFacts:
        """What its weights are, as far as its status says."""
        return WeightsFacts(self.base_model, self.lora_rank)


class RunPage(NamedTuple):
    """One page of the list of runs.

    Attributes:
        runs: Newest first, as the service orders them.
        total: Entries of the whole list.
    """

    runs: list[RunStatus]
    total: int


class FailedPage(NamedTuple):
    """One page of the sessions that failed for a reason of the service's own.

    Attributes:
        failed: Session id to reason.
        next_cursor: What to ask for the next page with; None for the last.
    """

    failed: dict[str, str]
    next_cursor: dict[str, Any] | None


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

    async def run_page(self, offset: int, troubled: Callable[[], object] = lambda: None) -> RunPage:
        """One page of the list of runs, from an offset on; no more of each than its status.

        ``troubled`` as in :meth:`run`.
        """
        return await self.http.ask(
            "GET",
            "training_runs",
            _run_page,
            troubled=troubled,
            params={"limit": PAGE, "offset": offset},
        )

    async def failed_sessions(
        self,
        cursor: dict[str, Any] | None = None,
        troubled: Callable[[], object] = lambda: None,
    ) -> FailedPage:
        """One page of the caller's failed sessions, those created last first.

        The SDK calls this search experimental, so a service may not have it.
        """
        query = {"statuses": [{"type": "failed"}], "limit": FAILED_PAGE}
        return await self.http.ask(
            "POST",
            "sessions/search",
            _failed_page,
            troubled=troubled,
            json=query if cursor is None else {**query, "cursor": cursor},
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

    async def session_over(self, run_id: str) -> bool:
        """Whether the session of a run was finished by its client, or failed."""
        session_id = run_id.partition(":train:")[0]
        reply = await self.http.ask(
            "POST",
            "sessions/search",
            types.SessionSearchResponse.model_validate,
            json={"session_id": session_id, "limit": 1},
        )
        return any(
            session.session_id == session_id and not isinstance(session.status, types.SessionActive)
            for session in reply.sessions
        )

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


def _run_page(reply: dict[str, Any]) -> RunPage:
    # Not by the SDK's models: they would build dates and checkpoints of ten thousand runs in each
    # look, which is most of its cost, and most fields of each are passed over.
    try:
        runs = [_run_status(run) for run in reply["training_runs"]]
        total = reply["cursor"]["total_count"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error!r} in a page of runs") from error
    if type(total) is not int:
        raise ValueError(f"total_count={total!r} is not a number")
    return RunPage(runs, total)


def _run_status(run: dict[str, Any]) -> RunStatus:
    run_id, corrupted = run["training_run_id"], run.get("corrupted", False)
    # A word that is not understood must not pass for "it is fine".
    if type(run_id) is not str or type(corrupted) is not bool:
        raise ValueError(f"training_run_id={run_id!r}, corrupted={corrupted!r}")
    base_model, rank = run.get("base_model"), run.get("lora_rank")
    return RunStatus(
        run_id,
        corrupted,
        base_model if type(base_model) is str else None,
        rank if type(rank) is int else None,
    )


def _failed_page(reply: Any) -> FailedPage:
    page = types.SessionSearchResponse.model_validate(reply)
    failed = {
        session.session_id: session.status.message
        for session in page.sessions
        if isinstance(session.status, types.SessionFailed) and session.status.category != "user"
    }
    cursor = page.next_cursor
    return FailedPage(failed, None if cursor is None else cursor.model_dump(mode="json"))
