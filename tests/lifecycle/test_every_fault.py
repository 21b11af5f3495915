"""Every row of the table of faults, by the real SDK: heard by the right ear, and dealt with."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import pytest
import tinker
from inspection import in_an_outage, run_id_of, service_of
from loops import ADAM, MODEL, SEED, batch, policy, quick, train, undisturbed_state, until

from tinker_recovery import (
    Attempt,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryRefused,
    Run,
    Supervisor,
)
from tinker_recovery.faults import RULES, Kind
from tinker_recovery.run import monitored
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12

Train = Callable[[Attempt], object]


async def _supervised(
    train_: Train | None = None, *, events: list[RecoveryEvent] | None = None, **changes: Any
) -> Run:
    note = None if events is None else events.append
    async with Supervisor(quick(**changes), on_event=note) as supervisor:
        await supervisor.run(
            train_ or functools.partial(train, steps=STEPS, depth=1),
            base_model=MODEL,
            rank=8,
            seed=SEED,
        )
        (run,) = supervisor.runs
        return run


RECOVERED = [
    (FaultRule("poison", 7, "optim_step"), Kind.REQUEST_FAILED, "call", {}),
    (FaultRule("poison", 7, quiet=True), Kind.CORRUPTED, "poll", {"poll_interval_s": 0.05}),
    (
        FaultRule("poison", 7, "optim_step", category="user"),
        Kind.CORRUPTED,
        "call",
        {},
    ),
    (FaultRule("fail", 7, "forward_backward"), Kind.REQUEST_FAILED, "call", {}),
    (
        FaultRule("fail", 7, "forward_backward", category="unknown"),
        Kind.REQUEST_FAILED,
        "call",
        {},
    ),
    (
        FaultRule("fail", 7, category="user", message="Model x not loaded"),
        Kind.MODEL_MISSING,
        "call",
        {},
    ),
    (FaultRule("gone", 7, "optim_step"), Kind.GONE, "call", {}),
    (FaultRule("hang", 7, "optim_step"), Kind.SILENCE, "silence", {"stall_after_s": 1.0}),
    (
        FaultRule("status", 7, "retrieve_future", status=503, for_s=1.5),
        Kind.SILENCE,
        "silence",
        {"stall_after_s": 1.0},
    ),
    (
        FaultRule("status", 7, "forward_backward", status=503, times=3),
        Kind.SILENCE,
        "silence",
        {"stall_after_s": 0.6},
    ),
    (FaultRule("nan_loss", 7), Kind.LOSS_NOT_FINITE, "call", {"guard_loss": True}),
    (FaultRule("nan_loss", 7, sticky=True), Kind.LOSS_NOT_FINITE, "call", {"guard_loss": True}),
    (FaultRule("status", 7, "optim_step", status=404), Kind.MODEL_MISSING, "call", {}),
    (FaultRule("status", 7, "optim_step", status=401), Kind.UNAUTHORIZED, "call", {}),
    (FaultRule("status", 7, "retrieve_future", status=401), Kind.UNAUTHORIZED, "call", {}),
    (FaultRule("status", 7, "optim_step", status=410), Kind.GONE, "call", {}),
    (
        FaultRule("malformed", 7, "retrieve_future", polled="forward_backward", body="garbage"),
        Kind.REQUEST_BROKE,
        "call",
        {},
    ),
]


@pytest.mark.parametrize(
    ("rule", "kind", "detected_by", "changes"),
    RECOVERED,
    ids=[f"{kind.value}-{rule.action}" for rule, kind, _, _ in RECOVERED],
)
async def test_a_backend_fault_is_heard_judged_and_recovered_from_bit_for_bit(
    local: LocalTinker,
    caplog: pytest.LogCaptureFixture,
    rule: FaultRule,
    kind: Kind,
    detected_by: str,
    changes: dict[str, Any],
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(rule)
    with caplog.at_level(logging.WARNING, "tinker_recovery"):
        run = await _supervised(**changes)
    (recovery,) = run.recoveries
    assert recovery.fault.kind is kind
    assert recovery.fault.detected_by == detected_by
    assert local.run_state(run.segments[-1].run_id) == expected
    # The line a person needs: what it was, where, and what was made of it.
    assert f"{kind.value} at step" in caplog.text
    assert RULES[kind].reason in caplog.text
    # What a poll tells of may have begun right after the poll before it, and with it the save.
    assert recovery.checkpoint is not None or detected_by == "poll"
    step = 0 if recovery.checkpoint is None else 5
    assert f"the loop runs again from step {step}" in caplog.text


SUBMITS = [
    (FaultRule("status", 7, "optim_step", status=503, times=999), Kind.UNAVAILABLE),
    (FaultRule("status", 7, "forward_backward", status=500, times=999), Kind.UNAVAILABLE),
    (FaultRule("drop", 7, "forward_backward", times=999), Kind.UNAVAILABLE),
    (FaultRule("status", 7, "optim_step", status=408, times=999), Kind.UNAVAILABLE),
    (FaultRule("status", 7, "optim_step", status=429, times=999), Kind.RATE_LIMITED),
    (FaultRule("status", request="save_weights", status=409, times=999), Kind.CONFLICT),
]


@pytest.mark.parametrize(
    ("rule", "kind"), SUBMITS, ids=[f"{kind.value}-{rule.status}" for rule, kind in SUBMITS]
)
@pytest.mark.usefixtures("hurried")
async def test_a_submit_that_fails_after_the_sdks_own_retries_is_recovered_from(
    local: LocalTinker, rule: FaultRule, kind: Kind
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)

    async def loop(attempt: Attempt) -> None:
        if attempt.number == 1:
            local.inject(replace(rule, run=run_id_of(attempt)))
        await train(attempt, steps=STEPS, depth=1)

    run = await _supervised(loop)
    (recovery,) = run.recoveries
    assert recovery.fault.kind is kind
    assert local.run_state(run.segments[-1].run_id) == expected


GIVEN_UP = [
    (FaultRule("status", 7, "optim_step", status=403), Kind.FORBIDDEN, 403),
    (FaultRule("status", 7, "optim_step", status=422), Kind.INVALID_REQUEST, 422),
    (FaultRule("status", 7, "optim_step", status=402, for_s=30.0), Kind.UNPAID, 402),
    (FaultRule("fail", 7, "optim_step", category="user"), Kind.USER_ERROR, None),
]


@pytest.mark.parametrize(
    ("rule", "kind", "code"),
    GIVEN_UP,
    ids=[f"{kind.value}-{rule.request}" for rule, kind, _ in GIVEN_UP],
)
@pytest.mark.usefixtures("hurried")
async def test_what_trying_again_cannot_change_reaches_the_user_unchanged_and_at_once(
    local: LocalTinker,
    caplog: pytest.LogCaptureFixture,
    rule: FaultRule,
    kind: Kind,
    code: int | None,
) -> None:
    local.inject(rule)
    told: list[tuple[str, BaseException]] = []
    with pytest.raises((tinker.TinkerError, ValueError)) as caught:
        await _supervised(on_failure=lambda run_id, error: told.append((run_id, error)))
    assert code is None or getattr(caught.value, "status_code", None) == code
    ((run_id, error),) = told
    assert error is caught.value
    assert run_id == local.runs()[0]
    assert RULES[kind].reason in caplog.text
    assert len(local.runs()) == 1


@pytest.mark.parametrize("in_a_group", [False, True])
async def test_a_404_that_is_not_about_the_runs_model_reaches_the_user_unchanged(
    local: LocalTinker, *, in_a_group: bool
) -> None:
    """A sampler that is gone, a route that the service does not have: no recovery helps."""
    starts: list[int] = []

    async def looking(attempt: Attempt) -> None:
        starts.append(attempt.start_step)
        await train(attempt, steps=6)
        rest = await anyio.to_thread.run_sync(
            lambda: tinker.RestClient(base_url=local.base_url, api_key=local.api_key)
        )
        if in_a_group:
            async with asyncio.TaskGroup() as group:
                group.create_task(_gone(rest))
        await _gone(rest)

    with pytest.raises((tinker.NotFoundError, ExceptionGroup)) as caught:
        await _supervised(looking)
    error = caught.value.exceptions[0] if in_a_group else caught.value  # type: ignore[attr-defined]  # a group's
    assert isinstance(error, tinker.NotFoundError)
    assert starts == [0]
    assert len(local.runs()) == 1


async def _gone(rest: tinker.RestClient) -> None:
    await rest.get_training_run("session-0:train:9")


async def test_a_404_of_the_runs_model_is_recovered_from_in_whatever_the_loop_raises(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("status", 7, "optim_step", status=404))

    async def wrapping(attempt: Attempt) -> None:
        try:
            await train(attempt, steps=STEPS)
        except tinker.NotFoundError as error:
            raise LookupError("the loop's own words") from error

    run = await _supervised(wrapping)
    assert [each.fault.kind for each in run.recoveries] == [Kind.MODEL_MISSING]
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("status", [400, 422])
async def test_what_a_corrupted_run_refuses_is_recovered_from_and_not_given_up(
    local: LocalTinker, status: int
) -> None:
    """The service has marked the run, no poll has told yet, and its calls are refused."""
    expected = await undisturbed_state(local, steps=STEPS)

    async def loop(attempt: Attempt) -> None:
        if attempt.number == 1:
            await train(attempt, steps=7)
            local.corrupt([run_id_of(attempt)])
            local.inject(FaultRule("status", request="optim_step", status=status))
            await attempt.client.forward_backward(batch(7), "cross_entropy")
            await attempt.client.optim_step(ADAM)
        await train(attempt, steps=STEPS)

    run = await _supervised(loop)
    assert [each.fault.kind for each in run.recoveries] == [Kind.CORRUPTED]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_run_that_a_poll_has_found_corrupted_does_not_end_well_by_its_last_answers(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come while it is still waited for whether one of them says since which step."""
    monkeypatch.setattr(monitored, "ANSWER_S", 20.0)
    expected = await undisturbed_state(local, steps=STEPS)

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=STEPS - 1)
        last = attempt.client.forward_backward(batch(STEPS - 1), "cross_entropy")
        if attempt.number == 1:
            await last
            local.inject(FaultRule("slow", request="retrieve_future", delay_s=1.0))
        update = attempt.client.optim_step(ADAM)
        if attempt.number == 1:
            run_id = run_id_of(attempt)
            await until(lambda: local.run_state(run_id).steps == STEPS)
            local.corrupt([run_id])
        await last
        await update

    with anyio.fail_after(20):
        run = await _supervised(loop, poll_interval_s=0.05)
    (recovery,) = run.recoveries
    assert (recovery.fault.kind, recovery.fault.detected_by) == (Kind.CORRUPTED, "poll")
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_an_error_nobody_awaits_ends_the_run_all_the_same(local: LocalTinker) -> None:
    """The loop waits for something else, and would wait for ever."""
    local.inject(FaultRule("status", 3, "optim_step", status=403))

    async def loop(attempt: Attempt) -> None:
        for step in range(5):
            await attempt.client.forward_backward(batch(step), "cross_entropy")
            attempt.client.optim_step(ADAM)
        await anyio.sleep_forever()

    with anyio.fail_after(20), pytest.raises(tinker.PermissionDeniedError):
        await _supervised(loop)


