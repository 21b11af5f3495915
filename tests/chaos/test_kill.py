"""A short piece of what ``benchmarks/kill.py`` plays at length: real processes, real kills."""

from __future__ import annotations

from pathlib import Path

import pytest
from _kill import STEPS, Plan, play
from _kill_loop import POLICY, START, Fate, train

from tinker_recovery import Supervisor
from tinker_recovery.telemetry import names
from tinker_recovery.testing import LocalTinker


@pytest.mark.timeout(120)
async def test_killed_in_a_recovery_and_in_a_commit_it_ends_with_the_weights_of_no_kill_at_all(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Supervisor(POLICY, journal=None) as supervisor:
        async for attempt in supervisor.attempts(**START):
            async with attempt:
                await train(attempt, STEPS, 0, tmp_path / "log", Fate(None))
    expected = local.run_state(supervisor.runs[0].segments[-1].run_id)
    for name in ("TINKER_BASE_URL", "TINKER_API_KEY", "TINKER_RECOVERY_STATE_DIR"):
        monkeypatch.setenv(name, "")  # set by each play, and put back after it
    plan = Plan(depth=1, poisons=(6,), deaths=(f"event:{names.EVENT_CLIENT_CREATED}:1", "commit:9"))
    outcome = await play(plan, expected)
    assert not outcome.violation, f"{outcome.violation}\nto replay: play({plan!r})"
    assert outcome.kills == 2
