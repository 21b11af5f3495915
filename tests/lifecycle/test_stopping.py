"""A training process that is told to stop saves its last step first, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import anyio.to_thread
import pytest
from inspection import sessions_of_runs
from loops import STARTED_WITHIN_S, most_steps, process, until
from sweeps import pairs

from tinker_recovery.testing import FaultRule, LocalTinker

EXAMPLES = Path(__file__).parents[2] / "examples"


async def _stop(
    running: subprocess.Popen[str], number: signal.Signals, limit_s: float = 15
) -> tuple[int, str]:
    running.send_signal(number)
    _, errors = await anyio.to_thread.run_sync(lambda: running.communicate(timeout=limit_s))
    return running.returncode, errors


@pytest.mark.parametrize(
    ("ended", "example"),
    pairs(
        [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)],
        ["minimal", "pipelined", "blocking"],
        4,
    ),
)
async def test_the_last_step_submitted_is_saved_before_the_process_ends(
    local: LocalTinker, ended: tuple[signal.Signals, int], example: str
) -> None:
    number, status = ended
    file = str(EXAMPLES / f"{example}.py")
    with process([file, "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= 3, STARTED_WITHIN_S)
        code, errors = await _stop(training, number)
    assert code == status, errors
    assert "never retrieved" not in errors
    (run,) = local.runs()
    assert local.checkpoints(run)[-1].steps == local.run_state(run).steps
    assert list(sessions_of_runs(local).values()) == ["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_does_not_wait_for_a_save_that_hangs(
    local: LocalTinker, number: signal.Signals
) -> None:
    with process([str(EXAMPLES / "minimal.py"), "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= 3, STARTED_WITHIN_S)
        local.inject(FaultRule("hang", request="save_weights"))  # not the one at the start
        training.send_signal(number)
        await until(lambda: any(fault.rule.action == "hang" for fault in local.fired))
        code, errors = await _stop(training, number)
    assert code == -number, errors
    for session, state in local.sessions().items():
        if state == "active":  # SIGTERM twice: nothing more was done, as asked
            local.fail_session(session)