async def test_a_session_the_service_failed_is_noticed_while_the_loop_is_idle(
    local: LocalTinker,
) -> None:
    begun: list[int] = []

    async def loop(attempt: Attempt) -> None:
        begun.append(attempt.start_step)
        await train(attempt, steps=7)
        if len(begun) == 1:
            local.fail_session(next(iter(local.sessions())))
            await anyio.sleep_forever()

    with anyio.fail_after(20):
        run = await _supervised(loop, poll_interval_s=0.05)
    (recovery,) = run.recoveries
    assert (recovery.fault.kind, recovery.fault.detected_by) == (Kind.SESSION_FAILED, "poll")
    assert begun in ([0, 5], [0, 0]), "what was saved since the last good poll is not trusted"


async def test_a_service_closed_under_the_loop_is_replaced(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    begun: list[int] = []

    async def loop(attempt: Attempt) -> None:
        begun.append(attempt.start_step)
        if len(begun) == 1:
            await train(attempt, steps=7)
            await service_of(attempt).close("success")
        await train(attempt, steps=STEPS) if len(begun) > 1 else await _from(attempt, 7)

    async def _from(attempt: Attempt, step: int) -> None:
        await attempt.client.forward_backward(batch(step), "cross_entropy")

    run = await _supervised(loop)
    (recovery,) = run.recoveries
    assert recovery.fault.kind is Kind.CLIENT_CLOSED
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_timeout_of_the_users_around_one_request_does_not_leave_a_client_that_hangs(
    local: LocalTinker,
) -> None:
    """Cancelling a request leaves a gap that every later one of that client waits behind."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("slow", 7, "forward_backward", delay_s=0.6))

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            with anyio.move_on_after(0.2 if step == 7 and attempt.number == 1 else None):
                # It waits for its turn behind the forward pass, and is never sent.
                await attempt.client.optim_step(ADAM)
            await forward

    with anyio.fail_after(30):
        run = await _supervised(loop)
    (recovery,) = run.recoveries
    assert recovery.fault.kind is Kind.CANCELLED
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_an_error_the_user_names_as_retryable_is_recovered_from(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    raised: list[int] = []

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=8) if not raised else await train(attempt, steps=STEPS)
        if not raised:
            raised.append(8)
            raise ConnectionResetError("the data loader lost its server")

    run = await _supervised(loop, retryable_errors=[OSError])
    (recovery,) = run.recoveries
    assert recovery.fault.kind is Kind.RETRYABLE
    assert local.run_state(run.segments[-1].run_id) == expected


# Waiting


async def test_a_capacity_pause_is_waited_out_however_long(local: LocalTinker) -> None:
    """Four times the deadline for silence, and no fault."""
    events: list[RecoveryEvent] = []
    async with _short_polls() as server:
        expected = await undisturbed_state(server, steps=STEPS)
        server.inject(FaultRule("pause", 7, for_s=4.0))
        run = await _supervised(events=events, stall_after_s=1.0)
        assert run.recoveries == []
        assert server.run_state(run.segments[-1].run_id) == expected
    assert local.runs() == []


@asynccontextmanager
async def _short_polls() -> AsyncIterator[LocalTinker]:
    async with LocalTinker(long_poll_s=0.05) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TINKER_BASE_URL", server.base_url)
            yield server


@pytest.mark.parametrize(("at", "bounds"), [(7, (1.0, 60.0)), (1, (0.01, 1.5))])
async def test_silence_is_noticed_by_the_runs_own_times_and_in_the_first_step_by_the_longest_limit(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, at: int, bounds: tuple[float, float]
) -> None:
    monkeypatch.setattr("tinker_recovery.policy.STALL_S", bounds)
    local.inject(FaultRule("hang", at, "optim_step"))
    expected = await undisturbed_state(local, steps=STEPS)
    run = await _supervised(stall_after_s=None)
    assert [each.fault.kind for each in run.recoveries] == [Kind.SILENCE]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_time_between_the_users_own_calls_is_not_silence(local: LocalTinker) -> None:
    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        await anyio.sleep(2.0)
        await train(attempt, steps=0)

    run = await _supervised(loop, stall_after_s=1.0)
    assert run.recoveries == []
    assert local.run_state(run.segments[-1].run_id).steps == 3


async def test_before_silence_counts_as_a_fault_there_is_a_warning(local: LocalTinker) -> None:
    events: list[RecoveryEvent] = []
    local.inject(FaultRule("hang", 7, "optim_step"))
    await _supervised(events=events, stall_after_s=2.5, stall_warn_after_s=1.0)
    told = [event.name for event in events]
    assert told.count("recovery.stall_warning") == 1
    assert told.index("recovery.stall_warning") < told.index("recovery.detected")


async def test_an_outage_of_status_reads_is_reported_and_leaves_the_run_alone(
    local: LocalTinker,
) -> None:
    events: list[RecoveryEvent] = []
    # Not a number of times: which of our reads meet the outage is up to chance, and only a failed
    # poll is the event, not a look in between two.
    local.inject(outage := FaultRule("status", request="training_run", status=503, for_s=60.0))
    async with Supervisor(policy(poll_interval_s=0.01), on_event=events.append) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                await train(attempt, steps=3)
                await until(lambda: any(e.name == "recovery.poll_error" for e in events))
                local.release(outage)
    assert supervisor.runs[0].recoveries == []


async def test_a_restore_that_takes_too_long_is_waited_for_and_spends_no_attempt(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))
    for _ in range(2):
        local.inject(FaultRule("hang", request="load_weights"))
    run = await _supervised(max_attempts=1, create_timeout_s=1.5)
    assert len(run.recoveries) == 1
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_wait_without_end_is_given_up_after_max_wait_s(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", 7, "optim_step"))
    local.inject(FaultRule("hang", request="load_weights", for_s=60.0))
    with anyio.fail_after(20), pytest.raises(RecoveryExhausted, match="of waiting for the service"):
        await _supervised(create_timeout_s=1.0, max_wait_s=0.5)


async def test_a_recovery_the_service_refuses_is_given_up_at_once_with_the_answer_as_cause(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", 7, "optim_step"))
    local.inject(FaultRule("status", request="load_weights", status=403, times=9))
    with pytest.raises(RecoveryRefused, match="is not allowed to do this") as caught:
        await _supervised(max_attempts=5)
    assert isinstance(caught.value.__cause__, tinker.PermissionDeniedError)


# The batch that poisons


async def test_a_step_that_faults_for_ever_is_given_up_by_name(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", 7, "forward_backward", times=99))
    with pytest.raises(RecoveryExhausted, match="request_failed at step 7"):
        await _supervised(max_attempts=3)


@pytest.mark.parametrize("action", ["fail", "nan_loss"])
async def test_a_step_that_faults_again_is_skipped_where_the_policy_says_so(
    local: LocalTinker, action: str
) -> None:
    rule = FaultRule("fail" if action == "fail" else "nan_loss", 7, "forward_backward", times=2)
    local.inject(rule)
    skipped: list[tuple[int, BaseException]] = []
    applied: list[int] = []

    async def loop(attempt: Attempt) -> None:
        del applied[attempt.start_step :]
        for step in range(attempt.start_step, STEPS):
            if attempt.skip(step):
                applied.append(-1)
                continue
            await attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            applied.append(step)

    run = await _supervised(
        loop,
        guard_loss=True,
        on_repeated_fault="skip_step",
        on_skip=lambda step, error: skipped.append((step, error)),
    )
    assert [step for step, _ in skipped] == [7]
    assert applied == [0, 1, 2, 3, 4, 5, 6, -1, 8, 9, 10, 11]
    assert local.run_state(run.segments[-1].run_id).steps == 11
    assert run.attempts[-1].client.step == STEPS


async def test_a_checkpoint_saved_after_the_loss_went_bad_is_not_gone_back_to(
    local: LocalTinker,
) -> None:
    """Ten steps are inside the checkpoint that was saved last, and those gave a loss of NaN."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("nan_loss", 10))
    run = await _supervised(functools.partial(train, steps=STEPS, depth=0), guard_loss=True)
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


# The canary


async def test_weights_the_service_lost_without_a_word_are_noticed_and_put_right(
    local: LocalTinker,
) -> None:
    """It comes back at its last checkpoint, calls nothing corrupted, and the loop carries on."""
    expected = await undisturbed_state(local, steps=STEPS)
    begun: list[int] = []

    async def loop(attempt: Attempt) -> None:
        begun.append(attempt.start_step)
        if len(begun) > 1:
            await train(attempt, steps=STEPS)
            return
        await train(attempt, steps=8)
        local.begin_outage(status=503, rollback=True)
        await until(lambda: in_an_outage(attempt))
        local.end_outage()
        for step in range(8, STEPS):
            await attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
        await anyio.sleep_forever()

    with anyio.fail_after(30):
        run = await _supervised(loop, canary=batch(3), poll_interval_s=0.05)
    (recovery,) = run.recoveries
    assert (recovery.fault.kind, recovery.fault.detected_by) == (Kind.ROLLED_BACK, "canary")
    assert begun == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_an_outage_that_lost_nothing_is_no_fault(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=8)
        local.begin_outage(status=503)
        await until(lambda: in_an_outage(attempt))
        local.end_outage()
        await until(lambda: not in_an_outage(attempt))
        for step in range(8, STEPS):
            await attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)

    with anyio.fail_after(30):
        run = await _supervised(loop, canary=batch(3), poll_interval_s=0.05)
    assert run.recoveries == []
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_restore_that_brought_back_other_weights_is_not_used_and_the_older_one_is(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    events: list[RecoveryEvent] = []
    local.inject(FaultRule("fail", 11, "optim_step"))
    local.inject(FaultRule("wrong_restore", request="load_weights"))
    run = await _supervised(events=events, canary=batch(3))
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert [event.name for event in events].count("checkpoint.bad") == 1
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_checkpoint_the_service_does_not_load_is_not_used_and_the_older_one_is(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 11, "optim_step"))
    local.inject(FaultRule("fail", request="load_weights", category="user", message="unreadable"))
    run = await _supervised()
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


# Clean-up


async def test_in_a_storm_the_old_clients_polls_stop_once_the_run_is_over(
    local: LocalTinker,
) -> None:
    """In a storm of 503 the SDK asks for its results hundreds of times a second, for ever."""

    async def loop(attempt: Attempt) -> None:
        attempt.client.forward_backward(batch(0), "cross_entropy")
        await anyio.sleep(0.2)
        raise RuntimeError("the user's own")

    local.inject(
        FaultRule(
            "status", None, "retrieve_future", status=503, polled="forward_backward", times=999999
        )
    )
    with pytest.raises(RuntimeError, match="the user's own"):
        await _supervised(loop)
    await anyio.sleep(0.1)  # what was on its way when the client closed has arrived
    before = local.stats.by_route["retrieve_future"]
    assert before > 5
    await anyio.sleep(0.2)
    assert local.stats.by_route["retrieve_future"] == before
