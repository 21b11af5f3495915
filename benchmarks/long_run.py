"""A run that has a long history: what choosing a checkpoint costs, and its later recoveries.

Choosing: ten thousand listed checkpoints, in one Tinker run and as ten in each of a thousand, are
read, put in order and validated, as a recovery by the default strategy does; in the second case
none of them can be used, so all are looked at. What is shown beside it is the least that anything
has to do: parse the same JSON, and take the entry with the most steps.

Recoveries: one run recovers again and again behind a step that was saved, with the default rules of
what is kept, against a server in a process of its own. Of each recovery the requests are counted
that came from its fault to the end of the step after it, polling and heartbeats excepted, and our
own time from detection to the first call of the new attempt, the service's excluded. The last
quarter is compared with the first behind the first ten: requests by the mean, as retention looks
once a second and not once a recovery, and own time by the median.

    python benchmarks/long_run.py [--quick] [--json] [--recoveries N] [--checkpoints N]
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import httpx
from _plain_loop import ADAM, batch
from _report import Bar, arguments, bars, table
from pydantic import SecretStr
from tinker._client import AsyncTinker

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    NoUsableCheckpoint,
    RecoveryPolicy,
    Supervisor,
)
from tinker_recovery.checkpoints import Segment, WeightsFacts, checkpoint_metadata
from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.selection import CheckpointSelection, RestorableRun, ServiceTime
from tinker_recovery.service import StatusReader
from tinker_recovery.service.base import Endpoint
from tinker_recovery.telemetry import EventSink
from tinker_recovery.testing import FaultRule, LocalTinkerProcess

SIZES = {"recoveries": (300, 30), "checkpoints": (10_000, 10_000)}
"""How many, and with --quick."""
IN_EACH = 10
"""Checkpoints of a Tinker run, where there are many."""
SIDE_BY_SIDE = 10
"""Runs whose HTTP clients are counted."""
WARM = 10
"""Recoveries left out at first: code and connections are new, and nothing is deleted yet."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOT_COUNTED = ("retrieve_future", "session_heartbeat", "training_run", "search_sessions")


@dataclass(slots=True)
class History:
    """What a service lists of a run, as it answers."""

    segments: list[Segment] = field(default_factory=list)
    replies: dict[str, bytes] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """A listing, or nothing in particular."""
        reply = self.replies.get(request.url.path.split("/")[-2], b"{}")
        return httpx.Response(200, content=reply, headers={"content-type": "application/json"})


def history(checkpoints: int, in_each: int) -> History:
    """A run of so many checkpoints; each of its Tinker runs begins where the one before ended."""
    made = History()
    parent = None
    for first in range(0, checkpoints, in_each):
        run = f"run-{first}"
        made.segments.append(Segment(run, run, first, parent))
        entries = [_entry(run, step, parent) for step in range(first + 1, first + in_each + 1)]
        made.replies[run] = json.dumps({"checkpoints": entries}).encode()
        made.paths += [each["tinker_path"] for each in entries]
        parent = made.paths[-1]
    return made


def _entry(run: str, step: int, parent: str | None) -> dict[str, Any]:
    return {
        "checkpoint_id": f"weights/{step}",
        "checkpoint_type": "training",
        "time": (NOW + timedelta(seconds=step)).isoformat(),
        "tinker_path": f"tinker://{run}/weights/mine-{step}",
        "size_bytes": 10,
        "user_metadata": checkpoint_metadata(
            step=step,
            lineage="lineage",
            attempt=run,
            parent=parent,
            saved_by="user",
            sound_step=step,
            metrics={"loss": 1.0 / step},
        ),
    }


async def choose(made: History, *, usable: bool) -> float:
    """CPU seconds of one choice."""
    policy = RecoveryPolicy(canary=None)
    known = CheckpointState.by(policy, "run", "lineage")
    if not usable:
        known.bad |= dict.fromkeys(made.paths, "for this benchmark")
    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-none"))
    transport = httpx.MockTransport(made.answer)
    async with StatusReader(endpoint, transport=transport) as reader:
        run = SimpleNamespace(
            name="run",
            segments=made.segments,
            weights=WeightsFacts(),
            checkpoints=known,
            root=None,
            origin=None,
            start_step=0,
        )
        collaborators = SimpleNamespace(policy=policy, events=EventSink(), reader=reader)
        selection = CheckpointSelection(
            cast("RestorableRun", run),
            cast("Collaborators", collaborators),
            ServiceTime(SYSTEM_CLOCK),
        )
        chosen = None
        began = time.process_time()
        with contextlib.suppress(NoUsableCheckpoint):
            chosen = await selection.choose(announce=False)
        took = time.process_time() - began
    if (chosen.path if chosen else None) != (made.paths[-1] if usable else None):
        raise RuntimeError(f"chose {chosen}")
    return took


async def read(made: History) -> float:
    """CPU seconds of reading the lists alone, as the SDK reads them."""
    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-none"))
    transport = httpx.MockTransport(made.answer)
    async with StatusReader(endpoint, transport=transport) as reader:
        began = time.process_time()
        for segment in made.segments:
            await reader.checkpoints(segment.run_id)
        return time.process_time() - began


def plainly(made: History) -> float:
    """CPU seconds of the least there is to do."""
    began = time.process_time()
    entries = [each for reply in made.replies.values() for each in json.loads(reply)["checkpoints"]]
    max(entries, key=lambda each: int(each["user_metadata"]["tinker_recovery.step"]))
    return time.process_time() - began


