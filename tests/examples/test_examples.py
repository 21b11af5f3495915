"""Every example runs as its docstring says, against a server that poisons it on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest
import pytest_asyncio

from tinker_recovery.testing import LocalTinker

FOLDER = Path(__file__).parents[2] / "examples"
OF_JOBS = {"jobs", "ray_jobs"}
"""Those that train many runs: test_jobs_examples.py."""

EXAMPLES = [each for each in sorted(FOLDER.glob("*.py")) if each.stem not in OF_JOBS]


def _run(example: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own example
        [sys.executable, str(example), "--steps", "20"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=dict(os.environ),
    )


@pytest_asyncio.fixture
async def strict(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A server that refuses what some services refuse, and the environment pointing to it."""
    async with LocalTinker(dialect="strict") as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server
        assert "active" not in server.sessions().values()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
async def test_the_example_survives_a_poisoned_backend_of_a_service_that_demands_weights(
    strict: LocalTinker, example: Path
) -> None:
    local = strict
    local.poison(at_step=13)
    done = await anyio.to_thread.run_sync(_run, example)
    assert done.returncode == 0, done.stderr
    assert "done: 20 steps, 1 recoveries" in done.stdout
    assert "Traceback" not in done.stderr
    assert local.run_state(local.runs()[0]).steps == 20
    if example.stem == "minimal":
        again = await anyio.to_thread.run_sync(_run, example)
        assert again.returncode == 1
        assert "come to its end before, at step 20" in again.stderr
        assert "Traceback" not in again.stderr
