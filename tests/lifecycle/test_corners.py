"""Corners where a run could end too early, too late, or with the wrong word on it."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import tinker
from inspection import endpoint, stored_paths
from loops import (
    ADAM,
    MODEL,
    SEED,
    batch,
    interrupted,
    process,
    quick,
    script,
    train,
    undisturbed_state,
    until,
)

from tinker_recovery import (
    Attempt,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryLost,
    Supervisor,
    UsageError,
)
from tinker_recovery.faults import Kind
from tinker_recovery.service.http import Unreached
from tinker_recovery.service.status import StatusReader
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
START: Any = {"base_model": MODEL, "rank": 8, "seed": SEED}


async def test_a_body_that_cleans_up_for_longer_than_the_recovery_takes_is_run_again(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))
    begun: list[int] = []

    async def loop(attempt: Attempt) -> None:
        begun.append(attempt.start_step)
        try:
            await train(attempt, steps=STEPS)
        finally:
            if len(begun) == 1:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.6)

    async with Supervisor(quick()) as supervisor:
        await supervisor.run(loop, **START)
    assert begun == [0, 5]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_a_plain_function_that_is_busy_when_the_fault_strikes_is_run_again(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))
    begun: list[int] = []

    def loop(attempt: Attempt) -> str:
        begun.append(attempt.start_step)
        for step in range(attempt.start_step, STEPS):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            attempt.client.optim_step(ADAM)
            if step == 7 and len(begun) == 1:
                time.sleep(0.6)
        return "done"

    async with Supervisor(quick()) as supervisor:
        assert await supervisor.run(loop, **START) == "done"
    assert begun == [0, 5]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_a_loop_left_by_break_is_told_even_when_the_recovery_was_quicker(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", 3, "optim_step"))
    with pytest.raises(RecoveryLost):
        async with Supervisor(quick()) as supervisor:
            async for attempt in supervisor.attempts(**START):
                async with attempt:
                    for step in range(5):
                        attempt.client.forward_backward(batch(step), "cross_entropy")
                        attempt.client.optim_step(ADAM)
                    break
            await until(lambda: len(supervisor.runs[0].recoveries) == 1)


async def test_a_request_nobody_awaits_that_the_service_refuses_is_told_at_the_end(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", 7, "optim_step", category="user"))

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            await attempt.client.forward_backward(batch(step), "cross_entropy")
            attempt.client.optim_step(ADAM)

    with pytest.raises(tinker.RequestFailedError):
        async with Supervisor(quick()) as supervisor:
            await supervisor.run(loop, **START)


async def test_a_refusal_the_loop_has_dealt_with_is_its_own_affair(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", 2, "forward_backward", category="user"))
    local.inject(FaultRule("fail", 10, "optim_step"))

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            try:
                await attempt.client.forward_backward(batch(step), "cross_entropy")
            except tinker.RequestFailedError:
                if step != 2:
                    raise
            await attempt.client.optim_step(ADAM)

    async with Supervisor(quick()) as supervisor:
        await supervisor.run(loop, **START)
    # What was saved after the refusal counts: the run does not go back to before it.
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 10]


async def test_saves_queued_behind_the_fault_give_no_attempts_back(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", 7, "forward_backward", times=99))
    every = quick(max_attempts=3, checkpoints={"save_every": 1})
    with anyio.fail_after(20), pytest.raises(RecoveryExhausted):
        async with Supervisor(every) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS, depth=3), **START)
    # Every save up to step 7 is progress, and none behind it is.
    starts = [attempt.start_step for attempt in supervisor.runs[0].attempts]
    assert starts.count(7) <= 3
    assert max(starts) == 7


async def test_a_new_client_that_fails_in_the_users_callback_is_replaced_again(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))
    called: list[int] = []

    async def warm_up(old: object, new: Any, checkpoint: object) -> None:
        del old, checkpoint
        called.append(1)
        if len(called) == 1:
            local.inject(FaultRule("fail", 5, "forward_backward"))
            await new.forward(batch(0), "cross_entropy")

    async with Supervisor(quick(on_recovery=warm_up)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
    assert len(called) == 2
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_a_callback_that_waits_for_a_cancelled_result_is_called_once(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", 7, "optim_step"))
    called: list[int] = []

    async def waits(*_: object) -> None:
        called.append(1)
        raise asyncio.CancelledError

    async with Supervisor(quick(on_recovery=waits)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
    assert called == [1]


async def test_a_task_group_in_the_body_does_not_hide_a_fault(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))

    async def loop(attempt: Attempt) -> None:
        async def aside() -> None:
            while attempt.client.step < STEPS:
                await asyncio.sleep(0.001)
                await attempt.client.forward(batch(1), "cross_entropy")

        async with asyncio.TaskGroup() as group:
            group.create_task(aside())
            await train(attempt, steps=STEPS)

    async with Supervisor(quick()) as supervisor:
        await supervisor.run(loop, **START)
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_with_recovery_off_a_plain_functions_client_is_left_alone(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("slow", 2, "optim_step", delay_s=0.8))

    def loop(attempt: Attempt) -> str:
        for step in range(4):
            attempt.client.forward_backward(batch(step), "cross_entropy").result()
            attempt.client.optim_step(ADAM).result()
        return "done"

    async with Supervisor(quick(enabled=False, stall_after_s=0.2)) as supervisor:
        assert await supervisor.run(loop, **START) == "done"


async def test_two_runs_of_one_name_begun_at_once_are_refused(local: LocalTinker) -> None:
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(functools.partial(train, steps=5), **START)
    path = stored_paths(supervisor.runs[0])[0]
    local.inject(FaultRule("slow", request="run_checkpoints", delay_s=0.2, times=2))
    errors: list[BaseException] = []
    async with Supervisor(quick()) as supervisor:

        async def one() -> None:
            try:
                loop = functools.partial(train, steps=7)
                await supervisor.run(loop, from_checkpoint=path, name="same")
            except UsageError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
    assert len(errors) == 1


async def test_a_corrupted_run_is_heard_though_the_session_search_is_down(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("poison", 7, quiet=True))
    local.inject(FaultRule("status", request="search_sessions", status=501, for_s=60.0))
    with anyio.fail_after(20):
        async with Supervisor(quick(poll_interval_s=0.05)) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **START)
    assert supervisor.runs[0].recoveries[0].fault.kind is Kind.CORRUPTED


async def test_an_empty_listing_of_a_run_that_has_saved_is_waited_out(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", 11, "optim_step"))
    local.inject(FaultRule("status", request="run_checkpoints", status=404, times=2))
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 10]


async def test_a_predicate_that_raises_counts_as_no(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))
    given = quick(retryable_errors=[lambda e: e.status_code == 418])
    async with Supervisor(given) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_one_busy_answer_to_a_status_read_is_no_outage(local: LocalTinker) -> None:
    local.inject(FaultRule("status", request="training_run", status=429))
    told: list[RecoveryEvent] = []
    given = quick(poll_interval_s=0.02, canary=batch(3))
    async with Supervisor(given, on_event=told.append) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS, depth=2), **START)
    assert supervisor.runs[0].recoveries == []


async def test_a_status_read_that_hangs_is_an_outage(local: LocalTinker) -> None:
    local.inject(FaultRule("slow", request="training_run", delay_s=5.0))
    heard: list[Unreached] = []
    supervisor = Supervisor(quick())
    async with supervisor:
        await supervisor.run(functools.partial(train, steps=1), **START)
        async with StatusReader(await endpoint(supervisor), timeout_s=0.2) as reader:
            reader.http.unreachable = lambda how, _: heard.append(how)
            with pytest.raises(Exception, match="took longer than"):
                await reader.run(local.runs()[0])
    assert heard == ["silent"]


_ENTRY = """
import sys, time
from tinker_recovery import Supervisor
def slow():
    print("entering", file=sys.stderr, flush=True)
    time.sleep(2)
    import tinker
    return tinker.ServiceClient()
with Supervisor(service=slow) as supervisor:
    pass
"""

_DRY = """
import sys
sys.path.insert(0, {tests!r})
from loops import MODEL, policy
from tinker_recovery import Supervisor
def train(attempt):
    next(iter([]))
with Supervisor(policy()) as supervisor:
    supervisor.run(train, base_model=MODEL)
"""


@pytest.mark.usefixtures("local")
async def test_ctrl_c_while_a_script_enters_its_supervisor_ends_it(tmp_path: Path) -> None:
    with process([script(tmp_path, _ENTRY)]) as running:
        assert running.stderr is not None
        await anyio.to_thread.run_sync(running.stderr.readline)
        errors = await interrupted(running)
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors


@pytest.mark.usefixtures("local")
async def test_a_loader_that_runs_dry_ends_a_script_with_its_error(tmp_path: Path) -> None:
    code = _DRY.format(tests=str(__file__).rsplit("/", 2)[0])
    with process([script(tmp_path, code)]) as running:
        _, errors = await anyio.to_thread.run_sync(lambda: running.communicate(timeout=20))
    assert running.returncode == 1
    assert "the loop raised StopIteration" in errors
