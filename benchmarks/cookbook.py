"""Recipes of the tinker-cookbook, unchanged, on backends that fail: supervised, and by themselves.

The supervised, RL and DPO mains of the installed cookbook train on a local server with a fault in
the middle. Each is run three ways: undisturbed; under supervision; and by the cookbook's own resume
under a restart loop, which calls the main again after any error and, as a person would in the end,
after ten seconds without an optimizer step. What ends is compared with the undisturbed run: the
weights and the optimizer to the bit, and each step once in the metrics.

The server repeats samples by weights, prompt and turn (``sampling_seed``), so that RL can be
compared too. In "server killed", it loses what is in no checkpoint, marks its runs as corrupted,
and is back in a moment; in "silent rollback" it goes on with the older weights and says nothing.
"process killed" has a process of its own, killed with SIGKILL and called again.

    python benchmarks/cookbook.py [--quick] [--json]

With --quick, one recipe meets two of the faults. Without the cookbook (docs/cookbook.md says how to
install it) there are no bars.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from _report import Bar, arguments, bars, table

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker, RunState

TESTS = Path(__file__).resolve().parents[1] / "tests"
HUNG_S = 10.0
LIMIT_S = 60.0
SEED = 7
RECIPES = ("supervised", "rl", "dpo")

FAULTS: dict[str, FaultRule | str] = {
    "poison": FaultRule("poison", 5, "optim_step"),
    "quiet poison": FaultRule("poison", 5, quiet=True),
    "hung rollout": FaultRule("hang", request="asample"),
    "failed sampler": FaultRule("fail", request="asample", times=2),
    "silent rollback": "rollback",
    "server killed": "corrupted",
    "process killed": "SIGKILL",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run has ended.

    Attributes:
        state: Its weights and optimizer at the server; None if it did not end.
        logged: How often each step stands in its metrics.
        took_s: Seconds it took.
    """

    state: RunState | None
    logged: Counter[int]
    took_s: float

    def verdict(self, undisturbed: Ended) -> str:
        """What a person would say of it."""
        if self.state is None:
            return "not recovered"
        same = self.logged == undisturbed.logged and _same(self.state, undisturbed.state)
        return "exact" if same else "silently wrong"


def _same(one: RunState, other: RunState | None) -> bool:
    return other is not None and (one.steps, one.weights_digest, one.optimizer_digest) == (
        other.steps,
        other.weights_digest,
        other.optimizer_digest,
    )


def policy() -> RecoveryPolicy:
    """The defaults, but for saves and silence on the scale of a run of seconds."""
    return RecoveryPolicy(
        poll_interval_s=0.2,
        stall_after_s=3.0,
        backoff_s=0.1,
        checkpoints=CheckpointPolicy(save_every=3),
    )


async def supervised(main: Callable[..., Any], config: Any) -> None:
    """Under supervision."""
    async with Supervisor(policy(), journal=Path(config.log_path).with_suffix(".db")) as supervisor:
        await supervisor.run_cookbook(main, config, seed=SEED)


async def by_itself(main: Callable[..., Any], config: Any, local: LocalTinker) -> None:
    """By the cookbook's own resume, called again after an error or when it hangs."""
    for _ in range(6):
        with contextlib.suppress(Exception):
            if asyncio.iscoroutinefunction(main):
                running = asyncio.ensure_future(main(config))
            else:
                running = asyncio.ensure_future(anyio.to_thread.run_sync(main, config))
            steps, since = 0, time.monotonic()
            while not running.done():
                await asyncio.wait([running], timeout=0.2)
                if (now := most_steps(local)) != steps:
                    steps, since = now, time.monotonic()
                if time.monotonic() - since > HUNG_S:
                    running.cancel()
            if not running.cancelled():
                running.result()
                return


def most_steps(local: LocalTinker) -> int:
    """Steps of the run at the server that is furthest."""
    return max((local.run_state(run).steps for run in local.runs()), default=0)


async def disturb(local: LocalTinker, fault: FaultRule | str | None) -> None:
    """Bring the fault about, in the middle of the run."""
    if isinstance(fault, FaultRule):
        if fault.request == "asample":
            await _reaches(local, 4)
        local.inject(fault)
    elif fault is not None:
        await _reaches(local, 7)
        local.crash(0.3)


async def _reaches(local: LocalTinker, step: int) -> None:
    while most_steps(local) < step:  # noqa: ASYNC110 - the server sets no event of this loop
        await anyio.sleep(0.01)


