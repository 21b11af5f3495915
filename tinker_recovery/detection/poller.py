"""One look at the watched runs: a few are asked for one by one, many by pages of the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.detection.plan import FEW, SPREAD, SPREAD_REST, Census, Sweep
from tinker_recovery.errors import StatusError, StatusUnavailable
from tinker_recovery.service import RunStatus, StatusReader
from tinker_recovery.service.status import PAGE
from tinker_recovery.telemetry import EventSink, names

_NO_SUCH_ROUTE = frozenset({404, 405, 501})
_NO_SUCH_QUERY = _NO_SUCH_ROUTE | {400, 422}

_AT_ONCE = 8
"""Status reads in flight at the same time."""

_FAILED_PAGES = 8
"""Most pages of failed sessions read in one look; the next look goes on behind them."""


class PolledRun(Protocol):
    """A run as the Monitor sees it."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def watched_run_id(self) -> str | None:
        """The Tinker run id to ask about, or None while there is nothing to watch."""
        ...

    def note_status(self, status: RunStatus) -> None:
        """What the service said."""
        ...

    def note_session_failed(self, run_id: str, message: str) -> None:
        """The service has failed the session of a run."""
        ...

    def note_unreachable(self) -> None:
        """The service could not be reached."""
        ...

    def check_silence(self) -> None:
        """See whether submitted work makes progress."""
        ...


