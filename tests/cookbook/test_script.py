"""``tinker-recovery cookbook -- python script.py``, killed and called again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from loops import most_steps, until

from tinker_recovery.cookbook.script import parse
from tinker_recovery.errors import UsageError
from tinker_recovery.testing import FaultRule, LocalTinker

pytest.importorskip(
    "tinker_cookbook", reason="tinker-cookbook is not installed: docs/cookbook.md says how"
)

from recipes_world import STEPS, steps_logged, use

pytestmark = pytest.mark.timeout(300)  # five programs, each of which imports the cookbook
HERE = Path(__file__).parent


def _start(folder: Path, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    words = ["cookbook", "--json", "--seed", "7", "--", "python", str(HERE / script), *arguments]
    # Into files, as recipes print more than a pipe holds.
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as errors:
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "tinker_recovery.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env={**os.environ, "TINKER_RECOVERY_CHECKPOINTS_SAVE_EVERY": "3"},
        )


async def _end(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, str, str]:
    code = await anyio.to_thread.run_sync(lambda: process.wait(timeout=90))
    return code, (folder / "out").read_text(), (folder / "err").read_text()


def _final(local: LocalTinker) -> tuple[str, str, int]:
    """Weights and optimizer of the run that is furthest."""
    furthest = max(map(local.run_state, local.runs()), key=lambda state: state.steps)
    return furthest.weights_digest, furthest.optimizer_digest, furthest.steps


@pytest.mark.parametrize("recipe", ["supervised", "rl", "dpo"])
async def test_a_script_that_is_poisoned_and_killed_ends_by_the_same_command(
    recipe: str, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    async with LocalTinker(step_s=0.05, sampling_seed=1) as local:
        use(local)
        alone = _start(tmp_path / "0", "recipe_script.py", recipe, str(tmp_path / "alone"))
        code, _, errors = await _end(alone, tmp_path / "0")
        assert code == 0, errors
        undisturbed = _final(local)
    async with LocalTinker(step_s=0.05, sampling_seed=1) as local:
        use(local)
        local.inject(FaultRule("poison", 5, "optim_step"))
        first = _start(tmp_path / "1", "recipe_script.py", recipe, str(folder))
        await until(lambda: most_steps(local) >= STEPS // 2)
        first.send_signal(signal.SIGKILL)
        await _end(first, tmp_path / "1")
        again = _start(tmp_path / "2", "recipe_script.py", recipe, str(folder))
        code, out, errors = await _end(again, tmp_path / "2")
        assert code == 0, errors
        assert json.loads(out.splitlines()[-1])["outcome"] == "completed"
        assert _final(local) == undisturbed
        third = _start(tmp_path / "3", "recipe_script.py", recipe, str(folder))
        code, out, _ = await _end(third, tmp_path / "3")
        assert (code, json.loads(out.splitlines()[-1])["outcome"]) == (0, "finished before")
    assert steps_logged(folder) == steps_logged(tmp_path / "alone")


async def test_a_script_that_trains_by_a_loop_of_its_own_is_refused_before_it_trains(
    tmp_path: Path,
) -> None:
    async with LocalTinker() as local:
        use(local)
        code, out, errors = await _end(_start(tmp_path, "loop_script.py"), tmp_path)
        assert code == 2
        assert "none of the mains" in errors
        assert json.loads(out.splitlines()[-1])["outcome"] == "refused"
        assert local.runs() == []


@pytest.mark.parametrize("words", [["bash", "x.sh"], ["python", "-u", "x.py"], ["python", "-m"]])
def test_a_command_that_is_no_script_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="python -m MODULE"):
        parse(words)