@dataclass(frozen=True, slots=True)
class Recoveries:
    """What each recovery of one run has cost, in order.

    Attributes:
        requests: How many requests.
        own_ms: Our own time, in milliseconds.
    """

    requests: list[int]
    own_ms: list[float]

    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Requests and own time, each of the first quarter behind the first few and of the last."""
        some = len(self.requests) // 4
        first, last = slice(WARM, WARM + some), slice(-some, None)
        return (
            (statistics.mean(self.requests[first]), statistics.mean(self.requests[last])),
            (statistics.median(self.own_ms[first]), statistics.median(self.own_ms[last])),
        )


async def one_step(attempt: Attempt) -> None:
    """A step, and what is saved behind it."""
    forward = attempt.client.forward_backward(batch(attempt.start_step), "cross_entropy")
    update = attempt.client.optim_step(ADAM)
    await forward
    await update
    await attempt.client.drain()


async def recoveries(count: int) -> Recoveries:
    """One run that recovers again and again."""
    asked: list[int] = []

    async def train(attempt: Attempt, server: LocalTinkerProcess) -> None:
        await one_step(attempt)
        by_route = Counter((await server.stats()).by_route)
        for route in NOT_COUNTED:
            del by_route[route]
        asked.append(by_route.total())
        if attempt.number <= count:
            await server.inject(FaultRule("fail", request="forward_backward"))
            await one_step(attempt)

    policy = RecoveryPolicy(
        checkpoints=CheckpointPolicy(save_every=1), poll_interval_s=3600, max_attempts=10
    )
    with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
        async with LocalTinkerProcess(root=Path(folder)) as server:
            os.environ.update(
                TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
            )
            async with Supervisor(policy) as supervisor:
                await supervisor.run(
                    functools.partial(train, server=server), base_model="b", rank=8, seed=1
                )
                (run,) = supervisor.runs
                calls = [each.client.first_call_at or 0.0 for each in run.attempts[1:]]
                own = [
                    (called - each.fault.detected_at - each.service_s) * 1e3
                    for each, called in zip(run.recoveries, calls, strict=True)
                ]
    return Recoveries([later - before for before, later in itertools.pairwise(asked)], own)


async def http_clients() -> float:
    """The HTTP clients of the SDK that a run holds while it trains, the standby session's excluded.

    Counted over runs side by side, each behind its first saves.
    """
    saved, over = [], anyio.Event()

    async def train(attempt: Attempt) -> None:
        await one_step(attempt)
        saved.append(attempt)
        await over.wait()

    policy = RecoveryPolicy(checkpoints=CheckpointPolicy(save_every=1), standby="none")
    with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
        async with LocalTinkerProcess(root=Path(folder)) as server:
            os.environ.update(
                TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
            )
            async with Supervisor(policy) as supervisor, anyio.create_task_group() as group:
                for _ in range(SIDE_BY_SIDE):
                    group.start_soon(functools.partial(supervisor.run, train, base_model="b"))
                while len(saved) < SIDE_BY_SIDE:  # noqa: ASYNC110 - several attempts set it
                    await anyio.sleep(0.05)
                gc.collect()
                held = sum(isinstance(each, AsyncTinker) for each in gc.get_objects())
                over.set()
    return held / SIDE_BY_SIDE


def main() -> None:
    """Measure, and print."""
    given = arguments(__doc__, SIZES)
    logging.disable(logging.WARNING)  # each recovery is said
    rounds = 3 if given.quick else 9
    one, many = history(given.checkpoints, given.checkpoints), history(given.checkpoints, IN_EACH)
    times: dict[str, list[float]] = {"plain": [], "read": [], "in one": [], "in many": []}
    for _ in range(rounds):
        times["plain"].append(plainly(one))
        times["read"].append(asyncio.run(read(one)))
        times["in one"].append(asyncio.run(choose(one, usable=True)))
        times["in many"].append(asyncio.run(choose(many, usable=False)))
    took = {which: statistics.median(each) for which, each in times.items()}
    table(
        (f"of {given.checkpoints:,} checkpoints", "CPU s"),
        [
            ("JSON parsed, and the most steps", f"{took['plain']:.3f}"),
            ("the list read, as by the SDK", f"{took['read']:.3f}"),
            ("one chosen, all in one Tinker run", f"{took['in one']:.3f}"),
            (f"none usable, {IN_EACH} in each Tinker run", f"{took['in many']:.3f}"),
        ],
    )
    clients = anyio.run(http_clients)
    measured = anyio.run(recoveries, given.recoveries)
    requests, own = measured.ends()
    print()
    table(
        (f"{given.recoveries} recoveries of one run", "first", "last", "last over first"),
        [
            ("requests", *(f"{each:.1f}" for each in requests), f"{requests[1] / requests[0]:.3f}"),
            ("own ms", *(f"{each:.1f}" for each in own), f"{own[1] / own[0]:.3f}"),
        ],
    )
    bars(
        "long run",
        [
            Bar(
                f"choose one of {given.checkpoints:,} listed, CPU s beyond reading the list",
                took["in one"] - took["read"],
                0.5,
            ),
            Bar(
                f"refuse {given.checkpoints:,}, {IN_EACH} in each listing, CPU of choosing one",
                took["in many"] / took["in one"],
                4.0,
            ),
            Bar("requests of a recovery, last quarter over first", requests[1] / requests[0], 1.2),
            Bar("own time of a recovery, last quarter over first", own[1] / own[0], 1.2),
            Bar("HTTP clients of the SDK that a training run holds", clients, 3.0),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
