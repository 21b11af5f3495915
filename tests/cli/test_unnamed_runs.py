"""``tinker-recovery run`` restarts a script whose run has no name: it is resumed all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest
from loops import MODEL, script, undisturbed_state

from tinker_recovery.cli.run import name_for
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.journal.summary import read_summaries
from tinker_recovery.run import unnamed
from tinker_recovery.run.options import StartOptions, plan_start
from tinker_recovery.run.unnamed import VARIABLE, named
from tinker_recovery.testing import LocalTinker

TRAIN = """
import asyncio, os, pathlib, signal, sys
from loops import MODEL, SEED, policy, train
from tinker_recovery import Supervisor

lives = pathlib.Path(sys.argv[1])
lives.write_text(lives.read_text() + "x" if lives.exists() else "x")

async def loop(attempt):
    if lives.read_text() == "x":
        await train(attempt, steps=12)
        os.kill(os.getpid(), signal.SIGKILL)
    await train(attempt, steps=22)

async def main():
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _with_our_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the programs that are started find what is imported from tests/."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


async def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    lives = str(folder / "lives")
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "tinker_recovery.cli", "run", "--", *command, lives],
            capture_output=True,
            text=True,
            check=False,
        )
    )


async def test_a_restart_goes_on_with_it(local: LocalTinker, tmp_path: Path) -> None:
    expected = await undisturbed_state(local, steps=22)
    done = await _run(tmp_path, sys.executable, script(tmp_path, TRAIN))
    assert done.returncode == 0, done.stderr
    (summary,) = read_summaries(default_path())
    assert summary.run.name.startswith("script-")
    view = read_run(default_path(), summary.run.name)
    assert view is not None
    assert [each.start_step for each in view.attempts] == [0, 10]
    assert local.run_state(view.attempts[-1].run_id) == expected


async def test_below_another_process_it_says_that_it_needs_a_name(
    local: LocalTinker, tmp_path: Path
) -> None:
    program = script(tmp_path, TRAIN)
    line = f"{sys.executable} {program} $0; exit $?"
    done = await _run(tmp_path, "sh", "-c", line)
    assert done.returncode == 0, done.stderr
    assert "it has no name=, and its process is not the one that" in done.stderr
    runs = read_summaries(default_path())
    assert [each.attempts for each in runs] == [1, 1]
    for session, state in local.sessions().items():
        if state == "active":  # of the process that was killed, which nothing resumes
            local.fail_session(session)


def _name(**start: object) -> str | None:
    given: StartOptions = {"base_model": MODEL, **start}  # type: ignore[typeddict-item]  # as the test says
    return named(plan_start(given, restore_optimizer=True), resumes=True)[0].name


def test_each_run_of_a_script_has_its_own_by_how_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def once() -> list[str | None]:
        unnamed._begun.clear()
        return [_name(), _name(), _name(rank=4), _name(seed=1), _name(seed=2), _name(name="mine")]

    assert once()[:5] == [None] * 5
    monkeypatch.setenv(VARIABLE, f"{os.getppid()}:train-abc")
    first, again = once(), once()
    assert first == again
    assert len(set(first)) == 6
    assert first[1] == f"{first[0]}-2"
    assert first[-1] == "mine"
    unnamed._begun.clear()


def test_the_name_is_of_the_script() -> None:
    assert name_for(["python", "a b/träin.py", "--lr", "1"]).startswith(f"{os.getpid()}:tr-in-")
    assert name_for(["./go"]).startswith(f"{os.getpid()}:go-")


@pytest.mark.parametrize(
    ("command", "begins"),
    [
        (["bash", "-c", "TINKER_API_KEY=tml-secret python train.py"], "bash"),
        (["bash", "-c", "tml-secret;x.py"], "bash"),
        (["env", "TINKER_API_KEY=tml-secret.py", "python", "-u", "a/train.py"], "train"),
        (["python", "--token=tml-secret.py", "train.py"], "train"),
        (["python", "-m", "pkg.train", "--lr", "1"], "python"),
        (["./train.py"], "train"),
    ],
)
def test_the_name_is_made_of_a_path_alone_and_of_nothing_that_may_hold_a_secret(
    command: list[str], begins: str
) -> None:
    name = name_for(command).partition(":")[2]
    assert "secret" not in name
    assert name[:-7] == begins


@pytest.mark.parametrize("file", ["тест.py", "-.py", ".py", "--help.py", "a" * 200 + ".py"])
def test_the_name_is_short_and_no_option_of_a_command(file: str) -> None:
    name = name_for(["python", f"./{file}"]).partition(":")[2]
    assert name[0].isalnum()
    assert len(name) <= 50
