"""Notifications from end to end: a server that is killed, a process that loses its run."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from inspection import open_claims
from loops import MODEL, STARTED_WITHIN_S, loop, most_steps, process, quick, until
from machines import command_on, ended
from webhook import SECRET, Hook

from tinker_recovery import Attempt, Notify, Supervisor
from tinker_recovery.recovery.admission import MASS_RUNS
from tinker_recovery.testing import LocalTinkerProcess

STEPS = RESTS_AT = 6


@pytest.mark.timeout(120)
async def test_a_server_that_is_killed_under_many_runs_is_told_once_and_so_is_its_end(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, killed = anyio.Event(), anyio.Event()
    there = 0

    async def train(attempt: Attempt) -> None:
        nonlocal there
        start = attempt.start_step
        if attempt.number == 1:
            start = STEPS // 2
            await loop(attempt.client, 0, start, 0)
            there += 1
            if there == MASS_RUNS:
                half.set()
            await killed.wait()
        await loop(attempt.client, start, STEPS, 0)

    async with LocalTinkerProcess(tmp_path / "server") as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        notify = Notify(hook.apprise_url, every_s=0.0)
        async with (
            Supervisor(quick(), notify=notify) as supervisor,
            anyio.create_task_group() as group,
        ):
            for number in range(MASS_RUNS):
                run = functools.partial(supervisor.run, train, base_model=MODEL, rank=8)
                group.start_soon(functools.partial(run, name=f"seed{number:03}"))
            await half.wait()
            await server.restart()
            killed.set()
        assert [len(each.recoveries) for each in supervisor.runs] == [1] * MASS_RUNS
    assert [each["title"].rpartition(": ")[2] for each in hook.sent] == [
        "many runs fail",
        "many runs have recovered",
    ]
    begun, over = (each["message"] for each in hook.sent)
    assert f"{MASS_RUNS} of {MASS_RUNS} runs failed alike" in begun
    assert f"{MASS_RUNS} of the {MASS_RUNS} runs that failed alike" in over
    assert [each["type"] for each in hook.sent] == ["failure", "info"]
    assert set(hook.paths) == {f"/{SECRET}"}


@pytest.mark.timeout(120)
async def test_a_process_whose_run_was_taken_over_says_so_once_and_shows_no_address(
    serving: Callable[..., Any], hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_NOTIFY", hook.apprise_url)
    ahead = [0.0]
    async with serving(
        clock=lambda: time.monotonic() + ahead[0], heartbeat_limit_s=30.0, created_jitter_s=100.0
    ) as local:
        with process(command_on("alpha", tmp_path, steps=str(2 * STEPS))) as alpha:
            await until(lambda: most_steps(local) >= RESTS_AT, STARTED_WITHIN_S)
            alpha.send_signal(signal.SIGSTOP)
            ahead[0] += 31.0
            assert open_claims(local) == []
            (tmp_path / "go-beta").touch()
            with process(command_on("beta", tmp_path, steps=str(2 * STEPS))) as beta:
                said = await ended(beta)
                assert beta.returncode == 0, said
            assert hook.sent == [], "who takes a run over has lost nothing"
            (tmp_path / "go-alpha").touch()
            alpha.send_signal(signal.SIGCONT)
            said += await ended(alpha)
    (sent,) = hook.sent
    assert sent["title"].endswith(": run sft-42: lease lost")
    assert sent["type"] == "failure"
    # Of the claim that has ended and the run taken over, either may be noticed first.
    assert "run sft-42: " in sent["message"]
    assert SECRET not in said
