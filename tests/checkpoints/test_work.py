"""What choosing, listing and planning cost grows with what is listed, and not with its square."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from made import LINEAGE, NOW, segment
from pydantic import SecretStr
from tinker import types

from tinker_recovery import NoUsableCheckpoint, RecoveryPolicy
from tinker_recovery.checkpoints import (
    Listed,
    Segment,
    Situation,
    WeightsFacts,
    checkpoint_metadata,
    on_branch,
    plan_deletions,
)
from tinker_recovery.checkpoints.retention import KeepLast
from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.selection import (
    CheckpointSelection,
    RestorableRun,
    ServiceTime,
)
from tinker_recovery.service import StatusReader
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.listing import AT_ONCE
from tinker_recovery.telemetry import EventSink

MANY = 120


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Counts the calls, of Python's and of C's functions, that this thread makes."""
    calls = [0]

    def note(_: object, event: str, __: object) -> None:
        calls[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def _grows_evenly(work: Callable[[int], Callable[[], object]]) -> None:
    """Twice as many are twice the work, or less."""
    work(MANY)()  # what is loaded and cached with the first
    counts = []
    for many in (MANY, 2 * MANY):
        run = work(many)
        with _counted() as calls:
            run()
        counts.append(calls[0])
    assert counts[1] <= 2.1 * counts[0]


class History:
    """A run whose checkpoints are spread over Tinker runs, each begun from the one before.

    Args:
        checkpoints: How many there are.
        runs: How many Tinker runs.
    """

    def __init__(self, checkpoints: int, runs: int) -> None:
        self.segments: list[Segment] = []
        self.listed: dict[str, list[dict[str, Any]]] = {}
        self.most_at_once = self._at_once = 0
        parent = None
        each = checkpoints // runs
        for number in range(runs):
            run = f"run-{number}"
            self.segments.append(segment(run, number * each, parent))
            steps = range(number * each + 1, (number + 1) * each + 1)
            self.listed[run] = [_entry(run, step, parent) for step in steps]
            parent = self.listed[run][-1]["tinker_path"]

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0)
        self._at_once -= 1
        listed = self.listed.get(request.url.path.split("/")[-2])
        return httpx.Response(200, json={} if listed is None else {"checkpoints": listed})

    @property
    def paths(self) -> list[str]:
        return [each["tinker_path"] for listed in self.listed.values() for each in listed]


def _entry(run: str, step: int, parent: str | None) -> dict[str, Any]:
    return {
        "checkpoint_id": f"weights/{step}",
        "checkpoint_type": "training",
        "time": (NOW + timedelta(seconds=step)).isoformat(),
        "tinker_path": f"tinker://{run}/weights/step-{step:08d}-a",
        "size_bytes": 10,
        "user_metadata": checkpoint_metadata(
            step=step, lineage=LINEAGE, attempt=run, parent=parent, saved_by="user"
        ),
    }


async def _choose(history: History, known: CheckpointState, policy: RecoveryPolicy) -> str | None:
    transport = httpx.MockTransport(history.answer)
    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
    async with StatusReader(endpoint, transport=transport, wall=NOW.timestamp) as reader:
        run = SimpleNamespace(
            name="run",
            segments=history.segments,
            weights=WeightsFacts(),
            checkpoints=known,
            root=None,
            origin=None,
            start_step=0,
        )
        collaborators = SimpleNamespace(policy=policy, events=EventSink(), reader=reader)
        choosing = CheckpointSelection(
            cast("RestorableRun", run),
            cast("Collaborators", collaborators),
            ServiceTime(SYSTEM_CLOCK),
        )
        try:
            chosen = await choosing.choose()
        except NoUsableCheckpoint:
            return None
        return None if chosen is None else chosen.path


@pytest.mark.parametrize(
    ("strategy", "usable", "spread"),
    [
        ("latest", True, True),
        ("latest", False, True),
        ("latest", False, False),
        ("best", True, True),
        ("step:7", True, False),
    ],
)
def test_choosing_among_twice_as_many_checkpoints_is_twice_the_work(
    strategy: str, *, usable: bool, spread: bool
) -> None:
    def work(many: int) -> Callable[[], object]:
        history = History(many, runs=many if spread else 1)
        policy = RecoveryPolicy(checkpoint_strategy=strategy, canary="auto")
        known = CheckpointState.by(policy, "run", LINEAGE)
        known.prompt.make_of(tuple(range(8)))
        known.stored |= dict.fromkeys(history.paths, ("run-0", 1))
        if not usable:
            known.bad |= dict.fromkeys(history.paths, "bad")
        expected = history.paths[6 if strategy == "step:7" else -1] if usable else None

        def choose() -> None:
            assert asyncio.run(_choose(history, known, policy)) == expected

        return choose

    _grows_evenly(work)


@pytest.mark.parametrize(
    ("strategy", "most"), [("latest", 1), ("best", AT_ONCE), ("step:7", AT_ONCE)]
)
def test_where_all_have_to_be_compared_they_are_listed_side_by_side(
    strategy: str, most: int
) -> None:
    history = History(40, runs=20)
    policy = RecoveryPolicy(checkpoint_strategy=strategy)
    known = CheckpointState.by(policy, "run", LINEAGE)
    assert asyncio.run(_choose(history, known, policy)) in history.paths
    assert history.most_at_once == most


def test_following_a_branch_of_twice_as_many_segments_is_twice_the_work() -> None:
    def work(many: int) -> Callable[[], object]:
        segments = History(many, runs=many).segments
        return lambda: on_branch(segments)

    _grows_evenly(work)


def test_planning_deletions_among_twice_as_many_checkpoints_is_twice_the_work() -> None:
    def work(many: int) -> Callable[[], object]:
        history = History(many, runs=many)
        entries = [each for listed in history.listed.values() for each in listed]
        listed = [Listed.read(types.Checkpoint.model_validate(each)) for each in entries]
        situation = Situation(
            lineage=LINEAGE,
            now=NOW,
            segments=history.segments,
            valid=history.paths,
            pending=history.paths,
            delete_user_saves=True,
        )
        return lambda: plan_deletions(listed, KeepLast(5), situation)

    _grows_evenly(work)
