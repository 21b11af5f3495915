"""The Poller: one poll of the watched runs, one by one if they are few, else by pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.detection.outage import Outage
from tinker_recovery.detection.plan import (
    FEW,
    SPREAD_PAGES,
    SPREAD_SINGLE,
    PageCounts,
    PagePoll,
)
from tinker_recovery.errors import StatusError, StatusUnavailable
from tinker_recovery.service import Asked, RunStatus, StatusReader
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE, say_no_search
from tinker_recovery.service.status import PAGE, session_id_of
from tinker_recovery.telemetry import EventSink, names
from tinker_recovery.telemetry.text import counted

_NO_SUCH_QUERY = NO_SUCH_ROUTE | {400, 422}

_AT_ONCE = 8
"""Status reads in flight at the same time."""

_FAILED_PAGES = 8
"""Most pages of failed sessions read in one poll; the next poll continues behind them."""


class PolledRun(Protocol):
    """A run as the Monitor sees it."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def watched_run_id(self) -> str | None:
        """The Tinker run id to poll; None while there is none, as during a recovery."""
        ...

    @property
    def silent_s(self) -> float | None:
        """Seconds since its open work last made progress; None if none is open, or known."""
        ...

    def note_status(self, status: RunStatus, asked: Asked) -> None:
        """Take the status that the service reports, and when it was asked for it."""
        ...

    def note_session_failed(self, run_id: str, message: str) -> None:
        """Take the service's reason for failing the session of a Tinker run."""
        ...

    def check_silence(self) -> None:
        """Check whether submitted work makes progress."""
        ...


