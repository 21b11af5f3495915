"""Loops that block on ``.result()``: in a worker thread, and in scripts without asyncio."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from loops import (
    ADAM,
    MODEL,
    SEED,
    batch,
    interrupted,
    policy,
    process,
    script,
    undisturbed_state,
    until,
)

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


def blocking(attempt: Attempt) -> str:
    """The loop as most published ones are written."""
    for step in range(attempt.start_step, STEPS):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        forward.result()
        update.result()
    return f"done in attempt {attempt.number}"


@pytest.mark.parametrize(
    "rule",
    [
        FaultRule("poison", 7, "optim_step"),
        FaultRule("hang", 7, "optim_step"),
        FaultRule("poison", 7, quiet=True),
    ],
    ids=["fails", "hangs", "only-the-status-tells"],
)
async def test_a_plain_function_is_recovered_wherever_it_blocks(
    local: LocalTinker, rule: FaultRule
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(rule)
    # Where a call tells as well, a poll could be the first to hear it.
    poll_interval_s = 0.05 if rule.quiet else 60.0
    watched = policy(stall_after_s=1.0, poll_interval_s=poll_interval_s)
    async with Supervisor(watched) as supervisor:
        result = await supervisor.run(blocking, base_model=MODEL, rank=8, seed=SEED)
    (run,) = supervisor.runs
    assert result == "done in attempt 2"
    # What was saved since the last good poll is not trusted where only a poll tells.
    starts = [attempt.start_step for attempt in run.attempts]
    assert starts == [0, 5] or (rule.quiet and starts == [0, 0])
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attempts", r"supervisor\.run\(train, name=\.\.\., base_model=\.\.\.\) with def train"),
        ("group", r"supervisor\.run\(train, "),
        ("events", r"async with Supervisor\(\).*on_event="),
        ("watch", r"async with Supervisor\(\)"),
        ("run_cookbook", r"async with Supervisor\(\)"),
        ("runs", r"supervisor\.supervisor\.runs"),
        ("stop", r"supervisor\.supervisor\.stop"),
        ("nothing", r"has no attribute 'nothing'$"),
    ],
)
async def test_what_only_asyncio_has_says_what_to_use_after_with(
    local: LocalTinker, name: str, said: str
) -> None:
    del local

    def use() -> None:
        with Supervisor(policy()) as supervisor:
            assert not hasattr(supervisor, "__deepcopy__")
            with pytest.raises(AttributeError, match=said):
                getattr(supervisor, name)

    await anyio.to_thread.run_sync(use)


async def test_a_plain_function_runs_beside_the_event_loop_not_in_it(local: LocalTinker) -> None:
    where: list[threading.Thread] = []

    def train(attempt: Attempt) -> None:
        where.append(threading.current_thread())
        attempt.client.forward_backward(batch(0), "cross_entropy").result()

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(train, base_model=MODEL)
    assert where[0] is not threading.current_thread()
    assert "active" not in local.sessions().values()


async def test_cancelling_a_blocked_loop_ends_it_and_passes_through(local: LocalTinker) -> None:
    local.inject(FaultRule("hang", 3, "optim_step"))
    ended: list[BaseException] = []

    def train(attempt: Attempt) -> None:
        try:
            blocking(attempt)
        except BaseException as error:
            ended.append(error)
            raise

    with anyio.move_on_after(1.0) as scope:
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(train, base_model=MODEL)
    assert scope.cancelled_caught
    assert len(ended) == 1


async def test_an_exception_of_a_plain_functions_own_leaves_unchanged(local: LocalTinker) -> None:  # noqa: ARG001 - its environment
    mine = KeyError("mine")

    def train(attempt: Attempt) -> None:
        attempt.client.forward_backward(batch(0), "cross_entropy").result()
        raise mine

    with pytest.raises(KeyError) as caught:
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(train, base_model=MODEL)
    assert caught.value is mine


def _code(train: str) -> str:
    return f"""
import logging, sys
logging.basicConfig()
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from loops import ADAM, MODEL, SEED, batch, policy
from tinker_recovery import CheckpointPolicy, Supervisor

def train(attempt):
{train}

with Supervisor(policy(stall_after_s=0.5)) as supervisor:
    print(supervisor.run(train, base_model=MODEL, rank=8, seed=SEED))
    (run,) = supervisor.supervisor.runs
    print([attempt.start_step for attempt in run.attempts], run.segments[-1].run_id)
"""


_LOOP = f"""
    for step in range(attempt.start_step, {STEPS}):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        attempt.client.optim_step(ADAM).result()
        forward.result()
    return "finished"
"""


async def test_a_script_without_asyncio_is_recovered(local: LocalTinker, tmp_path: Path) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("hang", 7, "optim_step"))
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own script
            [sys.executable, script(tmp_path, _code(_LOOP))],
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
            env=dict(os.environ),
        )
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "finished"
    starts, run_id = said[1].rsplit(" ", 1)
    assert starts == "[0, 5]"
    assert local.run_state(run_id) == expected


@pytest.mark.parametrize("where", ["in-a-result", "in-its-own-code"])
async def test_ctrl_c_ends_a_script_without_asyncio(
    local: LocalTinker, tmp_path: Path, where: str
) -> None:
    loop = _LOOP
    if where == "in-a-result":
        local.inject(FaultRule("hang", 3, "optim_step", times=9))
    else:
        loop = "\n    import time\n    while True: time.sleep(0.01)\n"
    # A service that hangs would be waited for to save the last step, for 30 s and not for ever.
    code = _code(loop).replace(
        "stall_after_s=0.5",
        "stall_after_s='off', checkpoints=CheckpointPolicy(save_on_stop_s=0.3)",
    )
    with process([script(tmp_path, code)]) as running:
        await until(lambda: bool(local.runs()))
        if where == "in-a-result":
            await until(lambda: bool(local.fired))
        await anyio.sleep(0.3)
        errors = await interrupted(running)
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    await until(lambda: "active" not in local.sessions().values())
