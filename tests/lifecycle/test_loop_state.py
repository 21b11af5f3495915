"""What a loop says of itself is stored with the step it belongs to, whatever its lines' order."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from typing import Any

import anyio
import pytest
from inspection import ask_to_stop, look_as_while_idle
from loops import ADAM, MODEL, SEED, batch, policy, quick
from sweeps import pairs

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryEvent, Supervisor, UsageError
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
EVERY = CheckpointPolicy(save_every=1)
STEPS = 6
EPOCH = 2
FAILS_AT = 4

LINES = ("optim_step", "loop_state", "report", "end_epoch", "await")
ORDERS = [
    order
    for order in itertools.permutations(LINES)
    if order.index("optim_step") < order.index("await")
]


async def _supervised(
    train: Any, checkpoints: CheckpointPolicy = EVERY, **settings: Any
) -> Supervisor:
    async with Supervisor(quick(checkpoints=checkpoints, **settings)) as supervisor:
        await supervisor.run(train, **START)
    return supervisor


class _Loop:
    """A loop over batches, whose lines behind ``forward_backward`` come in a given order.

    It continues from ``loop_state`` alone. ``batches`` has, for each optimizer step that was done
    last, the batches in it.
    """

    def __init__(self, order: tuple[str, ...], depth: int, accumulated: int) -> None:
        self._order, self._depth, self._accumulated = order, depth, accumulated
        self.batches: dict[int, list[int]] = {}
        self.epochs: dict[int, int] = {}

    async def __call__(self, attempt: Attempt) -> None:
        position = attempt.loop_state or 0
        pending: deque[Any] = deque()
        for step in range(attempt.start_step, STEPS):
            self.epochs[step] = attempt.epoch
            self.batches[step] = []
            for _ in range(self._accumulated):
                self.batches[step].append(position)
                pending.append(attempt.client.forward_backward(batch(position), "cross_entropy"))
                position += 1
            for line in self._order:
                if line == "optim_step":
                    pending.append(attempt.client.optim_step(ADAM))
                elif line == "await":
                    while len(pending) > self._depth * (self._accumulated + 1):
                        await pending.popleft()
                else:
                    _say(attempt, line, step, position)
        for each in pending:
            await each


def _say(attempt: Attempt, line: str, step: int, position: int) -> None:
    if line == "loop_state":
        attempt.loop_state = position
    elif line == "report":
        attempt.report(loss=float(step))
    elif (step + 1) % EPOCH == 0:
        attempt.end_epoch()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("depth", "accumulated"), pairs([0, 1, 2], [1, 3], 2))
async def test_no_order_of_the_loops_lines_has_a_batch_trained_twice_or_left_out(
    local: LocalTinker, depth: int, accumulated: int
) -> None:
    # A sixth of the orders each, so that together the six cases have all of them. In each run: no
    # request ahead and one pass to a step, and two ahead and three.
    for number, order in enumerate(ORDERS[2 * depth + accumulated // 3 :: 6]):
        local.inject(
            FaultRule("fail", FAILS_AT, "optim_step" if number % 2 else "forward_backward")
        )
        loop = _Loop(order, depth, accumulated)
        supervisor = await _supervised(loop)
        assert len(supervisor.runs[0].attempts) == 2, order
        trained = list(itertools.chain(*(loop.batches[step] for step in range(STEPS))))
        assert trained == list(range(STEPS * accumulated)), order
        # An epoch counted at the end of its last step is complete when the next begins.
        assert loop.epochs == {step: step // EPOCH for step in range(STEPS)}, order


@pytest.mark.usefixtures("local")
async def test_a_state_set_ahead_of_its_batch_is_refused_at_once_with_what_to_write() -> None:
    """Whether it is where the loop stands before that batch or behind it, no order can show."""
    begun: list[int] = []

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            attempt.loop_state = {"next": step + 1}
            begun.append(step)
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)

    with pytest.raises(UsageError, match="Set it only behind optim_step, or between"):
        await _supervised(train)
    assert begun == [0], "at once"


@pytest.mark.usefixtures("local")
async def test_a_state_changed_in_place_is_seen_and_refused_in_the_same_places() -> None:
    async def train(attempt: Attempt) -> None:
        state = {"next": 0}
        attempt.loop_state = state
        for step in range(attempt.start_step, STEPS):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            state["next"] += 1

    with pytest.raises(UsageError, match="Set it only behind optim_step, or between"):
        await _supervised(train)


async def test_an_epoch_ended_in_the_middle_of_a_window_is_counted_with_its_step(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", 3, "optim_step"))
    counted: list[tuple[int, int]] = []

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            counted.append((step, attempt.epoch))
            attempt.client.forward_backward(batch(step), "cross_entropy")
            if step == 3:
                attempt.end_epoch()
            await attempt.client.optim_step(ADAM)

    await _supervised(train)
    assert counted == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 0), (4, 1), (5, 1)]


async def _listed(local: LocalTinker, supervisor: Supervisor) -> dict[int, dict[str, str]]:
    """What is stored with the newest checkpoint of each step."""
    run_id = supervisor.runs[0].segments[-1].run_id
    found = sorted(local.checkpoints(run_id), key=lambda each: each.path)
    return {
        int(said["tinker_recovery.step"]): dict(said)
        for each in found
        if (said := each.user_metadata) is not None
    }


async def test_a_step_behind_which_the_loop_rests_is_saved_all_the_same(
    local: LocalTinker,
) -> None:
    stored = asyncio.Event()

    def note(event: RecoveryEvent) -> None:
        if event.fields.get(names.CHECKPOINT_STEP) == 2:
            stored.set()

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, 2):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            attempt.loop_state = step + 1
        with anyio.fail_after(20):
            await stored.wait()

    every = quick(checkpoints=CheckpointPolicy(save_every=1))
    async with Supervisor(every, on_event=note) as supervisor:
        await supervisor.run(train, **START)
    said = await _listed(local, supervisor)
    assert said[2]["tinker_recovery.loop_state"] == "2"


async def test_what_is_set_after_a_rest_replaces_what_was_stored_in_it(local: LocalTinker) -> None:
    stored = asyncio.Event()

    def note(event: RecoveryEvent) -> None:
        if event.fields.get(names.CHECKPOINT_STEP) == 1:
            stored.set()

    async def train(attempt: Attempt) -> None:
        attempt.client.forward_backward(batch(0), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        with anyio.fail_after(20):
            await stored.wait()
        attempt.loop_state = "late"
        await attempt.client.forward_backward(batch(1), "cross_entropy")

    every = quick(checkpoints=CheckpointPolicy(save_every=1))
    async with Supervisor(every, on_event=note) as supervisor:
        await supervisor.run(train, **START)
    said = await _listed(local, supervisor)
    assert said[1]["tinker_recovery.loop_state"] == '"late"'


async def test_ctrl_c_in_a_window_saves_the_last_step_with_the_state_it_ended_with(
    local: LocalTinker,
) -> None:
    reached = asyncio.Event()

    async def train(attempt: Attempt) -> None:
        ask_to_stop(attempt)
        for position in range(24):
            await attempt.client.forward_backward(batch(position), "cross_entropy")
            attempt.loop_state = position + 1
            if (position + 1) % 4 == 0:
                await attempt.client.optim_step(ADAM)
            if position + 1 == 22:
                reached.set()
                await anyio.sleep_forever()

    async with Supervisor(policy(checkpoints=CheckpointPolicy(save_every=100))) as supervisor:
        running = asyncio.create_task(supervisor.run(train, **START))
        await reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    said = await _listed(local, supervisor)
    assert said[5]["tinker_recovery.loop_state"] == "20"


@pytest.mark.usefixtures("local")
async def test_stopped_before_it_has_set_its_state_a_loop_continues_from_the_step_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it last set belongs to that step: with the newest one, a batch would be done twice."""
    reached = asyncio.Event()
    begun: list[tuple[int, object]] = []

    async def train(attempt: Attempt) -> None:
        begun.append((attempt.start_step, attempt.loop_state))
        for step in range(attempt.start_step, STEPS):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            if step == FAILS_AT and not reached.is_set():
                ask_to_stop(attempt)
                reached.set()
                await anyio.sleep_forever()
            attempt.loop_state = step + 1

    with caplog.at_level(logging.WARNING, "tinker_recovery"):
        async with Supervisor(policy(checkpoints=EVERY)) as supervisor:
            running = asyncio.create_task(supervisor.run(train, **START, name="stopped"))
            await reached.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert f"step {FAILS_AT + 1} is not saved, because the loop had not set" in caplog.text
    async with Supervisor(policy(checkpoints=EVERY)) as supervisor:
        await supervisor.run(train, **START, name="stopped")
    assert begun[1:] == [(FAILS_AT, FAILS_AT)]


