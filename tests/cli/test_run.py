"""``tinker-recovery run``, on real scripts in real processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from webhook import Hook

from tinker_recovery.cli import main

QUICK = ["--backoff-s", "0.01", "--max-backoff-s", "0.02"]

Script = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def write(body: str) -> Path:
        path = tmp_path / "train.py"
        head = "import os, pathlib, signal, sys, time\n"
        head += f"lives = pathlib.Path({str(tmp_path)!r}, 'lives')\n"
        head += "life = len(lives.read_text()) + 1 if lives.exists() else 1\n"
        head += "lives.write_text('x' * life)\n"
        path.write_text(head + textwrap.dedent(body))
        return path

    return write


def _run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["run", *QUICK, *arguments])
    return done.exit_code, done.stderr


def _lives(path: Path) -> int:
    return len((path.parent / "lives").read_text())


def test_a_script_that_crashes_is_started_again_until_it_is_done(script: Script) -> None:
    path = script("sys.exit(0 if life == 3 else 7)")
    status, stderr = _run("--", sys.executable, str(path))
    assert (status, _lives(path)) == (0, 3)
    assert re.search(r"ended with status 7 after \d+ s; restart 1 of 3", stderr)


def test_one_that_is_killed_every_time_is_given_up_with_the_status_of_a_kill(
    script: Script,
) -> None:
    path = script("os.kill(os.getpid(), signal.SIGKILL)")
    status, stderr = _run("--max-restarts", "2", "--json", "--", sys.executable, str(path))
    assert (status, _lives(path)) == (137, 3)
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert re.match(r"died of SIGKILL after \d+ s: 2 restarts in a row", lines[-1]["message"])


@pytest.mark.parametrize(("code", "lives"), [("sys.exit(2)", 1), ("sys.exit(0)", 1)])
def test_done_and_a_usage_error_are_not_restarted(script: Script, code: str, lives: int) -> None:
    path = script(code)
    status, _ = _run("--", sys.executable, str(path))
    assert (status, _lives(path)) == (0 if "0" in code else 2, lives)


def test_a_run_that_was_finished_already_is_not_started_again(script: Script) -> None:
    path = script("pathlib.Path(os.environ['TINKER_RECOVERY_FINISHED_FILE']).touch(); sys.exit(1)")
    status, stderr = _run("--", sys.executable, str(path))
    assert (status, _lives(path)) == (1, 1)
    assert "its run was finished already" in stderr


def test_options_after_the_command_are_the_scripts_own(script: Script) -> None:
    path = script("sys.exit(0 if sys.argv[1:] == ['--json', '--lr', '1e-4'] else 3)")
    assert _run("--max-restarts", "0", sys.executable, str(path), "--json", "--lr", "1e-4")[0] == 0


def test_a_command_that_is_not_there_or_cannot_be_executed_says_so(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program")
    assert _run("--", str(tmp_path / "nothing"))[0] == 127
    assert _run("--", str(tmp_path / "plain"))[0] == 126


def test_limits_that_contradict_each_other_are_refused() -> None:
    done = CliRunner().invoke(main, ["run", "--backoff-s", "9", "--max-backoff-s", "1", "--", "x"])
    assert done.exit_code == 2
    assert "--max-backoff-s 1 is below --backoff-s 9" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_it_without_a_restart(
    script: Script, number: signal.Signals
) -> None:
    path = script(
        f"""
        signal.signal({int(number)}, lambda *_: sys.exit(40))
        print("ready", flush=True)
        time.sleep(30)
        """
    )
    command = [sys.executable, "-m", "tinker_recovery.cli", "run", *QUICK, "--"]
    with subprocess.Popen(  # noqa: S603 - our own command
        [*command, sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            running.send_signal(number)
            _, stderr = running.communicate(timeout=20)
        finally:
            running.kill()
    assert running.returncode == 40
    assert "a signal asked it to end" in stderr
    assert _lives(path) == 1


def test_who_is_to_be_notified_is_told_that_the_script_is_given_up_and_so_is_the_script(
    script: Script, hook: Hook
) -> None:
    url = f"json://127.0.0.1:{hook.port}/a-secret-path"
    path = script("assert os.environ['TINKER_RECOVERY_NOTIFY'] == sys.argv[1]; sys.exit(7)")
    asked = ["--max-restarts", "1", "--notify", url, "--notify", url]
    status, _ = _run(*asked, "--", sys.executable, str(path), f"{url} {url}")
    assert (status, _lives(path)) == (7, 2)
    first, second = hook.sent
    assert first == second
    assert first["title"].endswith(": given up")
    assert "ended with status 7" in first["message"]
    assert "in a row" in first["message"]
    assert "a-secret-path" not in first["message"]


def test_an_address_that_cannot_work_is_refused_before_the_script_is_started(
    script: Script,
) -> None:
    path = script("")
    status, stderr = _run("--notify", "nonesuch://a-secret", "--", sys.executable, str(path))
    assert status == 2
    assert "--notify: notify[0]='nonesuch://...' is not allowed" in stderr
    assert "a-secret" not in stderr
    assert not (path.parent / "lives").exists()
