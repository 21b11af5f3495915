"""A healthy run says where it can be looked at, and how it ended, without any set-up of logging."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from loops import MODEL, policy, script, train

from tinker_recovery import Supervisor
from tinker_recovery.journal import default_path, option_for
from tinker_recovery.telemetry import greeting
from tinker_recovery.telemetry.greeting import Greeting, RunEnd
from tinker_recovery.testing import LocalTinker

PROGRAM = """
import asyncio, functools, logging, sys
from loops import MODEL, policy, train
from tinker_recovery import Supervisor

async def main():
    async with Supervisor(policy({policy}), {supervisor}) as supervisor:
        await supervisor.run(functools.partial(train, steps=12), base_model=MODEL, rank=8, {start})

{before}
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _with_our_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the programs that are started find what is imported from tests/."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


async def _said(
    folder: Path, *, before: str = "", supervisor: str = "", given: str = "", start: str = ""
) -> list[str]:
    """What a program of its own writes to stderr."""
    start = start or "name='sft-42'"
    code = PROGRAM.format(before=before, supervisor=supervisor, policy=given, start=start)
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own program
            [sys.executable, script(folder, code)], capture_output=True, text=True, check=True
        )
    )
    return done.stderr.splitlines()


async def test_it_says_where_to_look_and_how_it_ended(local: LocalTinker, tmp_path: Path) -> None:
    local.poison(at_step=7)
    start, fault, recovered, end = await _said(tmp_path)
    assert start == (
        f"supervised as sft-42; journal {default_path()}; look: tinker-recovery watch sft-42 "
        f"--journal {default_path()}"
    ), "the other terminal may not have the variable that names the folder"
    assert "request_failed at step" in fault
    assert "recovered: the loop runs again from step 5" in recovered
    path = local.checkpoints(local.runs()[0])[-1].path
    assert end.startswith("sft-42 finished at step 12: 1 recovery, ")
    assert " steps replayed, " in end
    assert end.endswith(f" s lost in all; last checkpoint {path}")


STOPPED = """
import asyncio, os, signal
from loops import MODEL, policy, train
from tinker_recovery import Supervisor

async def loop(attempt):
    await train(attempt, steps=6)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(30)

async def main():
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, {start})

asyncio.run(main())
"""


@pytest.mark.parametrize("named", [True, False])
async def test_after_ctrl_c_it_says_how_to_go_on_and_the_interrupt_comes_out(
    local: LocalTinker, tmp_path: Path, *, named: bool
) -> None:
    code = STOPPED.format(start="name='sft-42'" if named else "seed=7")
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own program
            [sys.executable, script(tmp_path, code)], capture_output=True, text=True, check=False
        )
    )
    path = local.checkpoints(local.runs()[0])[-1].path
    (end,) = [each for each in done.stderr.splitlines() if " stopped at step 6: " in each]
    hint = "; the same command goes on from it" if named else ""
    assert end.endswith(f"; last checkpoint {path}{hint}")
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("level", ["WARNING", "CRITICAL"])
async def test_a_program_that_has_set_the_level_of_our_log_gets_no_lines_below_it(
    local: LocalTinker, tmp_path: Path, level: str
) -> None:
    local.poison(at_step=7)
    before = f"logging.getLogger('tinker_recovery').setLevel('{level}')"
    said = await _said(tmp_path, before=before)
    assert [line for line in said if "sft-42 finished" in line or "supervised as" in line] == []
    assert bool(said) == (level == "WARNING")


async def test_a_run_without_a_name_is_told_what_that_means(
    local: LocalTinker, tmp_path: Path
) -> None:
    del local
    start, end = await _said(tmp_path, start="seed=7")
    assert "(for this process alone: with a name= the same command would resume it)" in start
    assert ": 0 recoveries; last checkpoint" in end


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"supervisor": "journal=None"}, "supervised as sft-42"),
        ({"given": "enabled=False"}, "observed as sft-42; journal "),
    ],
    ids=str,
)
async def test_it_promises_nothing_that_is_turned_off(
    local: LocalTinker, tmp_path: Path, given: dict[str, str], said: str
) -> None:
    del local
    lines = await _said(tmp_path, **given)
    assert any(each == said or (said[-1] == " " and each.startswith(said)) for each in lines)


def test_the_journal_that_commands_read_anyway_is_not_in_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TINKER_RECOVERY_STATE_DIR")
    assert option_for(default_path()) == ""
    assert option_for(None) == ""


async def test_a_journal_elsewhere_is_in_the_command(local: LocalTinker, tmp_path: Path) -> None:
    del local
    place = tmp_path / "my runs"
    start, _ = await _said(tmp_path, supervisor=f"journal={str(place)!r}")
    assert start.endswith(f"look: tinker-recovery watch sft-42 --journal '{place}'")


@pytest.mark.parametrize(
    "given",
    [
        {"supervisor": "quiet=True"},
        {"given": "quiet=True"},
        {"before": "logging.basicConfig()"},
    ],
    ids=str,
)
async def test_it_is_silent_where_that_is_wanted_or_logging_is_configured(
    local: LocalTinker, tmp_path: Path, given: dict[str, str]
) -> None:
    del local
    assert await _said(tmp_path, **given) == []


