"""How long a fault can go unseen: the Monitor on virtual time, with runs added at any time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from virtual import VirtualClock

from tinker_recovery import Clock
from tinker_recovery.detection.monitor import Monitor
from tinker_recovery.service import Asked, RunStatus
from tinker_recovery.service.status import PAGE, FailedPage, RunPage
from tinker_recovery.telemetry import EventSink

INTERVAL_S = 60.0


class Run:
    """A watched run that records when it was polled."""

    def __init__(self, number: int, clock: VirtualClock) -> None:
        self.name = str(number)
        self.watched_run_id = self.name
        self.silent_s: float | None = None
        self._clock = clock
        self.seen = [clock.now]
        """When it was added, then each poll."""

    def note_status(self, status: RunStatus, asked: Asked) -> None:
        del asked
        assert status.run_id == self.name
        self.seen.append(self._clock.now)

    def note_session_failed(self, run_id: str, message: str) -> None:
        raise AssertionError((run_id, message))

    def check_silence(self) -> None:
        pass


class Service:
    """A list of runs, newest first, read in a tenth of a second a page."""

    def __init__(self, clock: VirtualClock) -> None:
        self.listed: list[str] = []
        self._clock = clock

    def service_now(self) -> float:
        return self._clock.now

    async def run_page(self, offset: int, *_: object) -> RunPage:
        await self._clock.sleep(0.1)
        page = self.listed[offset : offset + PAGE]
        return RunPage([RunStatus(each, corrupted=False) for each in page], len(self.listed))

    async def failed_sessions(self, *_: object) -> FailedPage:
        return FailedPage({}, None)


class Child:
    """What the Monitor reports to the tree."""

    def started(self) -> None:
        pass

    def heartbeat(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(4))
async def test_no_run_goes_unseen_for_longer_than_the_interval_whenever_it_was_added(
    seed: int,
) -> None:
    chance = random.Random(seed)
    clock = VirtualClock()
    service: Any = Service(clock)
    child: Any = Child()
    runs: list[Run] = []
    monitor = Monitor(
        lambda: runs,
        reader=service,
        interval_s=INTERVAL_S,
        check_silence_every_s=None,
        events=EventSink(),
        clock=Clock(monotonic=lambda: clock.now, sleep=clock.sleep, random=chance.random),
    )
    serving = asyncio.create_task(monitor.serve(child))
    # Old ones, far down the list, are watched as suddenly as new ones.
    service.listed = [str(number) for number in range(1500, -1, -1)]
    watchable = list(range(1500))
    chance.shuffle(watchable)
    for _ in range(12):
        runs += [Run(watchable.pop(), clock) for _ in range(chance.choice([12, 60, 100]))]
        await clock.sleep(chance.uniform(0, INTERVAL_S))
    await clock.sleep(3 * INTERVAL_S)
    serving.cancel()
    await asyncio.wait([serving])
    late = [
        later - sooner
        for run in runs
        for sooner, later in zip(run.seen, [*run.seen[1:], clock.now], strict=True)
    ]
    assert len(late) > 3 * len(runs)
    # The pages take a second and a half in all, which cannot be known beforehand.
    assert max(late) <= INTERVAL_S + 2.0
