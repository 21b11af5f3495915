"""Checkpoints that have come to the end of their lifetime (``ttl_s``) while no process trained."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import loop, quick, train
from named_runs import NAMED, Killed

from tinker_recovery import Attempt, CheckpointPolicy, Clock, NoUsableCheckpoint, Supervisor
from tinker_recovery.errors import folded

SAVING = CheckpointPolicy(save_every=2, keep_last=60, ttl_s=3600, save_on_stop_s=None)


@pytest.mark.parametrize("ours_is_ahead_s", [0.0, -7200.0])
@pytest.mark.parametrize("own_save", [False, True], ids=["nothing-left", "one-of-the-users-left"])
async def test_what_has_ended_is_no_trouble_of_the_services_and_what_is_left_is_used(
    serving: Callable[..., Any], *, own_save: bool, ours_is_ahead_s: float
) -> None:
    wall = [time.time()]
    clock = Clock(wall=lambda: wall[0] + ours_is_ahead_s)

    async def dying(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        if own_save:
            await attempt.client.save_state("mine")
        await loop(attempt.client, 3, 12, 0)
        raise Killed

    async with serving(wall=lambda: wall[0]):
        with pytest.raises(Killed):
            async with Supervisor(quick(checkpoints=SAVING), clock=clock) as supervisor:
                await supervisor.run(dying, **NAMED)
        wall[0] += 4000.0
        with anyio.fail_after(20):
            async with Supervisor(quick(checkpoints=SAVING), clock=clock) as supervisor:
                if own_save:
                    await supervisor.run(functools.partial(train, steps=14), **NAMED)
                    assert supervisor.runs[0].attempts[0].start_step == 3
                    return
                with pytest.raises(
                    NoUsableCheckpoint, match=r"its lifetime \(ttl_s\) ended"
                ) as caught:
                    await supervisor.run(functools.partial(train, steps=14), **NAMED)
    said = str(caught.value)
    assert len(said) < 700
    assert "(6 times alike)" in said
    assert "`tinker-recovery abandon sft-42` frees the name" in said


async def test_a_listing_that_is_empty_too_early_is_still_the_services_trouble(
    serving: Callable[..., Any],
) -> None:
    wall = [time.time()]
    clock = Clock(wall=lambda: wall[0])

    async def dying(attempt: Attempt) -> None:
        await train(attempt, steps=6)
        raise Killed

    async with serving(wall=lambda: wall[0]) as local:
        with pytest.raises(Killed):
            async with Supervisor(quick(checkpoints=SAVING), clock=clock) as supervisor:
                await supervisor.run(dying, **NAMED)
        wall[0] += 1800.0
        (run_id,) = local.runs()
        local.delete_run(run_id)
        impatient = quick(checkpoints=SAVING, max_wait_s=0.1)
        with pytest.raises(Exception, match="lists no checkpoint of Tinker run"):
            async with Supervisor(impatient, clock=clock) as supervisor:
                await supervisor.run(functools.partial(train, steps=14), **NAMED)


def test_what_repeats_is_counted_and_not_said_again() -> None:
    assert folded(["down", "slow after 1 s", "down", "slow after 2.5 s", "odd"]) == (
        "down (2 times); slow after 1 s (2 times alike); odd"
    )
    assert folded([]) == ""


@given(st.lists(st.sampled_from(["a", "b 1", "b 22", "c"]), max_size=60))
def test_folding_loses_no_kind_of_sentence_and_never_grows_with_repetition(said: list[str]) -> None:
    text = folded(said)
    assert all(kind in text for kind in {each[0] for each in said})
    assert len(text.split("; ")) == len({each[0] for each in said}) or not said
