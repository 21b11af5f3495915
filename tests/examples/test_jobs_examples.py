"""The examples of many runs: as jobs, on Ray, and as an array job of SLURM."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest
from loops import until

from tinker_recovery.testing import LocalTinker

FOLDER = Path(__file__).parents[2] / "examples"


async def test_one_script_trains_jobs_without_any_server_and_survives_poisoned_backends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
        # Known to monkeypatch first, which then removes what the example sets.
        monkeypatch.setenv(name, "")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "jobs", raising=False)
    example = importlib.import_module("jobs")
    await example.run(6, 12, "Qwen/Qwen3-8B")
    monkeypatch.delitem(sys.modules, "jobs")
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "done: 6 jobs, recoveries: 2"
    assert [line.partition(":")[0] for line in said[:-1]] == [f"sweep-{n:02}" for n in range(6)]
    assert all("at step 12" in line for line in said[:-1])


@pytest.mark.timeout(180)
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'tinker-recovery[ray]'",
)
async def test_on_ray_every_run_ends_though_an_actor_is_killed(local: LocalTinker) -> None:
    command = [sys.executable, str(FOLDER / "ray_jobs.py"), "--runs", "6", "--kill"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own example
            command, capture_output=True, text=True, timeout=150, check=False
        )

    done = await anyio.to_thread.run_sync(run)
    assert done.returncode == 0, done.stderr
    assert "done: 6 runs" in done.stdout
    for session in [key for key, state in local.sessions().items() if state == "active"]:
        local.fail_session(session)


SHELL = """#!/bin/bash
trap 'echo stopped >> "$SAID"; exit 143' TERM
echo "$(basename "$0") $*" >> "$SAID"
if [ "$(basename "$0")" = tinker-recovery ]; then
  while [ ! -e "$GO" ]; do sleep 0.05; done
fi
"""
"""What stands for the commands that the script calls: SLURM is none that a test can start."""


async def test_a_task_of_slurm_names_its_run_and_is_queued_again_once_that_has_stopped(
    tmp_path: Path,
) -> None:
    for name in ("tinker-recovery", "scontrol"):
        (tmp_path / name).write_text(SHELL)
        (tmp_path / name).chmod(0o755)
    said, go = tmp_path / "said", tmp_path / "go"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_ID": "77",
        "SAID": str(said),
        "GO": str(go),
    }
    begun = "tinker-recovery run -- python examples/minimal.py --name sft-3 --steps 9"
    command = ["bash", str(FOLDER / "slurm.sh"), "--steps", "9"]
    with subprocess.Popen(command, env=environment) as task:  # noqa: ASYNC220, S603 - our own example
        await until(lambda: said.exists() and begun in said.read_text())
        task.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(lambda: task.wait(30)) == 0
    assert said.read_text().splitlines() == [begun, "stopped", "scontrol requeue 77"]
    go.touch()
    again = await anyio.to_thread.run_sync(
        lambda: subprocess.run(command, env=environment, check=False)  # noqa: S603 - as above
    )
    assert again.returncode == 0
