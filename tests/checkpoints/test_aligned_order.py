"""To which steps the runs of a group can go back together: with a service made up here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from made import LINEAGE, NOW, listed_json, path, record, segment
from pydantic import SecretStr

from tinker_recovery import NoUsableCheckpoint
from tinker_recovery.checkpoints import WeightsFacts, checkpoint_metadata
from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.recovery.aligned import AlignedOrder
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import StatusReader
from tinker_recovery.service.base import Endpoint


class World:
    """Runs of a group, each with the steps that the service lists of it."""

    def __init__(self, *, origin: object = "a model", **listed: list[int]) -> None:
        self.listed = listed
        self.bare: set[tuple[str, int]] = set()
        """What is listed without metadata of ours."""
        self.looks = 0
        self.runs: dict[str, Any] = {
            name: SimpleNamespace(
                name=name,
                segments=[segment(name)],
                weights=WeightsFacts(),
                checkpoints=CheckpointState(name),
                root=None,
                origin=origin,
                start_step=0,
            )
            for name in listed
        }

    def _answer(self, request: httpx.Request) -> httpx.Response:
        *_, run, what = request.url.path.split("/")
        if what != "checkpoints":
            return httpx.Response(404, json={})
        found = []
        for step in self.listed[run]:
            metadata = checkpoint_metadata(
                step=step, lineage=LINEAGE, attempt=run, parent=None, saved_by="schedule"
            )
            if (run, step) in self.bare:
                metadata = {}
            found.append(listed_json(record(step, run), metadata))
        return httpx.Response(200, json={"checkpoints": found})

    async def _look(self) -> None:
        self.looks += 1

    async def steps(self, run: str) -> list[int]:
        """What this run would try, in its order."""
        endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
        transport = httpx.MockTransport(self._answer)
        refused: dict[str, str] = {}
        async with StatusReader(endpoint, transport=transport, wall=NOW.timestamp) as reader:
            order = AlignedOrder(
                self.runs[run],
                list(self.runs.values()),
                reader,
                ServiceTime(SYSTEM_CLOCK),
                self._look,
            )
            lists = [candidates async for candidates in order.lists(refused)]
        return [each.record.step for found in lists for each in found if each.record]


async def test_only_steps_that_each_run_has_are_tried_the_newest_first() -> None:
    world = World(a=[2, 4, 6, 8], b=[2, 6, 7])
    assert await world.steps("a") == [6, 2]
    assert await world.steps("b") == [6, 2]
    assert world.looks == 2, "each was looked at again before"


async def test_a_run_that_can_start_over_has_the_step_at_which_it_does() -> None:
    world = World(a=[0, 4], b=[])
    assert await world.steps("a") == [0]
    assert await world.steps("b") == []


async def test_where_none_can_start_over_and_no_step_is_common_there_is_none_to_go_back_to() -> (
    None
):
    world = World(a=[2, 4], b=[3], c=[], origin=None)
    with pytest.raises(NoUsableCheckpoint) as raised:
        await world.steps("a")
    assert "'a' has 2, 4; 'b' has 3; 'c' has none" in str(raised.value)


async def test_a_run_with_checkpoints_that_cannot_be_used_does_not_start_over() -> None:
    world = World(a=[0, 4], b=[4])
    world.runs["b"].checkpoints.bad[path("b", 4)] = "damaged"
    with pytest.raises(NoUsableCheckpoint, match="'b' has none"):
        await world.steps("a")


async def test_what_says_nothing_of_its_step_is_none_of_them() -> None:
    world = World(a=[2, 4, 6], b=[2, 6])
    world.bare.add(("a", 6))
    assert await world.steps("a") == [2]
