"""The Monitor: asks the service how the runs are. It only detects; the Executor recovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio
from tinker import types

from tinker_recovery.clock import Clock
from tinker_recovery.errors import StatusError, StatusUnavailable
from tinker_recovery.service import StatusReader
from tinker_recovery.supervision import Child
from tinker_recovery.telemetry import EventSink, names

_SOONER = 30
"""How many times sooner a service that is out of reach is asked again."""

_NO_SUCH_ROUTE = frozenset({404, 405, 501})

_AT_ONCE = 8
"""Status reads in flight at the same time."""


class Watched(Protocol):
    """A run as the Monitor sees it."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def watched_run_id(self) -> str | None:
        """The Tinker run id to ask about, or None while there is nothing to watch."""
        ...

    @property
    def reader(self) -> StatusReader:
        """Where to ask."""
        ...

    def note_status(self, status: types.TrainingRun) -> None:
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


class Monitor:
    """Polls the status of every watched run.

    A read that fails is told of and never judged: what the poll cannot see, the next one may.

    Args:
        watched: The runs to ask about, read afresh at each poll.
        interval_s: Seconds between two polls.
        look_every_s: Seconds between two looks at the progress of submitted work; None never
            looks.
        events: Where read failures are told.
        clock: Time.
    """

    def __init__(
        self,
        watched: Callable[[], Sequence[Watched]],
        *,
        interval_s: float,
        look_every_s: float | None,
        events: EventSink,
        clock: Clock,
    ) -> None:
        self._watched = watched
        self._interval_s = interval_s
        self._look_every_s = look_every_s
        self._sessions_told = True
        self._out_of_reach = False
        self._events = events
        self._clock = clock

    async def serve(self, child: Child) -> None:
        """Poll and look for ever; a child of the supervision tree.

        It gives a sign of life after each interval and after each answer.
        """
        child.started()
        async with anyio.create_task_group() as group:
            if self._look_every_s is not None:
                group.start_soon(self._look, self._look_every_s)
            await self._poll_for_ever(child)

    async def _look(self, every_s: float) -> None:
        while True:
            await self._clock.sleep(every_s)
            for run in self._watched():
                run.check_silence()

    async def _poll_for_ever(self, child: Child) -> None:
        while True:
            # A service that is out of reach is asked again sooner: what it holds when it comes
            # back has to be looked at before much is built on it.
            soon = self._interval_s / _SOONER if self._out_of_reach else self._interval_s
            await self._clock.sleep(soon)
            child.heartbeat()
            await self.poll(child.heartbeat)

    async def poll(self, answered: Callable[[], object] = lambda: None) -> None:
        """Ask once about every watched run; ``answered`` is called after each answer."""
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        self._out_of_reach = False
        async with anyio.create_task_group() as group:
            for run in self._watched():
                if run.watched_run_id is not None:
                    group.start_soon(self._ask, run, run.watched_run_id, limiter, answered)

    async def _ask(
        self,
        run: Watched,
        run_id: str,
        limiter: anyio.CapacityLimiter,
        answered: Callable[[], object],
    ) -> None:
        async with limiter:
            try:
                status = await run.reader.run(run_id, run.note_unreachable)
            except StatusError as error:
                if isinstance(error, StatusUnavailable):
                    self._out_of_reach = True
                # A 404 right after creation, an outage, a refused key: all are the service's
                # trouble to answer, not the run's. The loop's own calls tell if it is more.
                self._events.emit(
                    names.EVENT_POLL_ERROR,
                    run.name,
                    f"reading the status failed, the run is left alone: {error}",
                    {names.RUN_ID: run_id, names.ERROR_TYPE: type(error).__qualname__},
                )
                return
            finally:
                answered()
            run.note_status(status)
            failed = await self._session_failure(run, run_id)
            answered()
        if failed is not None:
            run.note_session_failed(run_id, failed)

    async def _session_failure(self, run: Watched, run_id: str) -> str | None:
        """Why the run's session failed, if the service says that it did."""
        if not self._sessions_told:
            return None
        try:
            return await run.reader.session_failure(run_id, run.note_unreachable)
        except StatusError as error:
            # The search is experimental: a service without it is not asked again. Any other
            # trouble is passed over: the run's own status has just been read.
            if error.status_code in _NO_SUCH_ROUTE:
                self._sessions_told = False
            return None
