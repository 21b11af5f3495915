"""Which checkpoint a recovery restores: by the list, by what is bad, by what the canary knows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import LINEAGE, NOW, listed_json, path, record, segment
from pydantic import SecretStr

from tinker_recovery import (
    NoUsableCheckpoint,
    RecoveryEvent,
    RecoveryPolicy,
    StatusUnavailable,
)
from tinker_recovery.checkpoints import Listed, WeightsFacts, checkpoint_metadata
from tinker_recovery.checkpoints.prompt import prompt_of
from tinker_recovery.clock import Clock
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.selection import (
    CheckpointSelection,
    RestorableRun,
    ServiceTime,
)
from tinker_recovery.service import StatusReader
from tinker_recovery.service.base import Endpoint
from tinker_recovery.telemetry import EventSink, names

PROMPT = prompt_of([1, 2, 3])
ORIGIN = object()


class World:
    """A run, what the service lists of it, and what is known."""

    def __init__(
        self, *steps: int, canary: Any = None, origin: object = ORIGIN, **more: Any
    ) -> None:
        self.known = CheckpointState("r", lineage=LINEAGE, canary=canary)
        if canary == "auto":
            self.known.prompt.make_of(range(8))
        self.listed: dict[str, list[dict[str, Any]]] = {}
        self.asked: Counter[str] = Counter()
        self.events: list[RecoveryEvent] = []
        self.policy = RecoveryPolicy(canary=canary, **more)
        self.now_s = 0.0
        self.run: Any = SimpleNamespace(
            name="r",
            segments=[segment("a")],
            weights=WeightsFacts(),
            checkpoints=self.known,
            root=None,
            origin=origin,
            start_step=0,
        )
        for step in steps:
            self.save(step)

    def save(self, step: int, run: str = "a", **changes: Any) -> str:
        made = record(step, run)
        metadata = checkpoint_metadata(
            step=step, lineage=LINEAGE, attempt=run, parent=None, saved_by="schedule"
        )
        self.listed.setdefault(run, []).append(listed_json(made, metadata, **changes))
        self.known.stored[made.path] = run, step
        return made.path

    def answered(self, *steps: int, run: str = "a") -> None:
        """The canary was asked at these saves."""
        for step in steps:
            self.known.canaries.record(run, step, (-1.0, -float(step)))

    def began_answered(self) -> None:
        """The canary was asked before the first step."""
        self.known.began = None, "begin", 0
        self.known.canaries.record("begin", 0, (-5.0, -5.0))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/checkpoints"):
            return httpx.Response(404, json={})  # the wider questions of a first request
        run = request.url.path.split("/")[-2]
        self.asked[run] += 1
        self.now_s += 0.5
        return httpx.Response(200, json={"checkpoints": self.listed.get(run, [])})

    @asynccontextmanager
    async def choosing(self) -> AsyncIterator[CheckpointSelection]:
        transport = httpx.MockTransport(self._answer)
        endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
        # Some time after the newest save, by the service's clock.
        later = NOW + timedelta(hours=1)
        async with StatusReader(endpoint, transport=transport, wall=later.timestamp) as reader:
            collaborators = SimpleNamespace(
                policy=self.policy, events=EventSink(self.events.append), reader=reader
            )
            self.time = ServiceTime(Clock(monotonic=lambda: self.now_s))
            yield CheckpointSelection(
                cast("RestorableRun", self.run), cast("Collaborators", collaborators), self.time
            )

    async def choose(self, *, announce: bool = True) -> Listed | None:
        async with self.choosing() as choosing:
            try:
                return await choosing.choose(announce=announce)
            finally:
                self.refused = dict(choosing.refused)

    async def step(self) -> int | None:
        """The step that is restored; None to start over."""
        found = await self.choose()
        if found is None:
            return None
        assert found.record is not None
        return found.record.step

    @property
    def said(self) -> RecoveryEvent:
        (event,) = self.events
        assert event.name == names.EVENT_CHECKPOINT_SELECTED
        return event


async def test_the_newest_without_an_objection_is_restored_and_what_is_passed_over_is_said() -> (
    None
):
    world = World(1, 2, 3, 4)
    world.known.sizes[path("a", 4)] = 11
    world.known.bad[path("a", 3)] = "wrong weights"
    assert await world.step() == 2
    assert world.refused.keys() == {path("a", 3), path("a", 4)}
    assert world.said.fields == {names.CHECKPOINT_PATH: path("a", 2), names.CHECKPOINT_STEP: 2}
    assert f"restores {path('a', 2)}, at step 2" in world.said.message
    assert "passed over 4: " in world.said.message
    assert "passed over 3: " in world.said.message


async def test_a_choice_that_is_only_asked_for_is_not_said() -> None:
    world = World(1, 2)
    assert await world.choose(announce=False) is not None
    assert world.events == []
    nothing = World()
    assert await nothing.choose(announce=False) is None
    assert nothing.events == []


async def test_a_run_that_has_saved_nothing_starts_over_where_it_can() -> None:
    world = World()
    world.run.start_step = 3
    assert await world.step() is None
    assert world.said.fields == {names.CHECKPOINT_STEP: 3}
    assert "starts over at step 3" in world.said.message
    adopted = World(origin=None)
    assert await adopted.step() is None
    assert adopted.events == []


@pytest.mark.parametrize("origin", [ORIGIN, None])
async def test_what_cannot_be_used_is_for_a_person_to_look_at(origin: object) -> None:
    world = World(1, 2, origin=origin)
    for step in (1, 2):
        world.known.bad[path("a", step)] = "wrong weights"
    with pytest.raises(NoUsableCheckpoint) as raised:
        await world.choose()
    said = str(raised.value)
    assert f"{path('a', 2)}: marked as bad: wrong weights (2 times alike)" in said
    assert ("tinker-recovery abandon r" in said) == (origin is not None)
    assert world.events == []


# -- by the canary -------------------------------------------------------------------------------


async def test_a_newer_one_that_the_canary_never_answered_for_comes_behind_those_it_did() -> None:
    world = World(1, 2, 3, canary=PROMPT)
    world.answered(1, 2)
    assert await world.step() == 2
    assert world.refused == {}


@pytest.mark.parametrize("began", [False, True])
async def test_what_nothing_can_be_compared_with_comes_behind_starting_over(*, began: bool) -> None:
    world = World(1, 2, canary=PROMPT)
    if began:
        world.began_answered()
    assert await world.step() == (None if began else 2)


@pytest.mark.parametrize("began", [False, True])
async def test_where_there_is_no_starting_over_it_is_taken(*, began: bool) -> None:
    """What was answered for has an objection, and nothing of this choice was seen to go wrong."""
    world = World(1, 2, 3, canary=PROMPT)
    if began:
        world.began_answered()
    world.answered(2)
    world.known.sizes[path("a", 2)] = 11
    assert await world.step() == 3


@pytest.mark.parametrize("began", [False, True])
async def test_once_a_restore_has_gone_wrong_nothing_unknown_is_restored(*, began: bool) -> None:
    world = World(1, 2, 3, canary=PROMPT)
    if began:
        world.began_answered()
    world.answered(2)
    world.known.bad[path("a", 2)] = "wrong weights"
    with pytest.raises(NoUsableCheckpoint):
        await world.choose()
    never = "its canary was never answered"
    assert {where: why for where, why in world.refused.items() if why == never} == {
        path("a", 1): never,
        path("a", 3): never,
    }


async def test_a_bad_one_of_another_run_is_no_reason_to_distrust() -> None:
    world = World(1, 2, canary=PROMPT)
    world.known.bad[path("z", 1)] = "wrong weights"
    assert await world.step() == 2


@pytest.mark.parametrize("bad", [False, True])
async def test_a_canary_of_our_own_making_counts_once_a_restore_has_gone_wrong(
    *, bad: bool
) -> None:
    world = World(1, 2, 3, 4, canary="auto")
    world.answered(2)
    if bad:
        world.known.bad[path("a", 4)] = "wrong weights"
    assert await world.step() == (2 if bad else 4)


async def test_who_names_a_checkpoint_gets_it_without_any_canary() -> None:
    for strategy in ("step:3", path("a", 3)):
        world = World(1, 2, 3, canary=PROMPT, checkpoint_strategy=strategy)
        world.began_answered()
        world.answered(2)
        assert await world.step() == 3


@given(
    answered=st.sets(st.integers(1, 6)),
    bad=st.sets(st.integers(1, 6)),
    unsettled=st.sets(st.integers(1, 6)),
)
def test_with_a_canary_and_sound_ones_that_it_answered_for_the_newest_of_these_is_restored(
    answered: set[int], bad: set[int], unsettled: set[int]
) -> None:
    world = World(*range(1, 7), canary=PROMPT)
    world.answered(*answered)
    world.known.bad = {path("a", step): "wrong weights" for step in bad}
    paths = {path("a", step) for step in unsettled}
    world.known.unsettled = lambda: paths
    sure = answered - bad
    if not sure:
        return
    assert anyio.run(world.step) == max(sure - unsettled or sure)


# -- what may still be replaced ------------------------------------------------------------------


async def test_what_a_save_may_still_replace_comes_last() -> None:
    world = World(1, 2, 3)
    world.known.unsettled = lambda: {path("a", 3)}
    assert await world.step() == 2
    for step in (1, 2):
        world.known.bad[path("a", step)] = "wrong weights"
    world.events.clear()
    assert await world.step() == 3


# -- how far it is trusted -----------------------------------------------------------------------


async def test_what_was_saved_after_the_last_step_known_to_be_good_is_not_tried() -> None:
    world = World(1, 2, 3, 4)
    world.known.distrust("a", 2)
    assert await world.step() == 2
    assert (
        "passed over 3 and 4: saved after step 2, the last that is known to be good"
        in world.said.message
    )


async def test_with_nothing_after_the_last_good_step_nothing_is_passed_over() -> None:
    world = World(1, 2)
    world.known.distrust("a", 2)
    assert await world.step() == 2
    assert "passed over" not in world.said.message


async def test_a_segment_that_was_left_counts_up_to_where_it_was_left() -> None:
    world = World(1, 2, 3)
    world.run.segments.append(segment("b", 2, path("a", 2)))
    world.known.distrust("b", 1)
    world.save(3, "b")
    assert await world.step() == 2
    assert world.asked == {"b": 1, "a": 1}
    assert "passed over 3: saved after step 1" in world.said.message


async def test_an_older_segment_is_not_asked_for_while_the_newest_has_one() -> None:
    world = World(1, 2)
    world.run.segments.append(segment("b", 2, path("a", 2)))
    world.save(3, "b")
    assert await world.step() == 3
    assert world.asked == {"b": 1}
    assert world.time.total_s == 0.5


# -- what is not listed, or cannot be read -------------------------------------------------------


async def test_an_empty_list_of_what_was_stored_is_the_services_trouble() -> None:
    world = World(1, 2)
    world.listed.clear()
    with pytest.raises(StatusUnavailable, match="and has stored 2"):
        await world.choose()


@pytest.mark.parametrize("lives", [False, True])
async def test_what_has_ended_is_gone_and_what_lives_has_to_be_listed(*, lives: bool) -> None:
    world = World()
    ends = (NOW + timedelta(hours=1)).timestamp()
    for step in (1, 2):
        name = f"tinker://a/weights/step-{step:08d}"
        world.known.stored[name] = "a", step
        world.known.note_lifetime(name, ends + (1.0 if lives and step == 1 else 0.0))
    if lives:
        with pytest.raises(StatusUnavailable, match="and has stored 2"):
            await world.choose()
        return
    with pytest.raises(NoUsableCheckpoint, match="lifetime"):
        await world.choose()
    assert len(world.refused) == 2


async def test_what_was_rejected_or_not_trusted_is_not_missed_in_an_empty_list() -> None:
    world = World(1, 2)
    world.listed.clear()
    world.known.distrust("a", 1)
    world.known.bad[path("a", 1)] = "wrong weights"
    assert await world.step() is None


@pytest.mark.parametrize("stored", [False, True])
async def test_one_of_ours_whose_metadata_cannot_be_read_is_no_reason_to_start_over(
    *, stored: bool
) -> None:
    world = World()
    broken = world.save(1, user_metadata={"tinker_recovery_step": "many"})
    if not stored:
        del world.known.stored[broken]
        assert await world.step() is None
        return
    with pytest.raises(NoUsableCheckpoint):
        await world.choose()
    assert world.refused.keys() == {broken}


# -- other orders --------------------------------------------------------------------------------


async def test_a_step_that_is_asked_for_and_not_there_is_an_error_that_says_which_are() -> None:
    world = World(1, 2, checkpoint_strategy="step:7")
    with pytest.raises(NoUsableCheckpoint, match=r"at step 7.*it has them at: 2, 1"):
        await world.choose()
    nothing = World(checkpoint_strategy="step:7")
    with pytest.raises(NoUsableCheckpoint, match="it has them at: none"):
        await nothing.choose()


async def test_the_best_is_the_best_of_all_segments() -> None:
    world = World(checkpoint_strategy="best")
    world.run.segments.append(segment("b", 2, path("a", 2)))
    for step, run, loss in ((1, "a", 0.25), (2, "a", 0.5), (3, "b", 0.75)):
        metadata = checkpoint_metadata(
            step=step,
            lineage=LINEAGE,
            attempt=run,
            parent=None,
            saved_by="schedule",
            metrics={"loss": loss},
        )
        world.save(step, run, user_metadata=metadata)
    assert await world.step() == 1
    assert world.asked == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("strategy", "known"), [("latest", True), ("best", False), ("step:2", False)]
)
async def test_what_is_probably_chosen_is_known_of_the_latest_alone(
    strategy: str, *, known: bool
) -> None:
    world = World(checkpoint_strategy=strategy)
    newest = f"tinker://a/weights/step-{2:08d}"
    world.known.stored[newest] = "a", 2
    async with world.choosing() as choosing:
        assert choosing.expected() == (newest if known else None)


async def test_the_journals_notes_are_waited_for_before_anything_is_chosen() -> None:
    world = World(1, 2)
    order = itertools.count()

    async def read() -> None:
        next(order)
        world.known.bad[path("a", 2)] = "another process has found it so"

    async with world.choosing() as choosing:
        choosing.notes_read = read
        found = await choosing.choose()
        assert found is not None
        assert choosing.order.progress(found) == 1
    assert found.path == path("a", 1)
    assert next(order) == 1


async def test_time_spent_waiting_for_the_service_is_added_up() -> None:
    world = World(1, 2)
    world.run.segments.append(segment("b", 2, path("a", 2)))
    async with world.choosing() as choosing:
        for _ in range(2):
            await choosing.choose()
        world.now_s += 100.0
        assert world.time.total_s == 2.0
