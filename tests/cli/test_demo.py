"""Ctrl-C in the demo, as a terminal sends it: to every process of the group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

DEMO = [sys.executable, "-m", "tinker_recovery.cli", "demo", "--steps", "60", "--save-every", "5"]
ENDS_WITHIN_S = 8.0


@pytest.mark.parametrize("at", ["undisturbed: step", "poisoned: step"])
def test_ctrl_c_ends_the_demo_at_once_and_quietly(at: str) -> None:
    """With the server still there: it does not end before what asks it does."""
    command = [*DEMO, "--poison", "3", "--pace", "0.005"]
    with subprocess.Popen(  # noqa: S603 - our own command
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
    ) as demo:
        assert demo.stdout is not None
        try:
            while at not in demo.stdout.readline():
                assert demo.poll() is None
            began = time.monotonic()
            os.killpg(demo.pid, signal.SIGINT)
            _, errors = demo.communicate(timeout=60)
        finally:
            demo.kill()
    assert (demo.returncode, errors) == (130, "")
    assert time.monotonic() - began < ENDS_WITHIN_S
