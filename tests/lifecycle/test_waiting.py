"""A client that takes its time to come is waited for while the service is at work on it."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from inspection import set_notice_s
from loops import MODEL, SEED, InstantClock, policy, quick, train, undisturbed_state

from tinker_recovery import Clock, RecoveryEvent, RecoveryExhausted, Run, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 8
LOAD_S = 1.5


async def _recovered(events: list[RecoveryEvent], **changes: Any) -> Run:
    async with Supervisor(quick(**changes), on_event=events.append) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    return supervisor.runs[0]


def _loads(server: LocalTinker) -> int:
    return server.stats.by_route.get("load_weights", 0)


async def test_a_load_that_the_service_says_it_is_at_work_on_is_waited_for(
    serving: Callable[..., Any],
) -> None:
    events: list[RecoveryEvent] = []
    async with serving(load_s=LOAD_S, long_poll_s=0.1) as local:
        expected = await undisturbed_state(local, steps=STEPS)
        local.inject(FaultRule("fail", 7, "optim_step"))
        run = await _recovered(events, create_timeout_s=1.0, max_wait_s=12.0)
        assert _loads(local) == 1
        assert [event.name for event in events].count("recovery.failed") == 0
        assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_load_paused_for_capacity_is_waited_for_and_reported_with_the_services_reason(
    serving: Callable[..., Any],
) -> None:
    events: list[RecoveryEvent] = []
    async with serving(long_poll_s=0.1) as local:
        local.inject(FaultRule("fail", 7, "optim_step"))
        local.inject(FaultRule("pause", request="load_weights", for_s=1.5))
        await _recovered(events, create_timeout_s=0.5)
        assert _loads(local) == 1


async def test_without_a_word_of_the_service_each_try_waits_longer_and_leaves_no_session_open(
    serving: Callable[..., Any],
) -> None:
    events: list[RecoveryEvent] = []
    async with serving(load_s=LOAD_S, long_poll_s=9.0) as local:
        expected = await undisturbed_state(local, steps=STEPS)
        local.inject(FaultRule("fail", 7, "optim_step"))
        run = await _recovered(events, create_timeout_s=0.5, max_wait_s=12.0)
        missed = [each.message for each in events if each.name == "recovery.failed"]
        assert [each.partition("deadline of ")[2] for each in missed] == ["0.5 s", "1 s"]
        assert _loads(local) == 3
        assert local.run_state(run.segments[-1].run_id) == expected
        assert "active" not in local.sessions().values()


async def test_a_load_that_is_paused_for_longer_than_max_wait_s_is_given_up(
    serving: Callable[..., Any],
) -> None:
    async with serving(long_poll_s=0.1) as local:
        local.inject(FaultRule("fail", 7, "optim_step"))
        local.inject(FaultRule("pause", request="load_weights", for_s=60.0))
        with anyio.fail_after(10), pytest.raises(RecoveryExhausted, match="1 s of waiting"):
            await _recovered([], create_timeout_s=0.5, max_wait_s=1.0)
        assert "active" not in local.sessions().values()


@pytest.mark.parametrize(
    "rule",
    [
        FaultRule("pause", request="create_model", for_s=1.0),
        FaultRule("slow", request="create_model", delay_s=1.0),
    ],
    ids=["at-work", "without-a-word"],
)
async def test_the_first_client_is_waited_for_whatever_the_deadline_as_without_supervision(
    serving: Callable[..., Any], rule: FaultRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_notice_s(monkeypatch, 0.1)
    events: list[RecoveryEvent] = []
    async with serving(long_poll_s=0.05) as local:
        local.inject(rule)
        run = await _recovered(events, create_timeout_s=0.3)
        assert run.recoveries == []
        assert len(local.runs()) == 1
    said = [each.message for each in events if each.name == "recovery.waiting"]
    assert 2 <= len(said) <= 5, "at growing intervals"
    assert all(
        each.startswith(f"creating a client (base model {MODEL}) has taken ") for each in said
    )
    at_work = "is at work on it, and answered last: paused_capacity"
    assert (at_work if rule.action == "pause" else "has not said anything of it") in said[-1]


async def test_a_poll_answered_with_408_says_that_the_service_is_at_work(
    serving: Callable[..., Any],
) -> None:
    events: list[RecoveryEvent] = []
    async with serving(long_poll_s=9.0, load_s=0.1) as local:
        local.inject(FaultRule("fail", 7, "optim_step"))
        local.inject(
            FaultRule(
                "status", request="retrieve_future", polled="load_weights", status=408, for_s=0.8
            )
        )
        await _recovered(events, create_timeout_s=0.4)
        assert _loads(local) == 1


@pytest.mark.usefixtures("no_waiting_between_tries")
async def test_a_service_that_is_away_for_most_of_an_hour_is_reported_at_growing_intervals(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tries, tries_of_one_read = 40, 3
    local.inject(FaultRule("fail", 7, "optim_step"))
    local.inject(
        FaultRule("status", request="run_checkpoints", status=503, times=tries * tries_of_one_read)
    )
    instant, events = InstantClock(poll_interval_s=30.0), list[RecoveryEvent]()
    clock = Clock(
        sleep=instant.clock.sleep,
        random=lambda: 0.0,
        monotonic=lambda: time.monotonic() + sum(instant.slept),
    )
    patient = policy(backoff_s=60.0, max_backoff_s=60.0, max_attempts=1)
    async with Supervisor(patient, on_event=events.append, clock=clock) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    # Retention may have met a few of the refusals.
    assert [event.name for event in events].count("recovery.failed") > tries - 5
    assert caplog.text.count("recovery attempt ") - caplog.text.count("recovery attempt 1 of") == 1
    assert caplog.text.count("trying again after a wait") == 1
    said = [event.message for event in events if event.name == "recovery.waiting"]
    waited_min = [int(message.partition("no step for ")[2].split()[0]) // 60 for message in said]
    assert waited_min == [1, 3, 5, 11, 21]
    assert "; the service does not answer; waiting up to 86400 s (max_wait_s); the" in said[0]
    back = [event.message for event in events if event.name == "service.back"]
    assert len(back) == 1, back
    assert "the service is back after 2" in back[0]
