"""The last line and the report agree on the time lost: one definition, with the silence before."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from inspection import in_an_outage
from loops import STARTED_WITHIN_S, loop, most_steps, policy, process, train, until
from named_runs import NAMED

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import RunView, read_run
from tinker_recovery.report import figures_of, render
from tinker_recovery.report.figures import ReportFigures
from tinker_recovery.testing import FaultRule, LocalTinker

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = re.compile(r" ([\d.]+) s lost in all")


def _stands(name: str = "sft-42") -> tuple[RunView, ReportFigures]:
    view = read_run(default_path(), name)
    assert view is not None
    return view, figures_of(view)


def _said(text: str) -> float:
    (lost_s,) = SAID.findall(text)
    return float(lost_s)


async def test_the_silence_before_a_fault_is_lost_and_trained_nothing(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    local.inject(FaultRule("hang", 7, "optim_step"))
    with caplog.at_level(logging.INFO):
        async with Supervisor(policy(stall_after_s=2.0)) as supervisor:
            await supervisor.run(functools.partial(train, steps=12), **NAMED)
    view, figures = _stands()
    assert [each.kind for each in view.incidents] == ["silence"]
    assert figures.time_spent_s["no_step"] == pytest.approx(2.0, abs=0.7)
    recovering_s = sum(figures.handover_s)
    assert figures.lost_s == pytest.approx(
        figures.time_spent_s["no_step"] + recovering_s + figures.replaying_s, abs=0.1
    )
    assert _said(caplog.text) == pytest.approx(figures.lost_s, abs=0.4)
    assert figures.goodput is not None
    assert figures.goodput * figures.elapsed_s == pytest.approx(figures.time_spent_s["kept"])
    assert "no progress for 2" in render(view, (), now=view.updated)


async def test_an_outage_that_a_loop_sits_out_is_lost(local: LocalTinker) -> None:
    async def sitting(attempt: Attempt) -> None:
        await train(attempt, steps=6)
        local.begin_outage()
        going = asyncio.ensure_future(loop(attempt.client, 6, 12, 0))
        await until(lambda: in_an_outage(attempt))
        await anyio.sleep(2.0)
        local.end_outage()
        await going

    async with Supervisor(policy(on_outage="warn", poll_interval_s=0.3)) as supervisor:
        await supervisor.run(sitting, **NAMED)
    view, figures = _stands()
    assert view.incidents == ()
    assert figures.time_spent_s["no_step"] >= 1.9
    assert figures.lost_s == pytest.approx(figures.time_spent_s["no_step"], abs=0.01)


async def test_the_time_without_a_process_is_lost_where_it_was_killed(local: LocalTinker) -> None:
    file = str(EXAMPLES / "minimal.py")
    with process([file, "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= 3, STARTED_WITHIN_S)
        training.kill()
        await anyio.to_thread.run_sync(training.communicate)
    left = [session for session, state in local.sessions().items() if state == "active"]
    await anyio.sleep(2.0)
    with process([file, "--steps", str(most_steps(local) + 3)]) as training:
        _, said = await anyio.to_thread.run_sync(lambda: training.communicate(timeout=60))
    assert training.returncode == 0, said
    for session in left:
        local.fail_session(session)  # its claim, which times out by itself
    name = re.findall(r"supervised as (\S+);", said)[0]
    view, figures = _stands(name)
    assert [each.kind for each in view.incidents] == ["process_lost"]
    assert figures.time_spent_s["no_process"] >= 2.0
    assert figures.lost_s >= 2.0
    assert _said(said) == pytest.approx(figures.lost_s, abs=0.7)


async def test_the_time_between_a_stop_and_the_same_command_is_not_lost(
    local: LocalTinker,
) -> None:
    del local

    async def stopping(attempt: Attempt) -> None:
        await train(attempt, steps=10)
        first.stop()
        await anyio.sleep_forever()

    first = Supervisor(policy())
    with pytest.raises(asyncio.CancelledError):
        async with first:
            await first.run(stopping, **NAMED)
    await anyio.sleep(1.0)
    async with Supervisor(policy()) as second:
        await second.run(functools.partial(train, steps=14), **NAMED)
    view, figures = _stands()
    assert view.incidents == ()
    assert figures.lost_s < 0.5
