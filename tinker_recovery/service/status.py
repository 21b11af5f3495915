"""The status reader: reads runs, sessions and checkpoints over an HTTP client of its own."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import httpx
from pydantic import ValidationError
from tinker import types

from tinker_recovery.checkpoints import WeightsFacts
from tinker_recovery.errors import StatusError, StatusRefused
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service.base import RUN_FINISHED, Endpoint
from tinker_recovery.service.bounded import DEFAULT_LIMITS, Listing, ReplyLimits
from tinker_recovery.service.http import ServiceHttp
from tinker_recovery.service.metadata import ServiceMetadata
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE
from tinker_recovery.service.routes import route
from tinker_recovery.service.sharing import Shared
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

PAGE = 100
"""Entries in a page, as in the SDK's own CLI."""

FAILED_PAGE = 200
"""Sessions in a page of the search: its maximum."""

MOST_MISSED = 3
"""How many Tinker runs of a run are asked for to find that the service knows nothing of it."""

_NOT_FOUND = 404


def session_id_of(run_id: str) -> str:
    """The id of the session that a Tinker run was created in."""
    return run_id.partition(":train:")[0]


class RunStatus(NamedTuple):
    """The part of a Tinker run's status that polls need.

    Attributes:
        run_id: The Tinker run id.
        corrupted: Whether the service says that its weights can no longer be trusted.
        base_model: What it is trained on; None if the service does not say.
        lora_rank: Its LoRA rank, if it has one.
    """

    run_id: str
    corrupted: bool
    base_model: str | None = None
    lora_rank: int | None = None

    @classmethod
    def of(cls, run: types.TrainingRun) -> Self:
        """From the SDK's model of a run."""
        return cls(run.training_run_id, run.corrupted, run.base_model, run.lora_rank)

    @property
    def weights(self) -> WeightsFacts:
        """What its weights are, as far as its status says."""
        return WeightsFacts(self.base_model, self.lora_rank)


class Asked(NamedTuple):
    """When a status was asked for: its answer says nothing of what came later.

    Attributes:
        at_s: Seconds of the monotonic clock.
        service_s: The service's own time, in seconds since the epoch.
    """

    at_s: float
    service_s: float


class RunPage(NamedTuple):
    """One page of the list of runs.

    Attributes:
        runs: Newest first, as the service orders them.
        total: Entries of the whole list.
    """

    runs: list[RunStatus]
    total: int


class FailedPage(NamedTuple):
    """One page of the sessions that failed for a reason on the service's side.

    Attributes:
        failed: Session id to reason.
        next_cursor: The cursor of the next page; None for the last.
    """

    failed: dict[str, str]
    next_cursor: dict[str, Any] | None


