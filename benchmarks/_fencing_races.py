"""Cases with bare claims, without Supervisors: cheap, so there are many."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator

import _fencing_contestant
import anyio
from _fencing import Outcome
from _fencing_processes import START_S, Process, process

from tinker_recovery.testing import LocalTinker

WITHIN_S = 60.0
"""A process that has not come to an end by then is stuck."""

ENDS = ("done", "refused", "lost", "failed")


class Contestant:
    """A process that plays one case after another."""

    def __init__(self, running: Process) -> None:
        self.process = running
        self._from = 0

    def ask(self, name: str, *, on_held: str, steps: int) -> None:
        """Have it claim a run."""
        self._from = len(self.process.said)
        self.process.tell(json.dumps({"name": name, "on_held": on_held, "steps": steps}))

    async def until(self, *events: str) -> str:
        """Wait for one of these events of this case; empty if none comes in time."""
        said = await self.process.until(*events, within_s=WITHIN_S, after=self._from)
        return said["event"] if said else ""

    def at_s(self, event: str) -> float | None:
        """When it first said that in this case."""
        said = self.process.when(event, after=self._from)
        return said["at_s"] if said else None

    @property
    def story(self) -> str:
        """What it has said in this case, but for its steps."""
        said = [each for each in self.process.said[self._from :] if each["event"] != "step"]
        return f"{self.process.host}: {said}"

    @property
    def last_step_s(self) -> float | None:
        """When its last step of this case was answered."""
        steps = [said for said in self.process.said[self._from :] if said["event"] == "step"]
        return steps[-1]["at_s"] if steps else None

    @property
    def run(self) -> str:
        """The Tinker run that it trains in this case."""
        said = self.process.when("trains", after=self._from)
        return said["run"] if said else ""


@contextlib.asynccontextmanager
async def contestants(
    server: LocalTinker, count: int, settle_s: float
) -> AsyncIterator[list[Contestant]]:
    """Processes that are ready; killed at the end."""
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(
                process(
                    _fencing_contestant.main,
                    f"host-{number}",
                    server.base_url,
                    server.api_key,
                    settle_s,
                )
            )
            for number in range(count)
        ]
        for each in made:
            if not await each.until("ready", within_s=START_S):
                raise RuntimeError(f"{each.host} did not start: see its message on stderr")
        yield [Contestant(each) for each in made]


def _overlap(racing: list[Contestant]) -> str:
    """Whether one was answered a step after another, which took the run later, held it."""
    for one in racing:
        for other in racing:
            began, last, held = one.at_s("held"), one.last_step_s, other.at_s("held")
            if began and last and held and other.last_step_s and began < held <= last:
                return f"{one.process.host} and {other.process.host}"
    return ""


async def race(kind: str, name: str, racing: list[Contestant]) -> Outcome:
    """Several start together, and do not wait; if all withdraw, one tries again."""
    for each in racing:
        each.ask(name, on_held="refuse", steps=5)
    ended = [await each.until(*ENDS) for each in racing]
    story = "; ".join(each.story for each in racing)
    overlap = _overlap(racing)
    stuck = "" if all(ended) else story
    if not stuck and "done" not in ended:
        racing[0].ask(name, on_held="wait", steps=5)
        stuck = "" if await racing[0].until(*ENDS) == "done" else story
    return Outcome(
        kind,
        two_trainers=overlap,
        stuck=stuck,
        failed=story if "failed" in ended else "",
        otherwise="" if sorted(ended) == ["done", *["refused"] * (len(racing) - 1)] else story,
    )


async def paused(kind: str, name: str, server: LocalTinker, racing: list[Contestant]) -> Outcome:
    """The holder is paused past the limit, another takes over, and the first one wakes."""
    first, second = racing[:2]
    first.ask(name, on_held="refuse", steps=1_000_000)
    if await first.until("step", *ENDS) != "step":
        return Outcome(kind, otherwise=f"no step: {first.story}")
    first.process.send(signal.SIGSTOP)
    paused_s = time.monotonic()
    try:
        second.ask(name, on_held="wait", steps=5)
        took = await second.until("held", *ENDS) == "held"
        before = server.run_state(first.run).steps
        took = took and bool(await second.until("step"))
    finally:
        first.process.send(signal.SIGCONT)
    with anyio.CancelScope(shield=True):
        ended = await first.until(*ENDS), await second.until(*ENDS)
    after = server.run_state(first.run).steps
    story = f"{first.story}; {second.story}"
    step_s = second.at_s("step")
    return Outcome(
        kind,
        two_trainers="" if after == before else f"{after - before} steps of the first",
        stuck="" if all(ended) else story,
        failed=story if "failed" in ended else "",
        otherwise="" if took and ended == ("lost", "done") else story,
        takeover_s=step_s - paused_s if step_s else None,
    )
