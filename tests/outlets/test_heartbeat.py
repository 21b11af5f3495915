"""Heartbeats to a real monitor on loopback."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable

import anyio
import pytest
from loops import MODEL, loop, quick, train, until
from webhook import Hook

from tinker_recovery import Attempt, Clock, Supervisor
from tinker_recovery.outlets.heartbeat import BEAT_S, LOOK_S, Heartbeat
from tinker_recovery.testing import FaultRule, LocalTinker

PATH = "/ping/0f8b-a-secret-uuid"


class Looks:
    """A clock by which a minute passes with each look of the heartbeat."""

    def __init__(self) -> None:
        self.count = 0

    async def _sleep(self, seconds: float) -> None:
        if seconds != LOOK_S:
            return await anyio.sleep(seconds)
        self.count += 1
        return await anyio.sleep(0.01)

    @property
    def clock(self) -> Clock:
        """To be given to a Supervisor."""
        return Clock(sleep=self._sleep, monotonic=lambda: time.monotonic() + self.count * BEAT_S)

    async def pass_by(self, looks: int = 5) -> None:
        """Wait for so many further looks."""
        enough = self.count + looks
        await until(lambda: self.count >= enough)


def _url(hook: Hook) -> str:
    return f"http://127.0.0.1:{hook.port}{PATH}"


async def test_a_heartbeat_is_sent_while_a_run_makes_progress_and_not_while_it_makes_none(
    local: LocalTinker, hook: Hook
) -> None:
    looks = Looks()

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=1)
        await until(lambda: bool(hook.paths))
        await looks.pass_by()
        sent = len(hook.paths)
        await looks.pass_by()
        assert len(hook.paths) == sent, "nothing has happened since"
        await train(attempt, steps=2)
        await until(lambda: len(hook.paths) > sent)

    async with Supervisor(quick(), heartbeat_url=_url(hook), clock=looks.clock) as supervisor:
        await looks.pass_by()
        assert hook.paths == [], "no run is under way"
        await supervisor.run(body, base_model=MODEL, name="sft")
        await looks.pass_by()
        sent = len(hook.paths)
        await looks.pass_by()
        assert len(hook.paths) == sent, "it is over"
    assert set(hook.paths) == {PATH}
    assert local.runs()


async def test_one_run_that_is_stuck_stops_the_heartbeats_however_well_another_trains(
    local: LocalTinker, hook: Hook
) -> None:
    looks = Looks()
    arrived, freed, done = anyio.Event(), anyio.Event(), anyio.Event()

    async def sticks(attempt: Attempt) -> None:
        await loop(attempt.client, 0, 1, 0)
        arrived.set()
        await freed.wait()
        await loop(attempt.client, 1, 2, 0)
        await done.wait()

    async def lives(attempt: Attempt) -> None:
        steps = itertools.count()

        async def trains_until(enough: Callable[[], bool]) -> None:
            while not enough():
                step = next(steps)
                await loop(attempt.client, step, step + 1, 0)

        async def trains_on() -> None:
            until_look = looks.count + 8
            await trains_until(lambda: looks.count >= until_look)

        await trains_until(arrived.is_set)
        # What it had under way when it stuck, such as a save, is progress still.
        sent = -1
        with anyio.fail_after(20.0):  # the other is stuck, so they cease
            while len(hook.paths) != sent:
                sent = len(hook.paths)
                await trains_on()
        assert sent
        freed.set()
        await trains_until(lambda: len(hook.paths) > sent)
        done.set()
        (stuck,) = (run for run in supervisor.runs if run.name == "sticks")
        await trains_until(lambda: stuck.state == "over")
        sent = len(hook.paths)
        await trains_until(lambda: len(hook.paths) > sent + 1)  # what is over no longer counts

    async with (
        Supervisor(quick(), heartbeat_url=_url(hook), clock=looks.clock) as supervisor,
        anyio.create_task_group() as group,
    ):
        for name, body in (("sticks", sticks), ("lives", lives)):
            group.start_soon(
                functools.partial(supervisor.run, body, base_model=MODEL, name=name), name=name
            )
    assert local.runs()


async def test_a_run_that_is_given_up_beside_one_that_trains_no_longer_counts(
    local: LocalTinker, hook: Hook
) -> None:
    looks = Looks()

    async def fails(attempt: Attempt) -> None:
        await train(attempt, steps=1)
        raise ValueError("of its own")

    async def lives(attempt: Attempt) -> None:
        steps = itertools.count()
        while len(hook.paths) < 3:
            step = next(steps)
            await loop(attempt.client, step, step + 1, 0)

    async with Supervisor(quick(), heartbeat_url=_url(hook), clock=looks.clock) as supervisor:
        with pytest.raises(ValueError, match="of its own"):
            await supervisor.run(fails, base_model=MODEL, name="fails")
        await supervisor.run(lives, base_model=MODEL, name="lives")
    assert local.runs()


async def test_a_run_that_is_given_up_sends_none(local: LocalTinker, hook: Hook) -> None:
    looks = Looks()
    local.inject(FaultRule("status", at_step=0, request="optim_step", status=403))
    async with Supervisor(quick(), heartbeat_url=_url(hook), clock=looks.clock) as supervisor:
        with pytest.raises(Exception, match="403"):
            await supervisor.run(lambda attempt: train(attempt, steps=2), base_model=MODEL)
        await looks.pass_by()
        sent = len(hook.paths)
        await looks.pass_by()
        assert len(hook.paths) == sent


async def test_a_monitor_that_hangs_is_not_waited_for(local: LocalTinker, hook: Hook) -> None:
    looks = Looks()
    hook.go_on.clear()
    async with Supervisor(quick(), heartbeat_url=_url(hook), clock=looks.clock) as supervisor:
        await supervisor.run(lambda attempt: train(attempt, steps=1), base_model=MODEL)

        async def more(attempt: Attempt) -> None:
            await train(attempt, steps=1)
            await until(lambda: bool(hook.paths))

        await supervisor.run(more, base_model=MODEL)
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    assert local.runs()
    hook.go_on.set()


def test_a_heartbeat_that_had_to_wait_is_not_sent_for_a_run_that_may_be_dead(hook: Hook) -> None:
    heartbeat = Heartbeat(_url(hook))
    heartbeat._send([time.monotonic() - 60.0])
    assert hook.paths == []
    heartbeat._send([time.monotonic()])
    assert hook.paths == [PATH]


async def test_progress_that_cannot_be_told_sends_none_and_ends_nothing(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    looks = Looks()

    def fails() -> dict[str, object]:
        raise KeyError("gone")

    heartbeat = Heartbeat(_url(hook))
    worker = heartbeat.worker()
    async with anyio.create_task_group() as group:
        group.start_soon(heartbeat.serve, worker, fails, looks.clock)
        await looks.pass_by()
        group.cancel_scope.cancel()
    worker.close()
    assert hook.paths == []
    assert "no heartbeat is sent" in caplog.text
