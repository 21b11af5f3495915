"""Ctrl-C on a real training process: it leaves at once, cleanly, at any moment of its life."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from inspection import sessions_of_runs
from loops import STARTED_WITHIN_S, interrupted, most_steps, process, until

from tinker_recovery.cli import main
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import read_runs
from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing.actions import Request

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal.py"


def _is_only_the_interrupt(errors: str) -> bool:
    """One traceback, that of the interrupt, the last line of all; and no task destroyed pending."""
    return (
        errors.rstrip().endswith("KeyboardInterrupt")
        and "never retrieved" not in errors
        and "was destroyed" not in errors
        and "RecoveryLost" not in errors
    )


async def test_ctrl_c_in_the_middle_of_a_step_ends_the_process_as_an_interrupt(
    local: LocalTinker,
) -> None:
    with process([str(EXAMPLE), "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= 3, STARTED_WITHIN_S)
        errors = await interrupted(training)
    assert _is_only_the_interrupt(errors), errors
    assert list(sessions_of_runs(local).values()) == ["interrupted"]
    assert [(run.state, run.detail) for run in read_runs(default_path())] == [
        ("stopped", "stopped by Ctrl-C")
    ]
    for command in ("show", "watch --once"):
        shown = CliRunner().invoke(main, [*command.split(), "minimal"]).stdout
        assert shown.count("stopped by Ctrl-C") == 1, shown
        assert "stopped: " not in shown


@pytest.mark.parametrize("asked", ["load_weights", "create_model"])
async def test_ctrl_c_in_the_middle_of_a_recovery_ends_the_process_as_an_interrupt(
    local: LocalTinker, asked: Request
) -> None:
    """The service never answers the recovery: poisoned after a checkpoint, and before the first."""
    local.inject(FaultRule("poison", 12 if asked == "load_weights" else 2, "optim_step"))
    if asked == "create_model":
        local.inject(FaultRule("fail", request="save_weights", times=99))
    with process([str(EXAMPLE), "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= 1, STARTED_WITHIN_S)
        local.inject(FaultRule("hang", request=asked))
        await until(lambda: any(fault.rule.action == "hang" for fault in local.fired))
        errors = await interrupted(training)
    assert _is_only_the_interrupt(errors), errors
    await until(lambda: "active" not in local.sessions().values())
