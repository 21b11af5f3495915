"""Processes with journals and machine ids of their own, at a service that is not kind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspection import open_claims
from loops import STARTED_WITHIN_S, process, undisturbed_state, until
from machines import command_on, ended

from tinker_recovery.testing import LocalTinker

STEPS = 14
RESTS_AT = 6


def _on(machine: str, folder: Path, **changes: str) -> list[str]:
    return command_on(machine, folder, **{"steps": str(STEPS), **changes})


@pytest.mark.timeout(180)
async def test_of_two_machines_that_start_at_once_one_trains_and_the_other_learns_its_host(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    async with serving(listing_delay_s=0.4, created_jitter_s=1000.0) as local:
        expected = await undisturbed_state(local, steps=STEPS)
        before = set(local.runs())
        refuse = {"on-lease": "refuse"}
        with (
            process(_on("alpha", tmp_path, **refuse)) as alpha,
            process(_on("beta", tmp_path, **refuse)) as beta,
        ):
            both = {"alpha": alpha, "beta": beta}
            await until(lambda: any(each.poll() is not None for each in both.values()), 120.0)
            (loser,) = [name for name, each in both.items() if each.poll() is not None]
            (winner,) = both.keys() - {loser}
            errors = await ended(both[loser])
            assert "RunHeld" in errors
            assert f"on {winner}" in errors
            (tmp_path / f"go-{winner}").touch()
            said = await ended(both[winner])
            assert f"sft-42 finished at step {STEPS}: 0 recoveries; last" in said
            assert len(said.splitlines()) == 2, "its start and its end, and no warning"
        (run,) = set(local.runs()) - before
        assert local.run_state(run) == expected


@pytest.mark.timeout(180)
async def test_a_machine_that_was_paused_past_the_limit_leaves_and_its_steps_count_nowhere(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    ahead = [0.0]
    async with serving(
        clock=lambda: time.monotonic() + ahead[0], heartbeat_limit_s=30.0, created_jitter_s=100.0
    ) as local:
        expected = await undisturbed_state(local, steps=STEPS)
        before = set(local.runs())
        with process(_on("alpha", tmp_path)) as alpha:
            await until(lambda: _steps_beside(local, before) >= RESTS_AT, STARTED_WITHIN_S)
            (paused,) = set(local.runs()) - before
            await until(lambda: len(local.checkpoints(paused)) == RESTS_AT // 2)
            alpha.send_signal(signal.SIGSTOP)
            ahead[0] += 31.0
            assert open_claims(local) == []
            (tmp_path / "go-beta").touch()
            with process(_on("beta", tmp_path)) as beta:
                assert "Traceback" not in await ended(beta)
                assert beta.returncode == 0
            (tmp_path / "go-alpha").touch()
            saved = local.checkpoints(paused)
            alpha.send_signal(signal.SIGCONT)
            errors = await ended(alpha)
        assert "LeaseLost" in errors
        assert alpha.returncode == 1
        assert local.run_state(paused).steps == RESTS_AT
        assert local.checkpoints(paused) == saved
        (second,) = set(local.runs()) - before - {paused}
        assert local.run_state(second) == expected


def _steps_beside(local: LocalTinker, before: set[str]) -> int:
    return max((local.run_state(run).steps for run in set(local.runs()) - before), default=0)
