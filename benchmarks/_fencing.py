"""The cases of the fencing benchmark: processes of several machines that want one run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from tinker_recovery.testing import LocalTinker

LIMIT_S = 1.5
"""The service's heartbeat limit."""

BEAT_S = 0.3
WITHIN_S = 30.0
"""A process that says nothing final for this long is stuck."""

START_S = 120.0
"""Six processes start at once, and each reads the whole SDK."""

ENDS = frozenset({"done", "refused", "lost", "failed"})


@dataclass
class Part:
    """What one process did in one case, by the monotonic clock.

    Attributes:
        end: How it ended; empty if it did not.
        host: Of the process that it was refused for, or lost to.
        held_s: When it held the run.
        run: The Tinker run that it trained.
        steps_s: When each of its steps was answered.
    """

    end: str = ""
    host: str = ""
    held_s: float | None = None
    run: str = ""
    steps_s: list[float] = field(default_factory=list)

    def note(self, said: dict[str, Any]) -> None:
        """Take over one event."""
        event, at_s = said["event"], said["at_s"]
        if event == "held":
            self.held_s = at_s
        elif event == "trains":
            self.run = said["run"]
        elif event == "step":
            self.steps_s.append(at_s)
        elif event in ENDS:
            self.end, self.host = event, said.get("host", "")


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: Which kind of case.
        two_trainers: Whether a process trained after another had taken the run.
        stuck: Whether a process did not end, or no process got the run.
        wrong: What else was not as promised; empty for nothing.
        takeover_s: From the moment the holder was paused to the successor's first step.
    """

    kind: str
    two_trainers: bool
    stuck: bool
    wrong: str = ""
    takeover_s: float | None = None


class Machine:
    """A process with a machine id of its own."""

    def __init__(self, host: str, process: asyncio.subprocess.Process) -> None:
        self.host = host
        self.process = process
        self.part = Part()

    async def ask(self, name: str, *, on_held: str, steps: int) -> None:
        """Have it claim a run."""
        self.part = Part()
        if self.process.stdin is not None:
            asked = {"name": name, "on_held": on_held, "steps": steps}
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            await self.process.stdin.drain()

    async def until(self, *events: str, within_s: float = WITHIN_S) -> bool:
        """Read what it says until one of these events; False if none comes in time."""
        with anyio.move_on_after(within_s):
            while self.process.stdout is not None:
                line = await self.process.stdout.readline()
                if not line:
                    return False
                said = json.loads(line)
                self.part.note(said)
                if said["event"] in events:
                    return True
        return False


@contextlib.asynccontextmanager
async def machines(
    server: LocalTinker, count: int, settle_s: float
) -> AsyncIterator[list[Machine]]:
    """Processes that are ready; killed at the end."""
    made = []
    for number in range(count):
        host = f"host-{number}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("_fencing_contestant.py")),
            server.base_url,
            host,
            str(settle_s),
            str(BEAT_S),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "TINKER_API_KEY": server.api_key},
        )
        made.append(Machine(host, process))
    try:
        for each in made:
            if not await each.until("ready", within_s=START_S):
                raise RuntimeError(f"{each.host} did not start: see its message on stderr")
        yield made
    finally:
        for each in made:
            with contextlib.suppress(ProcessLookupError):
                each.process.kill()
            await each.process.wait()


def overlap(parts: list[Part]) -> bool:
    """Whether one was answered a step after another, which took the run later, held it."""
    trained = [part for part in parts if part.held_s is not None and part.steps_s]
    return any(
        (one.held_s or 0.0) < (other.held_s or 0.0) <= one.steps_s[-1]
        for one in trained
        for other in trained
    )


async def race(kind: str, name: str, racing: list[Machine]) -> Outcome:
    """Several start together, and do not wait."""
    for each in racing:
        await each.ask(name, on_held="refuse", steps=5)
    ended = [await each.until(*ENDS) for each in racing]
    parts = [each.part for each in racing]
    trained = [part for part in parts if part.end == "done"]
    wrong = ", ".join(part.end for part in parts if part.end in {"lost", "failed"})
    return Outcome(kind, overlap(parts), not (all(ended) and trained), wrong)


async def paused(kind: str, name: str, server: LocalTinker, racing: list[Machine]) -> Outcome:
    """The holder is paused past the limit, another takes over, and the first one wakes."""
    first, second = racing[:2]
    await first.ask(name, on_held="refuse", steps=1_000_000)
    if not await first.until("step"):
        return Outcome(kind, two_trainers=False, stuck=True)
    first.process.send_signal(signal.SIGSTOP)
    paused_s = asyncio.get_running_loop().time()
    try:
        await second.ask(name, on_held="wait", steps=5)
        took = await second.until("held")
        before = server.run_state(first.part.run).steps
        took = took and await second.until("step")
    finally:
        first.process.send_signal(signal.SIGCONT)
    ended = await first.until(*ENDS)
    ended = await second.until(*ENDS) and ended
    after = server.run_state(first.part.run).steps
    wrong = (
        ""
        if (first.part.end, second.part.end) == ("lost", "done")
        else (f"{first.part.end}, {second.part.end}")
    )
    return Outcome(
        kind,
        after > before,
        not (took and ended),
        wrong,
        second.part.steps_s[0] - paused_s if second.part.steps_s else None,
    )
