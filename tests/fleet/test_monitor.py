"""When the Monitor polls, looks at what is urgent and at silence: by a clock made up here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from virtual import VirtualClock

from tinker_recovery import Clock, RecoveryEvent, RecoveryPolicy, StatusUnavailable
from tinker_recovery.detection.monitor import Monitor, silence_check_s
from tinker_recovery.detection.outage import Outage
from tinker_recovery.detection.plan import FEW, RETRY_FACTOR
from tinker_recovery.service import Asked, RunStatus
from tinker_recovery.service.status import FailedPage, RunPage
from tinker_recovery.telemetry import EventSink

INTERVAL_S = 60.0


class Run:
    """A watched run that notes when it was polled, and when it was looked at for silence."""

    def __init__(self, name: str, clock: VirtualClock) -> None:
        self.name = name
        self.watched_run_id: str | None = name
        self.silent_s: float | None = None
        self.at_fault_in: list[float] = []
        self.seen: list[float] = []
        self.looked: list[float] = []
        self._clock = clock

    def note_status(self, status: RunStatus, asked: Asked) -> None:
        del status
        self.seen.append(asked.at_s)
        if self._clock.now in self.at_fault_in:
            self.watched_run_id = f"{self.watched_run_id}'"

    def note_session_failed(self, run_id: str, message: str) -> None:
        raise AssertionError((run_id, message))

    def check_silence(self) -> None:
        self.looked.append(self._clock.now)


class World:
    """Runs, a service that answers at once, and a Monitor on virtual time."""

    def __init__(self, *names: str) -> None:
        self.clock = VirtualClock()
        self.runs = [Run(name, self.clock) for name in names]
        self.error: StatusUnavailable | None = None
        self.started = self.heartbeats = 0
        self.pages: list[float] = []
        self.events: list[RecoveryEvent] = []

    def service_now(self) -> float:
        return self.clock.now

    async def run(self, run_id: str) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            training_run_id=run_id, corrupted=False, base_model=None, lora_rank=None
        )

    async def run_page(self, offset: int) -> RunPage:
        del offset
        self.pages.append(self.clock.now)
        return RunPage([], 0)

    async def session_failure(self, run_id: str) -> None:
        del run_id

    async def failed_sessions(self, *_: object) -> FailedPage:
        return FailedPage({}, None)

    def _starts(self) -> None:
        self.started += 1

    def _beats(self) -> None:
        self.heartbeats += 1

    @asynccontextmanager
    async def watched_for(
        self, seconds: float, *, interval_s: float = INTERVAL_S, **more: Any
    ) -> AsyncIterator[None]:
        reader: Any = self
        child: Any = SimpleNamespace(started=self._starts, heartbeat=self._beats)
        monitor = Monitor(
            lambda: self.runs,
            reader=reader,
            interval_s=interval_s,
            events=EventSink(self.events.append),
            clock=Clock(monotonic=self.clock.monotonic, sleep=self.clock.sleep, random=lambda: 0.0),
            **{"check_silence_every_s": None, **more},
        )
        serving = asyncio.create_task(monitor.serve(child))
        await self.clock.sleep(seconds)
        try:
            yield
        finally:
            serving.cancel()
            await asyncio.wait([serving])


async def test_it_polls_each_interval_new_runs_sooner_and_shows_that_it_lives() -> None:
    world = World("a")
    async with world.watched_for(121.0):
        assert world.started == 1
        assert world.runs[0].seen == [60.0, 75.0, 90.0, 105.0, 120.0]
        # Before each poll, and at the answers to status and session.
        assert world.heartbeats == 5 * (1 + 2)
        assert world.runs[0].looked == [], "silence is not asked for"


async def test_a_quick_poll_asks_for_what_is_new_alone() -> None:
    world = World("old")
    async with world.watched_for(119.0):
        world.runs.append(Run("new", world.clock))
        world.runs[0].seen.clear()
        await world.clock.sleep(30.0)
        old, new = world.runs
        assert old.seen == [120.0]
        assert new.seen == [120.0, 135.0]


async def test_a_quick_poll_of_many_reads_pages_and_asks_for_none_by_itself() -> None:
    world = World(*map(str, range(FEW + 1)))
    async with world.watched_for(75.0):
        assert world.pages == [60.0, 70.5]
        assert {len(run.seen) for run in world.runs} == {1}, "in the first poll, on no page"


async def test_after_a_fault_every_run_is_polled_again_soon() -> None:
    world = World("a", "b")
    world.runs[0].at_fault_in = [120.0]
    async with world.watched_for(140.0):
        assert world.runs[1].seen[-2:] == [120.0, 135.0]


async def test_a_service_out_of_reach_is_polled_thirty_times_as_often_until_it_answers() -> None:
    world = World("a")
    world.error = StatusUnavailable("refused")
    outage = Outage(EventSink(), world.clock.monotonic)
    async with world.watched_for(60.0 + 3.5 * INTERVAL_S / RETRY_FACTOR, outage=outage):
        assert world.heartbeats == 4 * (1 + 1)
        assert not outage.begins(), "it is noted where the others look"
        world.error = None
        await world.clock.sleep(INTERVAL_S / RETRY_FACTOR)
        assert world.runs[0].seen == [68.0]
        assert outage.begins()


async def test_silence_is_looked_at_as_often_as_is_asked_for() -> None:
    world = World("a", "b")
    async with world.watched_for(10.0, check_silence_every_s=3.0):
        assert [run.looked for run in world.runs] == [[3.0, 6.0, 9.0]] * 2


@pytest.mark.parametrize(
    ("interval_s", "seen"),
    [(INTERVAL_S, [0.5, 1.5, 3.5, 7.5]), (0.2, [0.2, 0.4, 0.6, 0.8, 1.0])],
)
async def test_what_is_urgent_is_asked_for_at_once_and_then_less_and_less_often(
    interval_s: float, seen: list[float]
) -> None:
    world = World()
    urgent = [Run("urgent", world.clock), Run("gone", world.clock)]
    urgent[1].watched_run_id = None
    async with world.watched_for(8.1, interval_s=interval_s, urgent=lambda: urgent):
        assert urgent[0].seen[: len(seen)] == pytest.approx(seen)
        assert urgent[1].seen == []


@pytest.mark.parametrize(
    ("policy", "every_s"),
    [
        ({}, 5.0),
        ({"stall_after_s": 30.0}, 1.0),
        ({"stall_after_s": 30.0, "stall_warn_after_s": 29.0}, 2.9),
        ({"stall_after_s": 0.03}, 0.01),
        ({"stall_after_s": "off"}, None),
        ({"stall_after_s": "off", "stall_warn_after_s": 2.0}, 0.2),
    ],
)
def test_silence_is_looked_at_within_a_tenth_of_its_shortest_deadline(
    policy: dict[str, Any], every_s: float | None
) -> None:
    found = silence_check_s(RecoveryPolicy(**policy))
    assert found == (None if every_s is None else pytest.approx(every_s))