class Poller:
    """Polls runs, and keeps between polls what makes the next one cheaper.

    A failed read is reported as an event and is never a fault: the next poll may succeed.

    Args:
        reader: Reads the status of runs.
        interval_s: Seconds between two polls; the requests of a poll of many runs are spread over
            a part of it. 0 for as fast as possible.
        events: Gets an event for each failed read.
        clock: Time.
        answered: Called after each answer of the service.
        outage: Where it is noted whether the service answers; by default one of its own.
    """

    def __init__(
        self,
        reader: StatusReader,
        *,
        interval_s: float,
        events: EventSink,
        clock: Clock,
        answered: Callable[[], object] = lambda: None,
        outage: Outage | None = None,
    ) -> None:
        self._reader = reader
        self._interval_s = interval_s
        self._first = True
        self._events = events
        self._clock = clock
        self._answered = answered
        self._outage = outage or Outage(events, clock.monotonic)
        self._counts: PageCounts | None = None
        self._sessions_searchable = True
        self._failed_from: dict[str, Any] | None = None
        self.out_of_reach = False
        """Whether the service could not answer in the last poll."""

    async def poll(self, watched: Mapping[str, PolledRun], *, quick: bool = False) -> int:
        """Poll runs once; returns how many were found at fault.

        Args:
            watched: The runs by Tinker run id.
            quick: Make only a few requests; what they miss is left to the next full poll.
        """
        self.out_of_reach = False
        if watched:
            await self._poll(watched, quick=quick)
            about = next(iter(watched.values())) if len(watched) == 1 else None
            name = "" if about is None else about.name
            if self.out_of_reach:
                self._outage.lasts(name, None if about is None else about.silent_s)
            else:
                self._outage.over(name)
        return sum(run.watched_run_id != run_id for run_id, run in watched.items())

    async def _poll(self, watched: Mapping[str, PolledRun], *, quick: bool) -> None:
        if len(watched) <= FEW:
            async with anyio.create_task_group() as group:
                for run_id, run in watched.items():
                    group.start_soon(self._ask, run, run_id)
        elif quick:
            pages = PagePoll(watched, None, page=PAGE, at_most=FEW)
            await self._pages(pages, watched, 0.0)
        else:
            await self._ask_many(watched)

    async def look(self, runs: Mapping[str, PolledRun]) -> None:
        """Read the status of these runs in between two polls; what fails is not reported."""
        async with anyio.create_task_group() as group:
            for run_id, run in runs.items():
                group.start_soon(self._read, run, run_id)

    # A few runs

    async def _ask(self, run: PolledRun, run_id: str) -> None:
        """Read the status of one run and of its session."""
        error = await self._read(run, run_id)
        if error is not None:
            # A 404 right after creation, an outage, a refused key: trouble of the service, not of
            # the run. If it is more, the loop's own calls fail.
            self._read_failed("the run", error, {names.RUN_ID: run_id}, run=run.name)
            return
        failed = await self._session_failure(run_id)
        self._answered()
        if failed is not None:
            run.note_session_failed(run_id, failed)

    async def _read(self, run: PolledRun, run_id: str) -> StatusError | None:
        asked = self._asking()
        try:
            status = await self._reader.run(run_id)
        except StatusError as error:
            return error
        finally:
            self._answered()
        run.note_status(RunStatus.of(status), asked)
        return None

    def _asking(self) -> Asked:
        return Asked(self._clock.monotonic(), self._reader.service_now())

    async def _session_failure(self, run_id: str) -> str | None:
        if not self._sessions_searchable:
            return None
        try:
            return await self._reader.session_failure(run_id)
        except StatusError as error:
            # The search is experimental: a service without it is not asked again. Other errors
            # are ignored: the run's own status has just been read.
            if error.status_code in NO_SUCH_ROUTE:
                self._search_no_more()
            return None

    def _search_no_more(self) -> None:
        self._sessions_searchable = False
        say_no_search(self._reader.http.endpoint.base_url)

    def _read_failed(
        self, what: str, error: StatusError, fields: Mapping[str, str | int], *, run: str = ""
    ) -> None:
        lasts = False
        if isinstance(error, StatusUnavailable):
            self.out_of_reach = True
            lasts = not self._outage.begins()
        message = f"reading the status of {what} failed: {error}; the next poll reads it again"
        about = {**fields, names.ERROR_TYPE: type(error).__qualname__}
        if lasts:  # polls are frequent then
            self._events.lasts(names.EVENT_POLL_ERROR, run, message, about)
        else:
            self._events.emit(names.EVENT_POLL_ERROR, run, message, about)

    # Many runs

    async def _ask_many(self, watched: Mapping[str, PolledRun]) -> None:
        """Pages as far as they are worth it, then the runs on none of them, then failed sessions.

        A service that cannot answer one of these is not asked again before the next poll: ten
        thousand more requests would only add to its load.
        """
        pages = PagePoll(watched, self._counts, page=PAGE)
        # The first is not spread: no run has been polled before it.
        spread_s = 0.0 if self._first else self._interval_s * SPREAD_PAGES
        if not await self._pages(pages, watched, spread_s):
            return
        self._first = False
        self._counts = pages.counts()
        missing = {run_id: watched[run_id] for run_id in pages.missing()}
        if await self._one_by_one(missing):
            await self._failed_sessions(watched)

    async def _pages(
        self,
        pages: PagePoll,
        watched: Mapping[str, PolledRun],
        spread_s: float,
    ) -> bool:
        """Read pages of the list; returns whether the service answered them all."""
        errors: list[StatusError] = []
        free = anyio.Semaphore(_AT_ONCE, fast_acquire=True)  # each page waits anyway

        async def read(offset: int) -> None:
            asked = self._asking()
            try:
                page = await self._reader.run_page(offset)
            except StatusError as error:
                errors.append(error)
                return
            finally:
                free.release()
                self._answered()
            statuses = {status.run_id: status for status in page.runs}
            for run_id in pages.note_page(offset, statuses, page.total):
                watched[run_id].note_status(statuses[run_id], asked)

        async with anyio.create_task_group() as group:
            while not errors and (offset := pages.next_offset()) is not None:
                await free.acquire()
                if offset and spread_s:
                    # On time, even if the page before is not answered yet: a slow service must not
                    # lengthen the poll beyond the interval.
                    group.start_soon(read, offset)
                else:  # the first page says how long the list is
                    await read(offset)
                if spread_s:
                    await self._clock.sleep(spread_s / pages.planned)
        if errors:
            self._read_failed(counted(len(watched), "run"), errors[0], {names.RUNS: len(watched)})
        return not errors

    async def _one_by_one(self, missing: Mapping[str, PolledRun]) -> bool:
        """Read the status of each of these runs; returns whether the service could be reached."""
        errors: list[StatusError] = []
        free = anyio.Semaphore(_AT_ONCE)

        async def read(run_id: str, run: PolledRun) -> None:
            try:
                error = await self._read(run, run_id)
            finally:
                free.release()
            if error is not None:
                errors.append(error)

        def reached() -> bool:
            return not any(isinstance(error, StatusUnavailable) for error in errors)

        async with anyio.create_task_group() as group:
            for run_id, run in missing.items():
                await free.acquire()
                if not reached():
                    break
                group.start_soon(read, run_id, run)
                if len(missing) > FEW:
                    await self._clock.sleep(self._interval_s * SPREAD_SINGLE / len(missing))
        if errors:
            # One event for all: a run that the service does not list yet fails in every poll.
            self._read_failed(counted(len(errors), "run"), errors[-1], {names.RUNS: len(errors)})
        return reached()

    async def _failed_sessions(self, watched: Mapping[str, PolledRun]) -> None:
        """Read which sessions failed: the newest, then from where the last poll stopped.

        The search is ordered by when a session was created, not by when it failed.
        """
        if not self._sessions_searchable:
            return
        failed: dict[str, str] = {}
        cursor: dict[str, Any] | None = None
        resume_from, self._failed_from = self._failed_from, None
        try:
            for _ in range(_FAILED_PAGES):
                page = await self._reader.failed_sessions(cursor)
                self._answered()
                failed |= page.failed
                cursor, resume_from = page.next_cursor and (resume_from or page.next_cursor), None
                if cursor is None:
                    break
            self._failed_from = cursor
        except StatusError as error:
            if error.status_code in _NO_SUCH_QUERY:
                self._search_no_more()
        if failed:
            for run_id, run in watched.items():
                message = failed.get(session_id_of(run_id))
                if message is not None:
                    run.note_session_failed(run_id, message)


def by_run_id(runs: Sequence[PolledRun]) -> dict[str, PolledRun]:
    """The runs that can be polled, by Tinker run id."""
    return {run_id: run for run in runs if (run_id := run.watched_run_id) is not None}