@contextlib.asynccontextmanager
async def at_work(work: Any) -> AsyncIterator[None]:
    """Inside, something goes on beside."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(BaseException):
            await task


async def case(recipe: str, fault: FaultRule | str | None, *, by: str, folder: Path) -> Ended:
    """One run."""
    world = importlib.import_module("recipes_world")
    main, config = world.RECIPES[recipe]
    began = time.monotonic()
    restart: Any = fault if fault in ("rollback", "corrupted") else "corrupted"
    log = folder / "log"
    async with LocalTinker(folder / "server", sampling_seed=1, restart=restart) as local:
        world.use(local)
        ended = False
        with anyio.move_on_after(LIMIT_S), quiet():
            async with at_work(disturb(local, None if fault == "SIGKILL" else fault)):
                if fault == "SIGKILL":
                    await killed(recipe, log, local, by=by)
                elif by == "itself":
                    await by_itself(main, config(log), local)
                else:
                    await supervised(main, config(log))
                ended = True
        final = _final(log)
        state = local.run_state(final) if ended and final is not None else None
    logged = world.steps_logged(log) if (log / "metrics.jsonl").exists() else Counter[int]()
    return Ended(state, logged, time.monotonic() - began)


def _final(log: Path) -> str | None:
    """The Tinker run of the recipe's final checkpoint, if there is one."""
    records = log / "checkpoints.jsonl"
    rows = records.read_text().splitlines() if records.exists() else []
    finals = [row for row in map(json.loads, rows) if row["name"] == "final"]
    path: str | None = finals[-1]["state_path"] if finals else None
    return None if path is None else path.removeprefix("tinker://").partition("/")[0]


async def killed(recipe: str, log: Path, local: LocalTinker, *, by: str) -> None:
    """A script in a process of its own, killed in the middle and called again."""
    script = [str(TESTS / "cookbook" / "recipe_script.py"), recipe, str(log)]
    ours = ["-m", "tinker_recovery.cli", "cookbook", "--seed", str(SEED), "--", "python", *script]
    words = script if by == "itself" else ours
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS / "cookbook"])),
        "TINKER_RECOVERY_CHECKPOINTS_SAVE_EVERY": "3",
        "TINKER_RECOVERY_STATE_DIR": str(log.with_name("state")),
    }
    for first in (True, False):
        with subprocess.Popen(  # noqa: ASYNC220, S603 - our own script
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process:
            try:
                if first:
                    await _reaches(local, 7)
                    process.send_signal(signal.SIGKILL)
                await anyio.to_thread.run_sync(process.communicate, b"resume\n")
            finally:
                process.kill()


def changed_files() -> int:
    """How many of the installed cookbook's files differ from what its package says of them."""
    files = importlib.metadata.files("tinker-cookbook") or []
    published = [(each.locate(), each.hash) for each in files if each.hash is not None]
    return sum(
        base64.urlsafe_b64encode(hashlib.new(hashed.mode, Path(str(path)).read_bytes()).digest())
        .rstrip(b"=")
        .decode()
        != hashed.value
        for path, hashed in published
    )


@contextlib.contextmanager
def quiet() -> Any:
    """Inside, nothing of what recipes print, nor of their progress."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


async def main(*, quick: bool) -> list[Bar]:
    """Run the cases, print the table, return the bars."""
    recipes = RECIPES[:1] if quick else RECIPES
    faults = {name: FAULTS[name] for name in (("poison", "silent rollback") if quick else FAULTS)}
    rows, counts = [], Counter[str]()
    ways = ("supervision", "itself")
    with tempfile.TemporaryDirectory(prefix="cookbook-") as scratch:
        for recipe in recipes:
            plain = {
                by: await case(recipe, None, by=by, folder=Path(scratch) / f"{recipe}-{by}")
                for by in ways
            }
            for name, fault in faults.items():
                if recipe == "supervised" and name in ("hung rollout", "failed sampler"):
                    continue  # it does not sample
                row = [f"{recipe}, {name}"]
                for by in ways:
                    folder = Path(scratch) / f"{recipe}-{name.replace(' ', '-')}-{by}"
                    ended = await case(recipe, fault, by=by, folder=folder)
                    verdict = ended.verdict(plain[by])
                    if by == "supervision":
                        counts[verdict] += 1
                    steps = "" if ended.state is None else f", {ended.state.steps} steps"
                    row.append(f"{verdict}{steps}, {ended.took_s:.0f} s")
                rows.append(row)
                print(*row, sep=" | ", file=sys.stderr)
    table(["recipe, fault", "under supervision", "its own resume, restarted"], rows)
    return [
        Bar("runs under supervision that ended silently wrong", counts["silently wrong"], 0),
        Bar("runs under supervision that were not recovered", counts["not recovered"], 0),
        Bar("files of the cookbook that are not as it was published", changed_files(), 0),
    ]


if __name__ == "__main__":
    given = arguments(__doc__)
    measured: list[Bar] = []
    if importlib.util.find_spec("tinker_cookbook") is None:
        print("tinker-cookbook is not installed: docs/cookbook.md says how")
    else:
        sys.path[:0] = [str(TESTS / "cookbook"), str(TESTS)]
        logging.disable(logging.CRITICAL)
        measured = anyio.run(lambda: main(quick=given.quick))
    bars("cookbook", measured, as_json=given.json)
