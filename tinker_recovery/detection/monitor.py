"""The Monitor: polls the service for the status of runs. It detects; the Executor recovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.detection.outage import Outage
from tinker_recovery.detection.plan import PollSchedule, UrgentPolls
from tinker_recovery.detection.poller import PolledRun, Poller, by_run_id
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service import StatusReader
from tinker_recovery.supervision import Child
from tinker_recovery.telemetry import EventSink

URGENT_CHECK_S = 0.5
"""Seconds between two looks for runs that cannot wait for the next poll."""


class Monitor:
    """Polls the status of every watched run, one poll at a time.

    Args:
        watched: The runs to poll, called before each poll.
        reader: Reads their status.
        interval_s: Most seconds between two polls of the same run.
        check_silence_every_s: Seconds between two checks for silent runs; None for no checks.
        events: Gets an event for each failed read.
        clock: Time and randomness.
        urgent: The runs that cannot wait for the next poll, called every half second; None for
            no look at that.
        outage: Where it is noted whether the service answers.
    """

    def __init__(
        self,
        watched: Callable[[], Sequence[PolledRun]],
        *,
        reader: StatusReader,
        interval_s: float,
        check_silence_every_s: float | None,
        events: EventSink,
        clock: Clock,
        urgent: Callable[[], Sequence[PolledRun]] | None = None,
        outage: Outage | None = None,
    ) -> None:
        self._watched = watched
        self._reader = reader
        self._interval_s = interval_s
        self._check_silence_every_s = check_silence_every_s
        self._events = events
        self._clock = clock
        self._urgent = urgent
        self._outage = outage

    async def serve(self, child: Child) -> None:
        """Poll until cancelled; a child of the supervision tree.

        Sends a heartbeat before each poll and after each answer.
        """
        child.started()
        async with anyio.create_task_group() as group:
            if self._check_silence_every_s is not None:
                group.start_soon(self._check_silence, self._check_silence_every_s)
            poller = Poller(
                self._reader,
                interval_s=self._interval_s,
                events=self._events,
                clock=self._clock,
                answered=child.heartbeat,
                outage=self._outage,
            )
            if self._urgent is not None:
                group.start_soon(
                    self._look_at_urgent,
                    poller,
                    self._urgent,
                    name="tinker-recovery/monitor/urgent",
                )
            await self._poll_forever(child, poller)

    async def _look_at_urgent(
        self, poller: Poller, urgent: Callable[[], Sequence[PolledRun]]
    ) -> None:
        polls = UrgentPolls(self._interval_s)
        while True:
            await self._clock.sleep(min(URGENT_CHECK_S, self._interval_s))
            runs = by_run_id(urgent())
            due = polls.due(self._clock.monotonic(), runs)
            await poller.look({run_id: runs[run_id] for run_id in due})

    async def _check_silence(self, every_s: float) -> None:
        while True:
            await self._clock.sleep(every_s)
            for run in self._watched():
                run.check_silence()

    async def _poll_forever(self, child: Child, poller: Poller) -> None:
        schedule = PollSchedule(self._interval_s)
        while True:
            now, chance = self._clock.monotonic(), self._clock.random()
            await self._clock.sleep(schedule.wait_s(now, chance, out_of_reach=poller.out_of_reach))
            child.heartbeat()
            watched = by_run_id(self._watched())
            only = schedule.begin(self._clock.monotonic(), watched)
            if only is not None:
                watched = {run_id: watched[run_id] for run_id in only}
            faults = await poller.poll(watched, quick=only is not None)
            schedule.end(faults=faults)


def silence_check_s(policy: RecoveryPolicy) -> float | None:
    """Seconds between two looks at silence: within a tenth of its deadlines, 10 ms at least."""
    limit_s = policy.stall_limit_s(0.0)  # the shortest
    deadlines = [each for each in (policy.stall_warning_s(limit_s), limit_s) if each]
    return max(0.01, min([5.0, *(each / 10 for each in deadlines)])) if deadlines else None
