"""A service that refuses our saves: the loop is worth no less than a bare one, which saves none."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
import tinker
from inspection import run_id_of
from loops import MODEL, SEED, batch, quick, train, undisturbed_state, until
from sweeps import sweep
from tinker.types import RequestErrorCategory

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryEvent, Supervisor
from tinker_recovery.faults import Kind
from tinker_recovery.service.refusals import in_words, refuses_save
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 14
SILENT_S = 2.0
REFUSALS = [400, 403, 404, 405, 413, 422]


def _status_error(status: int, body: object, text: str = "") -> tinker.APIStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/save")
    response = httpx.Response(status, request=request, text=text)
    return tinker.APIStatusError("", response=response, body=body)


async def a_run(
    local: LocalTinker, *, at_start: bool = True, depth: int = 0
) -> tuple[list[Kind], list[str], list[int]]:
    """What a run of 14 steps recovers from, says of its saves, and has stored at its end."""
    events: list[RecoveryEvent] = []
    policy = quick(
        checkpoints=CheckpointPolicy(save_every=5, save_at_start=at_start),
        canary=tuple(batch(3)) if depth else None,
    )
    async with Supervisor(policy, service=local.service, journal=None, on_event=events.append) as s:
        loop = functools.partial(train, steps=STEPS, depth=depth)
        await s.run(loop, base_model=MODEL, rank=8, seed=SEED)
        (run,) = s.runs
        kinds = [each.fault.kind for each in run.recoveries]
        run_id = run.segments[-1].run_id
    assert local.run_state(run_id) == await undisturbed_state(local, steps=STEPS)
    said = [e.message for e in events if e.name == names.EVENT_CHECKPOINT_SAVE_FAILED]
    return kinds, said, sorted(each.steps for each in local.checkpoints(run_id))


@pytest.mark.parametrize(
    ("status", "at_start", "depth"), sweep(itertools.product(REFUSALS, [True, False], [0, 2]), 10)
)
async def test_a_loop_ends_well_where_every_save_is_refused(
    local: LocalTinker, status: int, *, at_start: bool, depth: int
) -> None:
    local.inject(FaultRule("status", request="save_weights", status=status, for_s=1e6))
    kinds, said, stored = await a_run(local, at_start=at_start, depth=depth)
    assert stored == []
    assert local.stats.by_route["save_weights"] == 2, "each costs a client, so it asks no more"
    # The first save is one ahead of the loop; later, two may be refused behind each other.
    assert len(kinds) in ({0} if at_start else {1, 2})
    assert f"HTTP {status}: injected" in said[-1]
    assert "so none is asked for any more" in said[-1]


@pytest.mark.parametrize(("step", "lost"), [(0, "1 to 14"), (10, "6 to 14"), (14, "11 to 14")])
async def test_steps_that_are_in_no_checkpoint_at_the_end_are_named(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, step: int, lost: str
) -> None:
    """The run ends well, as the loop has; its weights are gone all the same."""
    times = FaultRule("status", step, request="save_weights", status=403, for_s=1e6)
    local.inject(times if step else replace(times, at_step=None))
    await a_run(local)
    (said,) = [line for line in caplog.messages if "in no checkpoint" in line]
    assert f"its steps {lost} are in no checkpoint" in said


async def test_nothing_of_that_is_said_where_the_last_save_is_stored(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    local.inject(FaultRule("status", 10, request="save_weights", status=403))
    await a_run(local)
    assert "in no checkpoint" not in caplog.text


@pytest.mark.parametrize("step", [0, 5, 10, 14])
@pytest.mark.parametrize("status", [403, 422])
async def test_one_refused_save_costs_what_was_trained_since_the_one_before(
    local: LocalTinker, status: int, step: int
) -> None:
    local.inject(FaultRule("status", step, request="save_weights", status=status))
    kinds, said, stored = await a_run(local)
    assert kinds == ([] if step in {0, STEPS} else [Kind.SAVE_REFUSED])
    assert {*stored, 0} >= {0, 5, 10, 14} - {step} - set(range(1, step))
    assert all("any more" not in each for each in said)


async def test_a_save_stored_in_between_makes_a_refusal_the_first_again(local: LocalTinker) -> None:
    for step in (5, 10):
        local.inject(FaultRule("status", step, request="save_weights", status=403))
    kinds, said, stored = await a_run(local)
    assert kinds == [Kind.SAVE_REFUSED, Kind.SAVE_REFUSED]
    assert len(said) == 2
    assert stored == [10, 14]


async def test_a_save_refused_before_the_loop_that_nobody_waited_for_costs_no_more_than_later(
    local: LocalTinker,
) -> None:
    """The service is known to keep metadata, so the loop begins while the save is under way."""
    events: list[RecoveryEvent] = []
    policy = quick(
        checkpoints=CheckpointPolicy(save_every=5, save_at_start=True), stall_after_s=SILENT_S
    )
    given: Any = {"base_model": MODEL, "rank": 8, "seed": SEED}
    async with Supervisor(policy, service=local.service, on_event=events.append) as supervisor:
        await supervisor.run(functools.partial(train, steps=1), name="first", **given)
        local.inject(FaultRule("status", request="save_weights", status=403, times=1))
        with anyio.fail_after(10 * SILENT_S):
            async for attempt in supervisor.attempts(name="second", **given):
                if attempt.number == 1:
                    await until(
                        lambda: any(e.name == names.EVENT_CHECKPOINT_SAVE_FAILED for e in events)
                    )
                async with attempt:
                    await train(attempt, steps=STEPS)
        run = supervisor.runs[-1]
        assert [each.fault.kind for each in run.recoveries] == [Kind.SAVE_REFUSED]
        run_id = run.segments[-1].run_id
    assert local.run_state(run_id) == await undisturbed_state(local, steps=STEPS)


@pytest.mark.parametrize("at_start", [True, False])
async def test_the_run_ends_with_the_refusal_if_the_policy_says_to_stop(
    local: LocalTinker, *, at_start: bool
) -> None:
    local.inject(FaultRule("status", request="save_weights", status=403, for_s=1e6))
    policy = quick(
        checkpoints=CheckpointPolicy(
            save_every=5, save_at_start=at_start, on_save_failure="stop", save_on_stop_s=None
        )
    )
    async with Supervisor(policy, service=local.service, journal=None) as supervisor:
        loop = functools.partial(train, steps=STEPS)
        with pytest.raises(tinker.PermissionDeniedError, match="injected"):
            await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)
    assert local.stats.by_route["save_weights"] == 2


async def test_the_users_own_refused_save_is_their_own_error(local: LocalTinker) -> None:
    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        await attempt.client.save_state("mine")

    local.inject(FaultRule("status", 3, request="save_weights", status=403))
    policy = quick(checkpoints=CheckpointPolicy(save_every=50, save_at_start=True))
    async with Supervisor(policy, service=local.service, journal=None) as supervisor:
        with pytest.raises(tinker.PermissionDeniedError):
            await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_corrupted_run_that_refuses_its_last_save_does_not_end_well(
    local: LocalTinker, status: int
) -> None:
    """Its weights were right until then, as far as anybody knows; what it answers since is not."""

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=STEPS)
        if attempt.number == 1:
            local.corrupt([run_id_of(attempt)])
            local.inject(FaultRule("status", STEPS, request="save_weights", status=status))

    policy = quick(checkpoints=CheckpointPolicy(save_every=5, save_at_start=True))
    async with Supervisor(policy, service=local.service, journal=None) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)
        (run,) = supervisor.runs
        assert [each.fault.kind for each in run.recoveries] == [Kind.CORRUPTED]
        run_id = run.segments[-1].run_id
    assert local.run_state(run_id) == await undisturbed_state(local, steps=STEPS)


@pytest.mark.parametrize("status", range(400, 600))
def test_what_any_request_may_be_answered_is_no_refusal_of_a_save(status: int) -> None:
    error = _status_error(status, None)
    passing = {401, 402, 408, 409, 410, 429, *range(500, 600)}
    assert refuses_save(error) == (status not in passing)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_status_error(403, {"detail": "no\nroom"}), "HTTP 403: no room"),
        (_status_error(500, None, text="<html>\n  busy\n</html>"), "HTTP 500: <html> busy </html>"),
        (_status_error(404, {}), "HTTP 404"),
        (
            tinker.RequestFailedError(
                "Request failed: full for self.request_id='a' and expected type self.model_cls=b",
                request_id="a",
                category=RequestErrorCategory.Server,
            ),
            "the service answers that it failed: full",
        ),
        (TimeoutError(), "TimeoutError"),
        (ValueError("mine"), "mine"),
    ],
)
def test_what_the_service_answers_is_one_line_without_the_sdks_own_code(
    error: Exception, said: str
) -> None:
    assert in_words(error) == said
