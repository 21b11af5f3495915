"""What a bad hour says, in words: what is waited for, when the next try is, what is passed over."""

from __future__ import annotations

import functools
import logging

import anyio
import pytest
from loops import MODEL, InstantClock, policy, quick, train, until

from tinker_recovery import Attempt, RecoveryEvent, Supervisor
from tinker_recovery.detection import outage
from tinker_recovery.faults import RULES, Kind
from tinker_recovery.recovery import words
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 22


async def _events_of(
    local: LocalTinker, rules: list[FaultRule], **changes: object
) -> list[RecoveryEvent]:
    events: list[RecoveryEvent] = []
    for rule in rules:
        local.inject(rule)
    clock = InstantClock(poll_interval_s=30.0).clock
    async with Supervisor(policy(**changes), on_event=events.append, clock=clock) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL, rank=8)
    return events


def _saved(local: LocalTinker) -> list[str]:
    return [each.path for run in local.runs() for each in local.checkpoints(run)]


async def test_a_backoff_says_which_attempt_comes_when(local: LocalTinker) -> None:
    events = await _events_of(
        local,
        [
            FaultRule("poison", 7, "forward_backward"),
            FaultRule("fail", 5, "load_weights"),
        ],
        backoff_s=5.0,
        max_backoff_s=60.0,
    )
    said = [each.message for each in events if each.name == names.EVENT_WAITING]
    assert said == ["recovery attempt 2 of 3 in 5 s"]


async def test_the_checkpoints_passed_over_are_named_with_the_reason(local: LocalTinker) -> None:
    """Only this request fails: what is saved behind it is there, and nothing to go back to."""
    events: list[RecoveryEvent] = []
    local.inject(FaultRule("fail", 9, "forward_backward"))
    # Its answer is late, or the run may be left before what is saved behind it is there.
    local.inject(FaultRule("slow", 9, "retrieve_future", polled="forward_backward", delay_s=20.0))

    async def answer() -> None:
        await until(lambda: any("step-00000010" in each for each in _saved(local)))
        local.release()

    async with (
        anyio.create_task_group() as group,
        Supervisor(quick(), on_event=events.append) as supervisor,
    ):
        group.start_soon(answer)
        await supervisor.run(
            functools.partial(train, steps=STEPS, depth=3), base_model=MODEL, rank=8
        )
    (selected,) = (each for each in events if each.name == names.EVENT_CHECKPOINT_SELECTED)
    assert selected.message.endswith(
        ", at step 5; passed over 10: saved after step 9, the last that is known to be good"
    )


async def test_an_outage_while_it_is_polled_is_said_once_in_a_while_and_its_end(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one line for each poll: they are frequent then."""

    async def interrupted(attempt: Attempt) -> None:
        await train(attempt, steps=10)
        if attempt.number == 1:
            local.begin_outage()
            await anyio.sleep(1.0)
            local.end_outage()
            await anyio.sleep(0.5)

    monkeypatch.setattr(outage, "REMIND_S", 0.1)
    events: list[RecoveryEvent] = []
    caplog.set_level(logging.WARNING, "tinker_recovery")
    async with Supervisor(quick(poll_interval_s=0.05), on_event=events.append) as supervisor:
        await supervisor.run(interrupted, base_model=MODEL, rank=8)
    failed = [each for each in events if each.name == names.EVENT_POLL_ERROR]
    assert len(failed) == 1
    assert caplog.text.count("reading the status of the run failed") == 1
    assert [each.message for each in events if each.name == names.EVENT_SERVICE_BACK] == [
        "the service is back after 1 s"
    ]


@pytest.mark.parametrize(
    ("by_reason", "said"),
    [
        ({}, ""),
        ({"why": [20]}, "; passed over 20: why"),
        ({"why": [20, 40], "too": ["x"]}, "; passed over 20 and 40: why; passed over x: too"),
        ({"why": [1, 2, 3, 4, 5, 6, 7]}, "; passed over 1, 2, 3, 4 and 3 more: why"),
    ],
)
def test_what_is_passed_over_is_a_short_list(
    by_reason: dict[str, list[int | str]], said: str
) -> None:
    assert words.passed_over(by_reason) == said


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Kind.UNAVAILABLE, "no step for 40 s; the service does not answer; waiting up to 3600 s"),
        (Kind.RATE_LIMITED, "no step for 40 s; the service asks to wait; waiting up to 3600 s"),
        (Kind.UNAUTHORIZED, "no step for 40 s; the credential is refused; waiting up to 3600 s"),
        (None, "no step for 40 s; the service asks to wait; waiting up to 3600 s"),
    ],
)
def test_a_wait_says_for_what_and_for_how_long(kind: Kind | None, said: str) -> None:
    rule = None if kind is None else RULES[kind]
    message = words.waiting(40.2, rule, ValueError("last"), max_s=3600.0)
    assert message == f"{said} (max_wait_s); the last try failed: last"