async def test_where_logging_is_configured_it_is_logged_once_and_no_handler_is_left(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    del local
    ours = logging.getLogger("tinker_recovery")
    before = list(ours.handlers), ours.level, list(logging.root.handlers)
    with caplog.at_level(logging.INFO, "tinker_recovery"):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=12), base_model=MODEL, rank=8, name="sft-42"
            )
    caplog_level = ours.level
    assert (list(ours.handlers), caplog_level, list(logging.root.handlers)) == before
    said = [each.getMessage() for each in caplog.records]
    assert len([each for each in said if each.startswith("supervised as sft-42")]) == 1
    assert len([each for each in said if each.startswith("sft-42 finished at step 12")]) == 1
    assert capfd.readouterr().err == ""


def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting.logger, "hasHandlers", lambda: False)


def _end(run: str, how: str = "finished") -> RunEnd:
    return RunEnd(run, how, 9, 0, 0, 0.0, None)


def test_many_runs_are_summed_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _unconfigured(monkeypatch)
    greeting_ = Greeting("j", quiet=False)
    for number in range(200):
        greeting_.started(f"run-{number}", named=True)
    for number in range(200):
        greeting_.ended(_end(f"run-{number}", "finished" if number % 100 else "failed"))
        greeting_.ended(_end(f"run-{number}"))  # said again
    greeting_.over()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 + 1 + 5 + 1
    assert lines[5] == "further runs are not announced; look: tinker-recovery watch"
    assert lines[-1] == "200 runs: 198 finished, 2 failed"


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        ("stopped", "; the same command goes on from it"),
        (
            "failed (ValueError)",
            "; once the reason is mended, the same command goes on from it",
        ),
        ("finished", ""),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_an_end_that_is_not_the_last_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    hint: str,
    *,
    named: bool,
) -> None:
    _unconfigured(monkeypatch)
    greeting_ = Greeting("j", quiet=False)
    greeting_.started("sft-42", named=named)
    greeting_.ended(RunEnd("sft-42", how, 9, 0, 0, 0.0, "tinker://run/weights/nine"))
    end = capsys.readouterr().err.splitlines()[-1]
    assert end.endswith(f"last checkpoint tinker://run/weights/nine{hint if named else ''}")


NO_STEP = "; the loop did no step in this process"


@pytest.mark.parametrize("named", [True, False])
async def test_a_loop_that_ends_at_once_says_that_nothing_was_trained_and_how_to_train_on(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, *, named: bool
) -> None:
    del local
    start: Any = {"name": "sft-42"} if named else {}

    async def to(steps: int, **more: Any) -> str:
        caplog.clear()
        async with Supervisor(policy()) as supervisor:
            loop = functools.partial(train, steps=steps)
            await supervisor.run(loop, base_model=MODEL, rank=8, seed=7, **start, **more)
        (end,) = [each.getMessage() for each in caplog.records if " finished at" in each.message]
        return end

    with caplog.at_level(logging.INFO, "tinker_recovery"):
        assert NO_STEP not in await to(6)
        end = await to(4, **({"extend": True} if named else {"start_step": 6}))
    assert " finished at step 6: 0 recoveries; last checkpoint " in end
    hint = "; to train it further, give its loop more steps, and say extend=True" if named else ""
    assert end.endswith(f"{NO_STEP}{hint}")


def test_nothing_a_name_contains_reaches_the_terminal_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _unconfigured(monkeypatch)
    greeting_ = Greeting("j", quiet=False)
    greeting_.started("a\x1b[31m\nb tml-secretsecretsecret1234", named=True)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "secretsecret" not in said
    assert said.count("\n") == 1


def test_a_stderr_that_is_closed_or_missing_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _unconfigured(monkeypatch)
    greeting_ = Greeting("j", quiet=False)
    monkeypatch.setattr(sys, "stderr", None)
    greeting_.started("a", named=True)
    with Path("/dev/null").open("w") as closed:
        pass
    monkeypatch.setattr(sys, "stderr", closed)
    greeting_.ended(_end("a"))


def test_a_notebook_gets_one_line_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _unconfigured(monkeypatch)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    greeting_ = Greeting("j", quiet=False)
    greeting_.started("a", named=True)
    greeting_.ended(_end("a"))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_journal_below_the_home_folder_is_shown_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _unconfigured(monkeypatch)
    monkeypatch.setenv("HOME", "/home/ada")
    Greeting("/home/ada/runs/journal.sqlite3", quiet=False).started("a", named=True)
    Greeting("/home/adam/journal.sqlite3", quiet=False).started("b", named=True)
    first, second = capsys.readouterr().err.splitlines()
    assert "; journal ~/runs/journal.sqlite3; " in first
    assert "; journal /home/adam/journal.sqlite3; " in second


@pytest.mark.parametrize(
    ("lost_s", "said"),
    [(0.0421, "0.0421 s"), (99.96, "100 s"), (1234.5, "1,234 s"), (9e6, "9,000,000 s")],
)
def test_a_long_time_lost_is_said_in_full(lost_s: float, said: str) -> None:
    end = RunEnd("sft-42", "finished", 9, 2, 1, lost_s, None)
    assert f" 1 step replayed, {said} lost in all" in str(end)
