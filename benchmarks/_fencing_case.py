"""A case of the fencing benchmark with whole Supervisors: its server, processes and verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _fencing_supervisor
import anyio
from _fencing import Outcome, Trained, service
from _fencing_processes import Process, process
from _fencing_supervisor import ENDS, STEPS, Script

from tinker_recovery.testing import LocalTinker, RunState

WITHIN_S = 60.0
"""A process that has not come to an end by then is stuck. Alone on a machine, each takes 1 s."""


class StuckError(Exception):
    """What a case waited for has not happened in time."""


class OtherwiseError(Exception):
    """A process has ended before it came to what the case is made for."""


@dataclass
class Case:
    """One run, and the processes that want it.

    Attributes:
        server: A service of its own.
        trained: What it has executed.
        chance: For what is random, from the case's number.
        otherwise: What has gone another way so far than the case is made for.
        died_s: When the holder died, or was paused.
    """

    server: LocalTinker
    trained: Trained
    chance: random.Random
    _settle_s: float
    _folder: Path
    _stack: contextlib.AsyncExitStack
    _begun: list[Process] = field(default_factory=list)
    otherwise: list[str] = field(default_factory=list)
    died_s: float | None = None

    async def begin(self, host: str, **what: Any) -> Process:
        """Begin a process on a machine; the journal stays with the machine."""
        script = Script(
            self.server.base_url,
            self.server.api_key,
            self._folder / f"{host}.db",
            settle_s=self._settle_s,
        )
        begun = await self._stack.enter_async_context(
            process(_fencing_supervisor.main, host, dataclasses.replace(script, **what))
        )
        self._begun.append(begun)
        return begun

    async def until(self, one: Process, *events: str, times: int = 1) -> str:
        """Wait until a process says one of these; which one.

        Raises:
            StuckError: It has not.
            OtherwiseError: It has ended before.
        """
        said = await one.until(*events, within_s=WITHIN_S, times=times)
        if said is None:
            error = OtherwiseError if one.over else StuckError
            raise error(f"{one.host} has not come to {events}: {_story(one)}")
        return str(said["event"])

    async def end(self, one: Process, *expected: str) -> str:
        """Wait for a process's end, and note if it is another than expected."""
        end = await self.until(one, *ENDS)
        if end not in expected:
            self.otherwise.append(f"{one.host} ended {end}, not {expected}: {_story(one)}")
        if not await one.gone(WITHIN_S):
            raise StuckError(f"{one.host} has ended {end}, and its process has not")
        return end

    async def dead(self, one: Process) -> bool:
        """Wait until a process that is to kill itself is gone; whether it died of that."""
        if not await one.gone(WITHIN_S):
            raise StuckError(f"{one.host} has not come to its death: {_story(one)}")
        return not any(each["event"] in ENDS for each in one.said)

    async def pause(self, least_s: float, most_s: float) -> None:
        """Sleep for a random time."""
        await anyio.sleep(self.chance.uniform(least_s, most_s))

    async def finish(self) -> None:
        """As a job scheduler that restarts a job until its run has come to its end.

        Raises:
            StuckError: It does not.
        """
        for number in range(5):
            one = await self.begin(f"last-{number}")
            if await self.end(one, "done", "finished") in {"done", "finished"}:
                return
        raise StuckError("the run does not come to its end")

    def kill_all(self) -> None:
        """Kill every process that still lives."""
        for one in self._begun:
            one.send(signal.SIGKILL)

    def verdict(self, kind: str, expected: RunState, stuck: str) -> Outcome:
        """What the server and the processes say of it all; a run that is stuck has no end."""
        runs = self.trained.runs
        state = self.server.run_state(runs[-1]) if runs else None
        return Outcome(
            kind,
            two_trainers=self.trained.overlap(),
            weights="" if stuck or state == expected else f"{state}, and not {expected}",
            stuck=stuck,
            failed="; ".join(_story(one) for one in self._begun if one.when("failed")),
            otherwise="; ".join(self.otherwise),
            takeover_s=self._takeover_s(),
        )

    def _takeover_s(self) -> float | None:
        """From the holder's death, or pause, to the first step in another Tinker run."""
        died_s = self.died_s
        if died_s is None:
            return None
        steps = [(at_s, run) for at_s, run, what in self.trained.requests if what == "optim_step"]
        held = [run for at_s, run in steps if at_s <= died_s]
        later = [at_s for at_s, run in steps if run not in held]
        return min(later) - died_s if later else None

    def story(self) -> str:
        """What every process has said."""
        return "\n".join(_story(one) for one in self._begun)


def _story(one: Process) -> str:
    said = [
        " ".join([f"{each['at_s']:.2f}", *(str(each[key]) for key in each if key != "at_s")])
        for each in one.said
    ]
    return f"{one.host}: {', '.join(said)}"


@contextlib.asynccontextmanager
async def case(number: str, *, unkind: bool) -> AsyncIterator[Case]:
    """A case; all of its processes are killed in the end."""
    with TemporaryDirectory(prefix="fencing-") as folder:
        async with (
            service(unkind=unkind) as (server, trained, settle_s),
            contextlib.AsyncExitStack() as stack,
        ):
            yield Case(server, trained, random.Random(number), settle_s, Path(folder), stack)


async def undisturbed() -> RunState:
    """What a run ends with on the bare SDK if nothing goes wrong; the same on every server."""
    async with case("undisturbed", unkind=False) as alone:
        one = await alone.begin("alone", supervised=False)
        await alone.end(one, "done")
        state = alone.server.run_state(alone.trained.runs[-1])
        if alone.otherwise or state.steps != STEPS:
            raise RuntimeError(f"the undisturbed run has failed: {alone.otherwise} {state}")
        return state