async def test_a_loop_that_rests_before_it_has_set_its_state_has_nothing_saved_meanwhile(
    local: LocalTinker,
) -> None:
    async def train(attempt: Attempt) -> None:
        for step in range(2):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await look_as_while_idle(attempt)
            attempt.loop_state = step + 1
        (segment,) = supervisor.runs[0].segments
        # The loop's first step alone was saved in a rest: that it sets a state was not known then.
        assert [each.steps for each in local.checkpoints(segment.run_id)] == [0, 1, 1]

    async with Supervisor(policy(checkpoints=EVERY)) as supervisor:
        await supervisor.run(train, **START)
    assert (await _listed(local, supervisor))[2]["tinker_recovery.loop_state"] == "2"


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("kept", [False, True])
async def test_a_loop_that_updates_every_second_iteration_hears_of_the_drift_at_once(
    caplog: pytest.LogCaptureFixture, *, kept: bool
) -> None:
    async def train(attempt: Attempt) -> None:
        for index in range(4):
            attempt.client.forward_backward(batch(index), "cross_entropy")
            if kept:
                attempt.loop_state = index + 1
            if index % 2:
                await attempt.client.optim_step(ADAM)

    with caplog.at_level(logging.WARNING):
        await _supervised(train)
    said = [each.message for each in caplog.records if "start_step counts" in each.message]
    assert len(said) == (0 if kept else 1)
    assert all("loop_state" in each and "skip_step()" in each for each in said)