class Poller:
    """Looks at runs, and remembers between two looks what makes the next one cheaper.

    A read that fails is told of and never judged: what one look cannot see, the next one may.

    Args:
        reader: Where to ask.
        interval_s: Seconds between two looks, over a part of which the requests for many runs are
            spread; 0 for as fast as they go.
        events: Where read failures are told.
        clock: Time.
    """

    def __init__(
        self, reader: StatusReader, *, interval_s: float, events: EventSink, clock: Clock
    ) -> None:
        self._reader = reader
        self._interval_s = interval_s
        self._first = True
        self._events = events
        self._clock = clock
        self._census: Census | None = None
        self._sessions_searchable = True
        self._failed_from: dict[str, Any] | None = None
        self.out_of_reach = False
        """Whether the last look met a service that could not answer."""

    async def look(
        self,
        watched: Mapping[str, PolledRun],
        answered: Callable[[], object],
        *,
        brisk: bool = False,
    ) -> int:
        """Look at the runs of these Tinker run ids; returns how many were found at fault.

        Args:
            watched: The runs by their ids.
            answered: Called after each answer.
            brisk: Between two full looks: a few requests, and what they do not show is left to
                the next full one.
        """
        self.out_of_reach = False
        if len(watched) <= FEW:
            async with anyio.create_task_group() as group:
                for run_id, run in watched.items():
                    group.start_soon(self._ask, run, run_id, answered)
        elif brisk:
            await self._pages(Sweep(watched, None, page=PAGE, at_most=FEW), watched, answered, 0.0)
        else:
            await self._ask_many(watched, answered)
        return sum(run.watched_run_id != run_id for run_id, run in watched.items())

    # A few runs

    async def _ask(self, run: PolledRun, run_id: str, answered: Callable[[], object]) -> None:
        """All there is to know of one run."""
        error = await self._read(run, run_id, answered)
        if error is not None:
            # A 404 right after creation, an outage, a refused key: all are the service's
            # trouble to answer, not the run's. The loop's own calls tell if it is more.
            self._unread(run.name, f"the run is left alone: {error}", error, {names.RUN_ID: run_id})
            return
        failed = await self._session_failure(run, run_id)
        answered()
        if failed is not None:
            run.note_session_failed(run_id, failed)

    async def _read(
        self, run: PolledRun, run_id: str, answered: Callable[[], object]
    ) -> StatusError | None:
        try:
            status = await self._reader.run(run_id, run.note_unreachable)
        except StatusError as error:
            return error
        finally:
            answered()
        run.note_status(RunStatus.of(status))
        return None

    async def _session_failure(self, run: PolledRun, run_id: str) -> str | None:
        """Why the run's session failed, if the service says that it did."""
        if not self._sessions_searchable:
            return None
        try:
            return await self._reader.session_failure(run_id, run.note_unreachable)
        except StatusError as error:
            # The search is experimental: a service without it is not asked again. Any other
            # trouble is passed over: the run's own status has just been read.
            if error.status_code in _NO_SUCH_ROUTE:
                self._sessions_searchable = False
            return None

    def _unread(
        self, run: str, what: str, error: StatusError, fields: Mapping[str, str | int]
    ) -> None:
        if isinstance(error, StatusUnavailable):
            self.out_of_reach = True
        self._events.emit(
            names.EVENT_POLL_ERROR,
            run,
            f"reading the status failed, {what}",
            {**fields, names.ERROR_TYPE: type(error).__qualname__},
        )

    # Many runs

    async def _ask_many(
        self, watched: Mapping[str, PolledRun], answered: Callable[[], object]
    ) -> None:
        """Pages as far as they pay, then who was on none of them, then the failed sessions.

        A service that cannot answer one of these is left alone until the next look: ten thousand
        questions are no help to it.
        """
        sweep = Sweep(watched, self._census, page=PAGE)
        # The first is not spread: nobody has been looked at before it.
        spread_s = 0.0 if self._first else self._interval_s * SPREAD
        if not await self._pages(sweep, watched, answered, spread_s):
            return
        self._first = False
        self._census = sweep.census()
        missing = {run_id: watched[run_id] for run_id in sweep.missing()}
        if await self._rest(missing, answered):
            await self._failed_sessions(watched, answered)

    async def _pages(
        self,
        sweep: Sweep,
        watched: Mapping[str, PolledRun],
        answered: Callable[[], object],
        spread_s: float,
    ) -> bool:
        """Read pages of the list; whether the service answered them all."""
        errors: list[StatusError] = []
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        def unreachable() -> None:
            for run in watched.values():
                run.note_unreachable()

        async def read(offset: int, slot: object) -> None:
            try:
                page = await self._reader.run_page(offset, unreachable)
            except StatusError as error:
                errors.append(error)
                return
            finally:
                limiter.release_on_behalf_of(slot)
                answered()
            said = {status.run_id: status for status in page.runs}
            for run_id in sweep.note_page(offset, list(said), page.total):
                watched[run_id].note_status(said[run_id])

        async with anyio.create_task_group() as group:
            while not errors and (offset := sweep.next_offset()) is not None:
                slot = object()
                await limiter.acquire_on_behalf_of(slot)
                if offset and spread_s:
                    # At its time, though the one before may not be answered: a slow service must
                    # not stretch the look beyond the interval.
                    group.start_soon(read, offset, slot)
                else:  # the first says how long the list is
                    await read(offset, slot)
                if spread_s:
                    await self._clock.sleep(spread_s / sweep.planned)
        if errors:
            told = f"{len(watched)} runs are left alone: {errors[0]}"
            self._unread("", told, errors[0], {names.RUNS: len(watched)})
        return not errors

    async def _rest(self, missing: Mapping[str, PolledRun], answered: Callable[[], object]) -> bool:
        """Ask for each of these by itself; whether the service could be reached."""
        errors: list[StatusError] = []
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def read(run_id: str, run: PolledRun, slot: object) -> None:
            try:
                error = await self._read(run, run_id, answered)
            finally:
                limiter.release_on_behalf_of(slot)
            if error is not None:
                errors.append(error)

        def reached() -> bool:
            return not any(isinstance(error, StatusUnavailable) for error in errors)

        async with anyio.create_task_group() as group:
            for run_id, run in missing.items():
                slot = object()
                await limiter.acquire_on_behalf_of(slot)
                if not reached():
                    break
                group.start_soon(read, run_id, run, slot)
                if len(missing) > FEW:
                    await self._clock.sleep(self._interval_s * SPREAD_REST / len(missing))
        if errors:
            # One word for all of them: one that is not known yet is among them in every look.
            told = f"{len(errors)} runs are left alone, the last because of: {errors[-1]}"
            self._unread("", told, errors[-1], {names.RUNS: len(errors)})
        return reached()

    async def _failed_sessions(
        self, watched: Mapping[str, PolledRun], answered: Callable[[], object]
    ) -> None:
        """Which of the runs' sessions have failed: the newest, and then where the last look ended.

        The search goes by when a session was created, not by when it failed.
        """
        if not self._sessions_searchable:
            return
        failed: dict[str, str] = {}
        go_on_from, self._failed_from = self._failed_from, None
        try:
            page = await self._reader.failed_sessions()
            answered()
            failed |= page.failed
            cursor = page.next_cursor and (go_on_from or page.next_cursor)
            for _ in range(_FAILED_PAGES - 1):
                if cursor is None:
                    break
                page = await self._reader.failed_sessions(cursor)
                answered()
                failed |= page.failed
                cursor = page.next_cursor
            self._failed_from = cursor
        except StatusError as error:
            if error.status_code in _NO_SUCH_QUERY:
                self._sessions_searchable = False
        if failed:
            for run_id, run in watched.items():
                message = failed.get(run_id.partition(":train:")[0])
                if message is not None:
                    run.note_session_failed(run_id, message)


def by_run_id(runs: Sequence[PolledRun]) -> dict[str, PolledRun]:
    """The runs there is something to watch of, by Tinker run id."""
    return {run_id: run for run in runs if (run_id := run.watched_run_id) is not None}
