"""One session held open for the next recovery, if the policy asks for it."""

from __future__ import annotations

import functools
import logging

import pytest
from inspection import open_standby, set_standby_after_s
from loops import MODEL, SEED, policy, train, undisturbed_state, until

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 8


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    set_standby_after_s(monkeypatch, 0.01)


def _standby(local: LocalTinker, attempt: Attempt) -> str | None:
    """The session that is open beside the attempt's own."""
    own = attempt.client.model_id.partition(":train:")[0]
    others = [key for key, state in local.sessions().items() if state == "active" and key != own]
    return others[0] if others else None


async def _train_beside_a_standby(local: LocalTinker, attempt: Attempt, seen: list[str]) -> None:
    await until(lambda: _standby(local, attempt) is not None)
    seen.append(_standby(local, attempt) or "")
    await train(attempt, steps=STEPS)


async def test_a_recovery_goes_on_in_the_session_on_standby_and_another_is_opened(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=6)
    seen: list[str] = []
    async with Supervisor(policy(standby="session")) as supervisor:
        await supervisor.run(
            functools.partial(_train_beside_a_standby, local, seen=seen),
            base_model=MODEL,
            rank=8,
            seed=SEED,
        )
    (run,) = supervisor.runs
    assert run.segments[-1].run_id == f"{seen[0]}:train:0"
    assert seen[1] != seen[0]
    assert local.run_state(run.segments[-1].run_id) == expected
    # The fixture sees to it that none is left open, the second on standby neither.


async def test_one_that_the_service_has_forgotten_costs_no_attempt(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=6)

    async def losing_it(attempt: Attempt) -> None:
        if attempt.number == 1:
            await until(lambda: _standby(local, attempt) is not None)
            local.fail_session(_standby(local, attempt) or "")
        await train(attempt, steps=STEPS)

    async with Supervisor(policy(standby="session", max_attempts=1)) as supervisor:
        await supervisor.run(losing_it, base_model=MODEL, rank=8, seed=SEED)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_one_that_could_not_be_opened_is_done_without(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_standby_after_s(monkeypatch, 3600)
    local.poison(at_step=6)

    async def without(attempt: Attempt) -> None:
        if attempt.number == 1:
            local.inject(FaultRule("status", request="create_session", status=403))
            open_standby(supervisor)
            await until(lambda: any(one.rule.action == "status" for one in local.fired))
        await train(attempt, steps=STEPS)

    async with Supervisor(policy(standby="session")) as supervisor:
        await supervisor.run(without, base_model=MODEL)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]


@pytest.mark.parametrize("asked", [{}, {"standby": "session", "enabled": False}])
async def test_where_it_is_not_asked_for_or_nothing_is_recovered_there_is_none(
    local: LocalTinker, asked: dict[str, bool]
) -> None:
    async with Supervisor(policy(**asked)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    assert len(local.sessions()) == 1


async def test_one_that_is_in_the_way_of_a_limit_on_sessions_makes_room_with_a_word(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    """The second run would begin without supervision, so it begins with it."""

    async def first(attempt: Attempt) -> None:
        await until(lambda: _standby(local, attempt) is not None)
        limit = "concurrent training clients limit hit"
        rule = FaultRule("status", request="create_model", status=400, message=limit, times=1)
        local.inject(rule)
        await supervisor.run(functools.partial(train, steps=2), base_model=MODEL)
        await train(attempt, steps=STEPS)

    with caplog.at_level(logging.WARNING):
        async with Supervisor(policy(standby="session")) as supervisor:
            await supervisor.run(first, base_model=MODEL)
    assert [run.recoveries for run in supervisor.runs] == [[], []]
    said = [each for each in caplog.messages if "none is kept on standby" in each]
    assert len(said) == 1
