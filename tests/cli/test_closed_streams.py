"""Commands whose standard streams are closed, as by ``>&-``, or cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from two_hundred import leave_a_killed_run

COMMAND = [sys.executable, "-m", "tinker_recovery.cli"]


def _closed(redirected: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Call the command by a shell, with some of its streams redirected or closed."""
    call = ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", *COMMAND, *arguments]
    # Unbuffered, nothing would be left to write as the interpreter ends.
    own = {**os.environ, "TERM": "xterm", "PYTHONUNBUFFERED": ""}
    return subprocess.run(call, capture_output=True, timeout=40, check=False, env=own)  # noqa: S603 - our own command


@pytest.mark.parametrize(
    "arguments",
    [
        ["watch", "--once", "--journal", "{}"],
        ["report", "killed", "--journal", "{}", "-o", "{}/page.html"],
    ],
)
def test_what_has_no_standard_output_does_its_work_all_the_same(
    tmp_path: Path, arguments: list[str]
) -> None:
    leave_a_killed_run(tmp_path)
    done = _closed(">&-", *(each.format(tmp_path) for each in arguments))
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "page.html").exists() == (arguments[0] == "report")


def test_a_page_for_a_standard_output_that_is_closed_is_not_said_to_be_written(
    tmp_path: Path,
) -> None:
    leave_a_killed_run(tmp_path)
    done = _closed(">&-", "report", "killed", "--journal", str(tmp_path), "-o", "-")
    assert done.returncode == 3
    assert done.stderr == b"Error: - cannot be written: it is closed; choose another -o\n"


@pytest.mark.parametrize("redirected", ["<&-", "0>/dev/null"])
def test_events_from_a_standard_input_that_cannot_be_read_are_no_endless_wait(
    redirected: str,
) -> None:
    done = _closed(redirected, "watch", "--events", "-")
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"Error: -: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["watch", "--once", "--journal", "{}"],
        ["runs", "--journal", "{}"],
        ["runs", "--json", "--journal", "{}"],
        ["show", "killed", "--journal", "{}"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_an_output_that_takes_nothing_is_what_the_error_names(
    tmp_path: Path, arguments: list[str]
) -> None:
    leave_a_killed_run(tmp_path)
    done = _closed(">/dev/full", *(each.format(tmp_path) for each in arguments))
    assert (done.returncode, done.stderr) == (
        3,
        b"Error: standard output: No space left on device\n",
    )
