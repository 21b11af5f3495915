"""What leaves the body of an attempt: which errors the user sees, and which are recovered from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from inspection import ask_to_stop, declare
from loops import ADAM, MODEL, SEED, batch, quick

from tinker_recovery import Attempt, FaultError, StaleAttempt, Supervisor
from tinker_recovery.faults import Kind
from tinker_recovery.testing import FaultRule, LocalTinker

START: Any = {"base_model": MODEL, "rank": 8, "seed": SEED}
SAVES: Any = {"save_every": 100, "save_at_start": False, "save_at_end": False}


async def steps(attempt: Attempt, count: int) -> None:
    for step in range(attempt.start_step, count):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        await forward


Leaving = Callable[[Attempt], Awaitable[None]]


async def _attempts(leaving: Leaving, kind: Kind = Kind.CORRUPTED, **changes: object) -> int:
    """How many attempts there were, if the first is at fault and its body leaves like this."""
    begun = 0

    async def body(attempt: Attempt) -> None:
        nonlocal begun
        begun += 1
        await steps(attempt, 1)
        if begun == 1:
            declare(attempt, kind)
            await leaving(attempt)

    async with Supervisor(quick(checkpoints=SAVES, **changes)) as supervisor:
        await supervisor.run(body, **START)
    return begun


async def _in_the_wait(then: BaseException | None) -> None:
    try:
        await anyio.sleep_forever()
    except asyncio.CancelledError:
        if then is not None:
            raise then from None
        raise


class _GroupOf:
    """Leaves with a group of these errors, and what the cancelled wait raised besides."""

    def __init__(self, *errors: Callable[[Attempt], BaseException]) -> None:
        self._errors = errors

    async def __call__(self, attempt: Attempt) -> None:
        raise BaseExceptionGroup("of the body", [error(attempt) for error in self._errors])


def _refusal(attempt: Attempt) -> BaseException:
    """What a retired client answers."""
    try:
        attempt.client.optim_step(ADAM)
    except StaleAttempt as error:
        return error
    raise AssertionError("the client is not retired")


async def _wrapped(attempt: Attempt) -> None:
    raise RuntimeError("the loop's own words for it") from _refusal(attempt)


async def _quiet(attempt: Attempt) -> None:
    del attempt


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    "leaving",
    [
        lambda _: _in_the_wait(None),
        _quiet,
        _GroupOf(_refusal),
        _GroupOf(_refusal, _refusal),
        _GroupOf(_refusal, lambda _: asyncio.CancelledError()),
        _wrapped,
    ],
    ids=["cancelled", "to its end", "refused", "refused twice", "refused and cancelled", "wrapped"],
)
async def test_what_a_fault_leaves_behind_in_the_body_is_recovered_from(leaving: Leaving) -> None:
    assert await _attempts(leaving) == 2


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("waiting", [False, True])
async def test_an_error_of_the_users_own_after_a_fault_reaches_the_caller(
    waiting: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    mine = ValueError("mine")

    async def leaving(attempt: Attempt) -> None:
        del attempt
        if waiting:
            await _in_the_wait(mine)
        raise mine

    with pytest.raises(ValueError, match="mine") as caught:
        await _attempts(leaving)
    assert caught.value is mine


@pytest.mark.usefixtures("local")
async def test_an_error_of_the_users_own_beside_what_a_fault_leaves_behind_is_not_swallowed() -> (
    None
):
    with pytest.raises(BaseExceptionGroup) as caught:
        await _attempts(_GroupOf(_refusal, lambda _: ValueError("mine")))
    assert caught.value.subgroup(ValueError) is not None


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    "leaving", [lambda _: _in_the_wait(None), _quiet], ids=["cancelled", "end"]
)
async def test_a_fault_that_cannot_be_recovered_from_is_raised_for_a_body_that_left_quietly(
    leaving: Leaving,
) -> None:
    with pytest.raises(FaultError):
        await _attempts(leaving, Kind.UNPAID)


@pytest.mark.usefixtures("local")
async def test_with_recovery_off_a_fault_that_a_poll_finds_leaves_the_loop_alone() -> None:
    async def end(attempt: Attempt) -> None:
        attempt.client.forward_backward(batch(1), "cross_entropy")
        await attempt.client.optim_step(ADAM)

    assert await _attempts(end, enabled=False) == 1


@pytest.mark.usefixtures("local")
async def test_a_cancellation_from_outside_is_not_taken_for_the_faults_own() -> None:
    began, cancelled = anyio.Event(), anyio.Event()

    async def leaving(attempt: Attempt) -> None:
        del attempt
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            began.set()
            with anyio.CancelScope(shield=True):
                await cancelled.wait()
            raise

    running = asyncio.create_task(_attempts(leaving))
    await began.wait()
    running.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await running


# -- the last step, when the process is asked to stop --------------------------------------------


async def _stopped(
    local: LocalTinker, *, asked: bool = True, at_fault: bool = False, **checkpoints: object
) -> list[int]:
    """The steps that are stored once a body of three steps has left with an error of its own."""

    async def body(attempt: Attempt) -> None:
        await steps(attempt, 3)
        if asked:
            ask_to_stop(attempt)
        if at_fault:
            declare(attempt, Kind.CORRUPTED)
        raise KeyError("mine")

    given = quick(checkpoints=SAVES | checkpoints)
    with anyio.fail_after(20), pytest.raises(KeyError):
        async with Supervisor(given) as supervisor:
            await supervisor.run(body, **START)
    (run,) = local.runs()
    return [each.steps for each in local.checkpoints(run)]


async def test_a_body_that_leaves_in_a_stop_has_its_last_step_saved_and_else_not(
    local: LocalTinker,
) -> None:
    assert await _stopped(local) == [3]


async def test_a_body_that_leaves_without_a_stop_saves_nothing(local: LocalTinker) -> None:
    assert await _stopped(local, asked=False) == []


async def test_a_stop_saves_nothing_where_the_policy_says_so(local: LocalTinker) -> None:
    assert await _stopped(local, save_on_stop_s=None) == []


async def test_a_stop_saves_nothing_of_an_attempt_at_fault(local: LocalTinker) -> None:
    assert await _stopped(local, at_fault=True) == []


async def test_a_step_that_is_saved_already_is_not_saved_again_in_a_stop(
    local: LocalTinker,
) -> None:
    assert await _stopped(local, save_every=3) == [3]


async def test_a_save_in_flight_does_not_keep_a_stop_from_saving_the_last_step(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("slow", 2, request="save_weights", delay_s=0.5))
    assert await _stopped(local, save_every=2) == [2, 3]


async def test_a_last_save_that_the_service_refuses_is_logged_and_the_error_is_the_users(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    local.inject(FaultRule("fail", 3, request="save_weights", category="user", times=5))
    with caplog.at_level(logging.WARNING, "tinker_recovery"):
        assert await _stopped(local) == []


async def test_a_last_save_that_takes_too_long_is_given_up_and_said(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    local.inject(FaultRule("hang", 3, request="save_weights"))
    with caplog.at_level(logging.WARNING, "tinker_recovery"):
        await _stopped(local, save_on_stop_s=0.3)
    assert "step 3 was not saved within 0.3 s" in caplog.text


@pytest.mark.parametrize("ends", [False, True], ids=["in the loop", "behind it"])
async def test_a_loop_that_outlives_its_supervisor_has_not_ended_well(
    local: LocalTinker, *, ends: bool
) -> None:
    """Its Supervisor has stopped the run, and cancelled what it waits for."""
    waiting = asyncio.Event()

    async def body(attempt: Attempt) -> str:
        await steps(attempt, 2)
        attempt.client.forward_backward(batch(2), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        waiting.set()
        if not ends:
            await update
        return "well"

    local.inject(FaultRule("hang", 2, "optim_step"))
    async with Supervisor(quick(checkpoints=SAVES)) as supervisor:
        running = asyncio.create_task(supervisor.run(body, **START))
        await waiting.wait()
        await asyncio.sleep(0.1)  # until what it waits for is at the service
    with anyio.fail_after(20), pytest.raises(StaleAttempt):
        await running
    local.release()