class StatusReader:
    """Reads runs, sessions and checkpoints from the service.

    Every call is one or more requests, each within ``timeout_s``; a transient failure is retried up
    to twice within it. All raise :class:`StatusUnavailable` or :class:`StatusRefused`, and nothing
    else; all are cancellable at any point. ``unreachable`` is called as soon as the service is
    found out of reach, even if a retry then succeeds. The SDK calls the search for sessions
    experimental, so a service may not have it.

    Args:
        endpoint: The service.
        timeout_s: Deadline of one request, retries included, in seconds.
        limits: How much of a reply, and of a listing, is read.
        transport: Instead of the network, for tests.
        wall: Our clock, in seconds since the epoch.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float = 10.0,
        limits: ReplyLimits = DEFAULT_LIMITS,
        transport: httpx.AsyncBaseTransport | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.http = ServiceHttp(
            endpoint, timeout_s=timeout_s, limits=limits, transport=transport, wall=wall
        )
        """Its HTTP client, also for other requests."""
        self.metadata = ServiceMetadata()
        """What the service does with the metadata of saves."""
        self._every_checkpoint = Shared(self._read_every_checkpoint)

    @classmethod
    def by(cls, policy: RecoveryPolicy, endpoint: Endpoint, wall: Callable[[], float]) -> Self:
        """One with the deadlines and limits of a policy."""
        limits = ReplyLimits.of(policy)
        return cls(endpoint, timeout_s=policy.status_timeout_s, limits=limits, wall=wall)

    def service_now(self) -> float:
        """The service's time, in seconds since the epoch: what its dates are compared with."""
        return self.http.clock.now()

    def service_date(self) -> datetime:
        """The same as a date, in UTC."""
        return datetime.fromtimestamp(self.service_now(), UTC)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def run(self, run_id: str) -> types.TrainingRun:
        """One run's status."""
        return await self.http.ask(
            "GET",
            route("training_runs", run_id),
            _training_run,
        )

    async def knows_nothing_of(self, run_ids: Sequence[str]) -> bool:
        """Whether the service certainly has none of these Tinker runs, nor their sessions.

        Asks for the newest few, each by its id and not in a list, which may lag. No answer counts
        as no, and so does a service without the search for sessions.
        """
        try:
            for run_id in run_ids[-MOST_MISSED:]:
                if await self._session(run_id) is not None or await self._has_run(run_id):
                    return False
        except StatusError:
            return False
        return bool(run_ids)

    async def _has_run(self, run_id: str) -> bool:
        try:
            await self.run(run_id)
        except StatusRefused as error:
            if error.status_code == _NOT_FOUND:
                return False
            raise
        return True

    async def run_page(self, offset: int) -> RunPage:
        """One page of the list of runs, from an offset on."""
        return await self.http.ask(
            "GET",
            "training_runs",
            _run_page,
            params={"limit": PAGE, "offset": offset},
        )

    async def failed_sessions(self, cursor: dict[str, Any] | None = None) -> FailedPage:
        """One page of the caller's failed sessions, newest first."""
        query = {"statuses": [{"type": "failed"}], "limit": FAILED_PAGE}
        return await self.http.ask(
            "POST",
            "sessions/search",
            _failed_page,
            json=query if cursor is None else {**query, "cursor": cursor},
        )

    async def session_failure(self, run_id: str) -> str | None:
        """Why a run's session failed, if for a reason on the service's side; else None."""
        session = await self._session(run_id)
        if session is None or not isinstance(session.status, types.SessionFailed):
            return None
        return None if session.status.category == "user" else session.status.message

    async def session_over(self, run_id: str) -> bool:
        """Whether a run's session was finished by its client, or failed."""
        session = await self._session(run_id)
        return session is not None and not isinstance(session.status, types.SessionActive)

    async def run_finished(self, run_id: str) -> bool | None:
        """Whether a supervised run has come to its end in this Tinker run, by its session's end.

        None where the service does not say how the session ended, or that it has.
        """
        try:
            session = await self._session(run_id)
        except StatusError as error:
            if isinstance(error, StatusRefused) or error.status_code in NO_SUCH_ROUTE:
                return None
            raise
        if session is None or not isinstance(session.status, types.ClientSessionFinished):
            return None
        return session.status.detail == RUN_FINISHED

    async def _session(self, run_id: str) -> types.SessionSummary | None:
        session_id = session_id_of(run_id)
        reply = await self.http.ask(
            "POST",
            "sessions/search",
            types.SessionSearchResponse.model_validate,
            json={"session_id": session_id, "limit": 1},
        )
        return next((each for each in reply.sessions if each.session_id == session_id), None)

    async def checkpoints(self, run_id: str) -> list[types.Checkpoint]:
        """The checkpoints of one run; empty if the service does not know the run."""
        try:
            reply = await self.http.ask(
                "GET",
                route("training_runs", run_id, "checkpoints"),
                _checkpoints,
            )
        except StatusRefused as error:
            if error.status_code == _NOT_FOUND:
                return []
            raise
        listed = self.metadata.filled(reply, run_id)
        for each in listed:
            self.http.clock.note_listed(each.time.timestamp())
        return listed

    async def runs(self) -> AsyncIterator[types.TrainingRun]:
        """All runs, page by page, newest first."""
        seen = set[str]()
        async for page in self._pages("training_runs"):
            for entry in page:
                run = _training_run(entry)
                if run.training_run_id not in seen:
                    seen.add(run.training_run_id)
                    yield run

    async def every_checkpoint(self) -> AsyncIterator[types.Checkpoint]:
        """The checkpoints of all runs; who asks at the same time shares the reading of the list."""
        for entry in self.metadata.filled(await self._every_checkpoint.get()):
            yield entry

    async def _read_every_checkpoint(self) -> list[types.Checkpoint]:
        found: dict[str, types.Checkpoint] = {}
        async for page in self._pages("checkpoints"):
            found |= {each.tinker_path: each for each in _checkpoints({"checkpoints": page})}
        return list(found.values())

    async def _pages(self, path: str) -> AsyncIterator[list[Any]]:
        """Every page of a list, which has the key ``path`` in its reply.

        An entry may come twice: where some are deleted meanwhile, as many are read again, as those
        behind them have moved up past what was read.
        """
        offset, total_before, again, steady = 0, 0, False, True
        listing = Listing(path, self.http.limits)
        while True:
            entries, total = await self.http.ask(
                "GET",
                path,
                functools.partial(_page, path),
                params={"limit": PAGE, "offset": offset},
            )
            listing.note_page(len(entries), total)
            gone, total_before = total_before - (total or 0), total or 0
            if again and gone < 0:
                steady = False  # it counts something else, such as those that are left to read
            again = steady and gone > 0 and offset > 0 and total is not None
            if again:
                offset = max(0, offset - gone)
                continue
            yield entries
            offset += len(entries)
            if not entries or total is None or offset >= total:
                return


def _page(path: str, reply: dict[str, Any]) -> tuple[list[Any], int | None]:
    entries, cursor = reply.get(path), reply.get("cursor")
    if type(entries) is not list:
        raise ValueError(f"it has no list of {path}")
    return entries, None if cursor is None else types.Cursor.model_validate(cursor).total_count


def _checkpoints(reply: dict[str, Any]) -> list[types.Checkpoint]:
    """The entries that can be read: one that cannot is passed over, and costs no other."""
    entries = reply.get("checkpoints")
    if type(entries) is not list:
        raise ValueError("it has no list of checkpoints")
    found = []
    for entry in entries:
        try:
            found.append(types.Checkpoint.model_validate(entry))
        except ValidationError as error:
            path = entry.get("tinker_path") if isinstance(entry, dict) else None
            _passed_over(str(path or entry)[:200], _in_words(error))
    return found


@functools.lru_cache(maxsize=1024)
def _passed_over(what: str, why: str) -> None:
    # Cached, so that each is said once.
    logger.warning("%s is passed over: its entry in the listing cannot be read: %s", what, why)


def _in_words(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
        for each in error.errors(include_url=False, include_input=False)
    )


def _training_run(reply: Any) -> types.TrainingRun:
    """A run's status, which an odd checkpoint among its newest does not make unreadable."""
    try:
        return types.TrainingRun.model_validate(reply)
    except ValidationError:
        if not isinstance(reply, dict):
            raise
        rest = {
            key: value
            for key, value in reply.items()
            if key not in {"last_checkpoint", "last_sampler_checkpoint"}
        }
        return types.TrainingRun.model_validate(rest)


def _run_page(reply: dict[str, Any]) -> RunPage:
    # Without the SDK's models: they would parse every field of ten thousand runs in each poll,
    # which is most of its cost.
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
    # A value of another type must not pass for "sound".
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
