"""What ends a run, and how: exhausted, cancelled, interrupted, the user's own error."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import tinker
from loops import ADAM, MODEL, SEED, InstantClock, batch, policy, train, undisturbed_state, until

from tinker_recovery import (
    Attempt,
    NoUsableCheckpoint,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryLost,
    RecoveryPolicy,
    SupervisedClient,
    Supervisor,
    UsageError,
)
from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing.actions import Request

STEPS = 12
POLL_S = 30.0


def _supervisor(clock: InstantClock, **changes: object) -> Supervisor:
    return Supervisor(policy(poll_interval_s=POLL_S, **changes), clock=clock.clock)


async def test_a_run_that_never_gets_further_is_given_up_with_every_error_on_the_way(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("poison", 7, times=100))
    clock = InstantClock(poll_interval_s=POLL_S)
    failures: list[tuple[str, BaseException]] = []
    with pytest.raises(RecoveryExhausted) as caught:
        async with _supervisor(
            clock, on_failure=lambda run_id, error: failures.append((run_id, error))
        ) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=STEPS),
                base_model=MODEL,
                seed=SEED,
                name="hopeless",
            )
    error = caught.value
    assert error.run == "hopeless"
    assert len(error.errors) == 4, "the first fault, and one for each of three recoveries"
    assert all(isinstance(one, tinker.RequestFailedError) for one in error.errors)
    assert error.__cause__ is error.errors[-1]
    assert "'hopeless' was given up after 3 recovery attempts" in str(error)
    assert clock.slept == [5.0, 10.0], "the first attempt starts at once, the next ones wait"
    assert [given for _, given in failures] == [error]


async def test_progress_between_incidents_gives_all_attempts_back(local: LocalTinker) -> None:
    for step in (6, 11, 16, 21, 26):
        local.poison(at_step=step)
    clock = InstantClock(poll_interval_s=POLL_S)
    async with _supervisor(clock, max_attempts=1) as supervisor:
        await supervisor.run(functools.partial(train, steps=30), base_model=MODEL, seed=SEED)
    assert len(supervisor.runs[0].recoveries) == 5
    assert clock.slept == []


async def test_a_save_whose_answer_the_fault_overtook_is_progress_too(local: LocalTinker) -> None:
    for step in (5, 10):
        local.inject(
            FaultRule(
                "slow", step, request="retrieve_future", polled="save_weights", delay_s=60, times=9
            )
        )
    for step in (6, 11):
        local.poison(at_step=step)
    clock = InstantClock(poll_interval_s=POLL_S)
    async with _supervisor(clock, max_attempts=1) as supervisor:
        await supervisor.run(functools.partial(train, steps=13), base_model=MODEL, seed=SEED)
    steps = [one.checkpoint and one.checkpoint.step for one in supervisor.runs[0].recoveries]
    assert steps == [5, 10]


async def test_the_last_look_for_progress_waits_for_a_listing_that_cannot_be_read(
    local: LocalTinker,
) -> None:
    local.inject(
        FaultRule("slow", 5, request="retrieve_future", polled="save_weights", delay_s=60, times=9)
    )
    local.poison(at_step=3)
    local.poison(at_step=7)

    detected: list[RecoveryEvent] = []

    def hide_the_listing(event: RecoveryEvent) -> None:
        # Not before the fault, as what is saved after an outage that nothing has looked into is no
        # progress. Retention may be reading it as well, and take its share of them.
        if event.name == names.EVENT_DETECTED:
            detected.append(event)
            if len(detected) == 2:
                local.inject(FaultRule("status", request="run_checkpoints", status=503, times=6))

    clock = InstantClock(poll_interval_s=POLL_S)
    async with Supervisor(
        policy(poll_interval_s=POLL_S, max_attempts=1),
        clock=clock.clock,
        on_event=hide_the_listing,
    ) as supervisor:
        await supervisor.run(functools.partial(train, steps=9), base_model=MODEL, seed=SEED)
    assert len(supervisor.runs[0].recoveries) == 2
    assert clock.slept, "it waited"


async def test_the_last_look_for_progress_does_not_wait_for_a_listing_that_is_refused(
    local: LocalTinker,
) -> None:
    """No waiting mends that: the run is given up at once, and not after ``max_wait_s``, a day."""
    local.inject(FaultRule("poison", 3, times=2))
    detected: list[RecoveryEvent] = []

    def refuse_the_listing(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            detected.append(event)
            if len(detected) == 2:
                local.inject(FaultRule("status", request="run_checkpoints", status=422, times=9))

    clock = InstantClock(poll_interval_s=POLL_S)
    with pytest.raises(RecoveryExhausted, match="1 recovery attempt without a newer checkpoint"):
        async with Supervisor(
            policy(poll_interval_s=POLL_S, max_attempts=1),
            clock=clock.clock,
            on_event=refuse_the_listing,
        ) as supervisor:
            await supervisor.run(functools.partial(train, steps=9), base_model=MODEL, seed=SEED)
    assert clock.slept == []


async def test_a_recovery_that_fails_is_tried_again_after_a_backoff(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", times=2))
    clock = InstantClock(poll_interval_s=POLL_S)
    async with _supervisor(clock) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    assert clock.slept == [5.0, 10.0]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_stop_during_a_backoff_is_not_waited_out(local: LocalTinker) -> None:
    local.poison(at_step=2)
    local.inject(FaultRule("fail", request="create_model", times=3))
    # The first creation fails too, so the second attempt is in a backoff of five seconds.
    with anyio.move_on_after(0.5) as scope:
        async with Supervisor(policy(backoff_s=3600, max_backoff_s=3600)) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    assert scope.cancelled_caught


async def test_the_users_own_exception_leaves_unchanged(local: LocalTinker) -> None:
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with Supervisor(policy()) as supervisor:
            async for attempt in supervisor.attempts(base_model=MODEL):
                async with attempt:
                    raise mine
    assert caught.value is mine
    assert mine.__cause__ is None
    assert mine.__context__ is None
    assert set(local.sessions().values()) == {"errored"}


async def test_an_error_that_is_the_users_fault_is_not_recovered_from(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", 3, category="user", message="tokens out of range"))
    with pytest.raises(tinker.RequestFailedError, match="tokens out of range"):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    assert supervisor.runs[0].recoveries == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_inside_the_loop_leaves_at_once_and_unchanged(
    local: LocalTinker, error: type[BaseException]
) -> None:
    mine = error()
    with pytest.raises(error) as caught:
        async with Supervisor(policy()) as supervisor:
            async for attempt in supervisor.attempts(base_model=MODEL):
                async with attempt:
                    await attempt.client.forward_backward(batch(0), "cross_entropy")
                    raise mine
    assert caught.value is mine
    assert set(local.sessions().values()) == {"interrupted"}


async def test_cancellation_from_outside_passes_through_in_the_middle_of_a_step(
    local: LocalTinker,
) -> None:
    reached = anyio.Event()

    async def loop() -> None:
        async with Supervisor(policy()) as supervisor:
            async for attempt in supervisor.attempts(base_model=MODEL):
                async with attempt:
                    await attempt.client.forward_backward(batch(0), "cross_entropy")
                    attempt.client.optim_step(ADAM)
                    attempt.client.forward_backward(batch(1), "cross_entropy")
                    reached.set()
                    await anyio.sleep_forever()

    task = asyncio.create_task(loop())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(local.sessions().values()) == {"interrupted"}


@pytest.mark.parametrize("request_", ["load_weights", "create_model"])
async def test_cancellation_during_a_recovery_leaves_no_session_behind(
    local: LocalTinker, request_: Request
) -> None:
    """The service never answers the recovery's own request; the stop does not wait for it."""
    step = 7 if request_ == "load_weights" else 2
    local.poison(at_step=step)
    seen = anyio.Event()

    def hang_next(event: RecoveryEvent) -> None:
        if event.name == "recovery.detected":
            local.inject(FaultRule("hang", request=request_))
        if event.name == "recovery.checkpoint_selected":
            seen.set()

    async def loop() -> None:
        async with Supervisor(policy(), on_event=hang_next) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)

    running = asyncio.create_task(loop())
    await seen.wait()
    await until(lambda: len(local.sessions()) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_when_off_a_fault_is_reported_and_reaches_the_user_untouched(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    local.poison(at_step=2)
    failures: list[str] = []
    told: list[str] = []
    with caplog.at_level(logging.INFO, "tinker_recovery"), pytest.raises(tinker.RequestFailedError):
        async with Supervisor(
            RecoveryPolicy(enabled=False, on_failure=lambda run_id, _: failures.append(run_id)),
            on_event=lambda event: told.append(event.name),
        ) as supervisor:
            async for attempt in supervisor.attempts(base_model=MODEL):
                async with attempt:
                    try:
                        await train(attempt, steps=STEPS)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await until(lambda: bool(failures))
    assert failures == [supervisor.runs[0].segments[0].run_id]
    assert told == ["checkpoint.saved", "recovery.detected"]
    assert "recovery is off (enabled=False)" in caplog.text


async def test_when_off_a_corrupted_run_is_reported_and_left_alone(local: LocalTinker) -> None:
    told: list[str] = []
    async with Supervisor(
        RecoveryPolicy(enabled=False, poll_interval_s=0.01),
        on_event=lambda event: told.append(event.name),
    ) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                await train(attempt, steps=2)
                local.poison(quiet=True)
                stuck = attempt.client.forward_backward(batch(2), "cross_entropy")
                await until(lambda: "recovery.detected" in told)
                assert attempt.client.step == 2
                stuck.future().cancel()
    assert told == ["checkpoint.saved", "recovery.detected"]


async def test_callbacks_may_be_sync_or_async_and_see_both_clients_and_the_checkpoint(
    local: LocalTinker,
) -> None:
    calls: list[tuple[object, object, object]] = []

    async def on_recovery(old: object, new: object, checkpoint: object) -> None:
        await anyio.lowlevel.checkpoint()
        calls.append((old, new, checkpoint))

    local.poison(at_step=7)
    async with Supervisor(policy(on_recovery=on_recovery)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    ((old, new, checkpoint),) = calls
    first, second = supervisor.runs[0].attempts
    assert old is first.client
    assert new is second.client
    assert isinstance(old, SupervisedClient)
    assert isinstance(checkpoint, CheckpointRecord)
    assert checkpoint.step == 5


async def test_a_callback_that_raises_or_hangs_breaks_nothing(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("the callback's own trouble")

    async def hangs(*_: object) -> None:
        await anyio.sleep_forever()

    for callback in (raises, hangs):
        local.poison(at_step=7)
        async with Supervisor(policy(on_recovery=callback, close_timeout_s=0.05)) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
        assert len(supervisor.runs[0].recoveries) == 1
    assert "the callback's own trouble" in caplog.text
    assert caplog.text.count("on_recovery raised; recovery continues") == 2


async def test_a_listener_that_raises_breaks_nothing(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_: RecoveryEvent) -> None:
        raise RuntimeError("the listener's own trouble")

    local.poison(at_step=7)
    async with Supervisor(policy(), on_event=raises) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    assert len(supervisor.runs[0].recoveries) == 1
    assert "the listener's own trouble" in caplog.text


async def test_a_loop_left_by_break_with_a_fault_to_come_is_told_that_its_end_is_lost(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("poison", 5, "save_weights"))
    with pytest.raises(RecoveryLost, match="break or return"):
        async with Supervisor(policy()) as supervisor:
            async for attempt in supervisor.attempts(base_model=MODEL):
                async with attempt:
                    for step in range(5):
                        attempt.client.forward_backward(batch(step), "cross_entropy")
                        attempt.client.optim_step(ADAM)
                    break


async def test_a_loop_left_by_break_in_good_health_is_finished(local: LocalTinker) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                await train(attempt, steps=3)
                break
    assert set(local.sessions().values()) == {"success"}


async def test_an_attempt_that_is_never_entered_is_an_error_that_says_what_to_write(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    with pytest.raises(UsageError, match="async with attempt"):
        async with Supervisor(policy()) as supervisor:
            async for _ in supervisor.attempts(base_model=MODEL):
                pass


async def test_an_attempt_cannot_be_entered_twice(local: LocalTinker) -> None:  # noqa: ARG001 - its environment
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                pass
            with pytest.raises(UsageError, match="entered before"):
                await attempt.__aenter__()


async def test_checkpoints_that_exist_and_cannot_be_used_are_never_answered_by_starting_over(
    serving: Callable[..., Any],
) -> None:
    """By the service's clock its only checkpoint has a minute left to live."""
    wall = [time.time()]

    async def with_ttl(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        await attempt.client.save_state("mine", ttl_seconds=86400)
        wall[0] += 86400 - 60
        local.poison()
        await train(attempt, steps=6)

    async with serving(wall=lambda: wall[0]) as local:
        with pytest.raises(NoUsableCheckpoint, match="expires at"):
            async with Supervisor(
                policy(), clock=InstantClock(poll_interval_s=POLL_S).clock
            ) as supervisor:
                await supervisor.run(with_ttl, base_model=MODEL)


async def test_one_fault_reported_by_many_calls_is_one_recovery(local: LocalTinker) -> None:
    told: list[str] = []
    local.poison(at_step=2)
    async with Supervisor(policy(), on_event=lambda event: told.append(event.name)) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                for step in range(attempt.start_step, 8):
                    attempt.client.forward_backward(batch(step), "cross_entropy")
                    attempt.client.optim_step(ADAM)
    assert told.count("recovery.detected") == 1
    assert len(supervisor.runs[0].attempts) == 2
