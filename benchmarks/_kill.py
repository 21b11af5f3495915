"""Kills: a training process killed at random points and run again, and what must hold then."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import anyio.to_thread
from _kill_loop import NAME

from tinker_recovery.journal.reading import RunView, read_run
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinkerProcess, RunState

STEPS = 24
KILLED = -9
EVENTS = (
    names.EVENT_CHECKPOINT_SAVED,
    names.EVENT_DETECTED,
    names.EVENT_STARTED,
    names.EVENT_CHECKPOINT_SELECTED,
    names.EVENT_CLIENT_CREATED,
    names.EVENT_COMPLETED,
)
"""Each phase of a recovery, and saves."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run, and how its processes die.

    Attributes:
        depth: Batches submitted ahead.
        poisons: Steps at which the backend poisons it.
        deaths: One for each process that is to die: a point (see ``_kill_loop``), or seconds after
            its first step.
        together: Whether two processes are begun at once each time.
    """

    depth: int
    poisons: tuple[int, ...]
    deaths: tuple[str | float, ...]
    together: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a plan.

    Attributes:
        plan: The plan.
        kills: Processes that died of SIGKILL.
        attempts: Attempts the journal knows of.
        unknown: Sessions left open that no journal could know of.
        violation: What was not as promised; empty if nothing.
    """

    plan: Plan
    kills: int
    attempts: int
    unknown: int
    violation: str


def draw(chance: random.Random, *, short: bool = False) -> Plan:
    """A random plan of three to six deaths, or of two."""
    deaths: list[str | float] = []
    for _ in range(2 if short else chance.randint(3, 6)):
        kind = chance.choice(("timer", "timer", "event", "commit", "committed", "step"))
        if kind == "timer":
            deaths.append(chance.uniform(0.0, 0.6))
        elif kind == "event":
            deaths.append(f"event:{chance.choice(EVENTS)}:1")
        elif kind == "step":
            deaths.append(f"step:{chance.randint(1, 12)}")
        else:
            deaths.append(f"{kind}:{chance.randint(1, 12)}")
    return Plan(
        depth=chance.randint(0, 3),
        poisons=tuple(sorted(chance.sample(range(1, STEPS), 2))),
        deaths=tuple(deaths),
        together=chance.random() < 0.25,
    )


class _Process:
    """One process of the run, which kills itself or is killed by a timer."""

    def __init__(self, folder: Path, depth: int, death: str | float | None) -> None:
        self._death = death
        self._log = folder / "log"
        command = [sys.executable, str(Path(__file__).with_name("_kill_loop.py"))]
        command += ["--steps", str(STEPS), "--depth", str(depth), "--log", str(self._log)]
        if isinstance(death, str):
            command += ["--die-at", death]
        self._errors = (folder / "errors").open("a")
        self.process = subprocess.Popen(command, stderr=self._errors)  # noqa: S603 - our own script

    async def end(self) -> int:
        """Its exit status once it has ended; kills it when its time is up."""
        try:
            if isinstance(self._death, float):
                await self._first_step()
                await anyio.sleep(self._death)
                self.process.kill()
            with anyio.fail_after(120):
                return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        finally:
            self.process.kill()
            self.process.wait()
            self._errors.close()

    async def _first_step(self) -> None:
        mine = f" {self.process.pid}\n"
        while self.process.poll() is None:
            if self._log.exists() and mine in self._log.read_text():
                return
            await anyio.sleep(0.002)


async def play(plan: Plan, expected: RunState | None = None) -> Outcome:
    """Play a plan on a server of its own; ``expected`` is the state the run has to end in."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        journal = folder / "journal.sqlite3"
        async with LocalTinkerProcess(folder / "service", step_s=0.005, save_s=0.02) as server:
            os.environ.update(
                TINKER_BASE_URL=server.base_url,
                TINKER_API_KEY=server.api_key,
                TINKER_TELEMETRY="0",
                TINKER_RECOVERY_STATE_DIR=scratch,
            )
            for step in plan.poisons:
                await server.inject(FaultRule("poison", step))
            kills, violation = await _run_until_done(plan, folder)
            run = read_run(journal, NAME) if journal.exists() else None
            if run is None or violation:
                said = (folder / "errors").read_text()[-3000:]
                return Outcome(plan, kills, 0, 0, f"{violation or 'no journal'}\n{said}")
            known = {each.run_id.partition(":train:")[0] for each in run.attempts}
            left = [key for key, state in (await server.sessions()).items() if state == "active"]
            violation = _violation(run, known & set(left), (folder / "log").read_text())
            final = await server.run_state(run.attempts[-1].run_id)
            if expected is not None and not violation and final != expected:
                violation = f"other weights: {final}, and not {expected}"
            if violation:
                violation += "\n" + (folder / "errors").read_text()[-3000:]
            return Outcome(plan, kills, len(run.attempts), len(set(left) - known), violation)


async def _run_until_done(plan: Plan, folder: Path) -> tuple[int, str]:
    """Start one process after the other, by the same command, until one is done."""
    kills = 0
    for death in (*plan.deaths, None, None, None):
        processes = [_Process(folder, plan.depth, death)]
        if plan.together:
            processes.append(_Process(folder, plan.depth, None))
        codes: list[int] = []
        async with anyio.create_task_group() as group:

            async def wait(process: _Process, codes: list[int] = codes) -> None:
                codes.append(await process.end())

            for process in processes:
                group.start_soon(wait, process)
        kills += codes.count(KILLED)
        if 0 in codes or "RunFinished" in (folder / "errors").read_text():
            return kills, ""
        if set(codes) != {KILLED}:
            return kills, f"a process ended with {codes}"
    return kills, "it is not done after all that"


def _violation(run: RunView, left: set[str], log: str) -> str:
    if run.state != "finished":
        return f"the journal says {run.state}"
    if left:
        return f"sessions of dead processes left open: {left}"
    newest = 0
    for line in log.splitlines():
        attempt = int(line.split()[0])
        if attempt < newest:
            return f"attempt {attempt} trained while attempt {newest} did: {log}"
        newest = attempt
    return ""


async def undisturbed() -> RunState:
    """The state in which an undisturbed run ends; its seed is the same."""
    states: list[RunState] = []
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        async with LocalTinkerProcess(folder / "service") as server:
            os.environ.update(
                TINKER_BASE_URL=server.base_url,
                TINKER_API_KEY=server.api_key,
                TINKER_TELEMETRY="0",
                TINKER_RECOVERY_STATE_DIR=scratch,
            )
            _, violation = await _run_until_done(Plan(0, (), ()), folder)
            run = read_run(folder / "journal.sqlite3", NAME)
            if run is None or violation:
                raise RuntimeError(violation + (folder / "errors").read_text())
            states.append(await server.run_state(run.attempts[-1].run_id))
    return states[0]


def total_kills(outcomes: Sequence[Outcome]) -> int:
    """Over all of them."""
    return sum(outcome.kills for outcome in outcomes)
