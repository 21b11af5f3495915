"""The Monitor: asks the service how the runs are. It only detects; the Executor recovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.detection.plan import Pace
from tinker_recovery.detection.poller import PolledRun, Poller, by_run_id
from tinker_recovery.service import StatusReader
from tinker_recovery.supervision import Child
from tinker_recovery.telemetry import EventSink


class Monitor:
    """Polls the status of every watched run, one look at a time.

    Args:
        watched: The runs to look at, read afresh at each look.
        reader: Where to ask.
        interval_s: Seconds between two looks at all of them, at most.
        look_every_s: Seconds between two looks at the progress of submitted work; None never
            looks.
        events: Where read failures are told.
        clock: Time and chance.
    """

    def __init__(
        self,
        watched: Callable[[], Sequence[PolledRun]],
        *,
        reader: StatusReader,
        interval_s: float,
        look_every_s: float | None,
        events: EventSink,
        clock: Clock,
    ) -> None:
        self._watched = watched
        self._reader = reader
        self._interval_s = interval_s
        self._look_every_s = look_every_s
        self._events = events
        self._clock = clock

    async def serve(self, child: Child) -> None:
        """Poll and look for ever; a child of the supervision tree.

        It gives a sign of life after each interval and after each answer.
        """
        child.started()
        async with anyio.create_task_group() as group:
            if self._look_every_s is not None:
                group.start_soon(self._check_silence, self._look_every_s)
            await self._poll_for_ever(child)

    async def _check_silence(self, every_s: float) -> None:
        while True:
            await self._clock.sleep(every_s)
            for run in self._watched():
                run.check_silence()

    async def _poll_for_ever(self, child: Child) -> None:
        pace = Pace(self._interval_s)
        looker = self.looker()
        while True:
            now, chance = self._clock.monotonic(), self._clock.random()
            await self._clock.sleep(pace.wait_s(now, chance, out_of_reach=looker.out_of_reach))
            child.heartbeat()
            watched = by_run_id(self._watched())
            only = pace.begin(self._clock.monotonic(), watched)
            if only is not None:
                watched = {run_id: watched[run_id] for run_id in only}
            faults = await looker.look(watched, child.heartbeat, brisk=only is not None)
            pace.end(faults=faults)

    def looker(self) -> Poller:
        """What looks, with nothing remembered yet."""
        return Poller(
            self._reader,
            interval_s=self._interval_s,
            events=self._events,
            clock=self._clock,
        )
