"""One try to restore: what is rejected, passed over or raised, and that nothing stays open."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest
import tinker
from made import NOW, path
from made_restores import FAILED, NAN, REFUSED, Client, World, answer_at

from tinker_recovery import LeaseLost, NoUsableCheckpoint, StatusUnavailable
from tinker_recovery.checkpoints.canary import ASKED
from tinker_recovery.errors import OtherWeights
from tinker_recovery.recovery.checkpoint_state import LOADS_TRIED
from tinker_recovery.recovery.restore import Restored
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import names


async def test_the_newest_is_restored_with_the_canarys_answer_asked_once() -> None:
    world = World(1, 2)
    world.known.prompt.lost = 1
    restored = await world.restore()
    (client,) = world.made
    assert world.known.prompt.lost == 0, "it answers"
    assert restored.connection is cast("Any", client)
    assert restored.checkpoint is not None
    assert (restored.checkpoint.path, restored.answer) == (path("a", 2), answer_at(2))
    assert (client.asked, world.closed) == (1, [])
    created = [event for event in world.events if event.name == names.EVENT_CLIENT_CREATED]
    assert [event.fields for event in created] == [{names.RUN_ID: "new-0"}]
    assert world.known.prompt.spent == 2


async def test_without_a_canary_nothing_is_asked() -> None:
    world = World(1, 2, canary=False)
    restored = await world.restore()
    assert (world.made[0].asked, restored.answer) == (0, None)
    assert world.known.prompt.spent == 0


@pytest.mark.parametrize("canary", [False, True])
async def test_a_run_without_a_checkpoint_starts_over(*, canary: bool) -> None:
    world = World(canary=canary)
    restored = await world.restore()
    assert (restored.checkpoint, restored.listed) == (None, None)
    assert restored.answer == (answer_at(0) if canary else None)
    assert world.left_open() == world.made


async def test_a_run_that_cannot_be_started_over_and_has_no_checkpoint_is_an_error() -> None:
    world = World(origin=None)
    with pytest.raises(NoUsableCheckpoint, match="has no checkpoint yet"):
        await world.restore()
    assert world.made == []


# -- what the canary says ------------------------------------------------------------------------


async def test_other_weights_are_asked_again_then_rejected_for_good_and_the_next_is_used() -> None:
    world = World(1, 2)
    world.answers[path("a", 2)] = [answer_at(1)]
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert restored.checkpoint.step == 1
    wrong, right = world.made
    assert (wrong.asked, right.asked) == (ASKED, 1)
    assert world.closed == [wrong]
    assert world.noted.keys() == world.known.bad.keys() == {path("a", 2)}
    assert world.restoring.passed_over.keys() == {path("a", 2)}


async def test_an_answer_that_is_off_once_is_no_objection() -> None:
    world = World(1, 2)
    world.answers[path("a", 2)] = [answer_at(1), answer_at(2)]
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert restored.checkpoint.step == 2
    assert world.made[0].asked == 2
    assert (world.closed, world.noted) == ([], {})
    assert world.known.canaries.noise > 0, "two answers on the same weights tell how noisy they are"


def _said_unknown(world: World) -> list[str]:
    return [each.message for each in world.events if each.name == names.EVENT_WEIGHTS_UNKNOWN]


@pytest.mark.parametrize(
    ("noise", "asked", "used", "unknown"),
    [(0.01, ASKED, 1, 0), (0.03, ASKED, 2, 1), (0.06, 1, 2, 0)],
)
async def test_an_answer_that_the_noise_may_explain_is_asked_again_then_used_and_that_is_said(
    noise: float, asked: int, used: int, unknown: int
) -> None:
    world = World(1, 2)
    world.known.canaries.know_noise(noise)
    world.answers[path("a", 2)] = [tuple(number + 0.1 for number in answer_at(2))]
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert (restored.checkpoint.step, world.made[0].asked) == (used, asked)
    said = _said_unknown(world)
    assert len(said) == unknown
    assert all(path("a", 2) in each and "explains 0.06" in each for each in said)


async def test_a_checkpoint_that_the_canary_never_answered_for_is_used_and_that_is_said() -> None:
    world = World(1)
    world.known.canaries.forget("a", 1)
    world.known.began = None
    restored = await world.restore()
    assert (world.made[0].asked, restored.answer) == (1, answer_at(1))
    (said,) = _said_unknown(world)
    assert path("a", 1) in said
    assert "no answer of the canary is known" in said


@pytest.mark.parametrize("world", [World(1, 2), World(1, 2, canary=False), World()])
async def test_what_is_confirmed_begun_anew_or_asked_no_canary_is_not_said_to_be_unknown(
    world: World,
) -> None:
    await world.restore()
    assert _said_unknown(world) == []


async def test_started_over_with_other_weights_is_an_error_and_blames_no_checkpoint() -> None:
    world = World()
    world.answers[None] = [answer_at(7)]
    with pytest.raises(OtherWeights, match="was started over"):
        await world.restore()
    assert world.closed == world.made
    assert world.noted == {}


async def test_answers_that_are_no_numbers_blame_the_checkpoint_from_the_second_time_on() -> None:
    world = World(1, 2)
    world.answers[path("a", 2)] = [NAN]
    with pytest.raises(OtherWeights, match="not finite"):
        await world.restore()
    assert (world.noted, world.closed) == ({}, world.made)
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert restored.checkpoint.step == 1
    assert world.known.bad.keys() == {path("a", 2)}
    assert world.left_open() == [world.made[-1]]


# -- what does not load --------------------------------------------------------------------------


async def test_what_the_service_refuses_to_load_is_rejected_and_the_next_is_used() -> None:
    world = World(1, 2)
    world.errors[path("a", 2)] = [REFUSED]
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert restored.checkpoint.step == 1
    assert world.noted.keys() == {path("a", 2)}
    assert "does not load it" in world.noted[path("a", 2)]


async def test_what_fails_to_load_is_raised_and_passed_over_from_the_second_time_on() -> None:
    world = World(1, 2)
    world.errors[path("a", 2)] = [FAILED] * LOADS_TRIED
    for _ in range(LOADS_TRIED - 1):
        with pytest.raises(tinker.RequestFailedError):
            await world.restore()
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert restored.checkpoint.step == 1
    assert (world.noted, world.known.bad) == ({}, {})
    (skipped,) = [each for each in world.events if each.name == names.EVENT_CHECKPOINT_SKIPPED]
    assert skipped.fields[names.CHECKPOINT_PATH] == path("a", 2)
    assert skipped.run == "r"


async def test_where_all_fail_to_load_the_failure_is_raised_and_all_are_tried_again() -> None:
    world = World(1)
    world.errors[path("a", 1)] = [FAILED] * LOADS_TRIED
    for _ in range(LOADS_TRIED):
        with pytest.raises(tinker.RequestFailedError):
            await world.restore()
    assert world.known.skipped == {}
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert restored.checkpoint.step == 1


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), tinker.APIConnectionError(request=cast("Any", None))]
)
async def test_what_says_nothing_of_the_checkpoint_is_raised(error: Exception) -> None:
    world = World(1, 2)
    world.errors[path("a", 2)] = [error] * 3
    for _ in range(3):
        with pytest.raises(type(error)):
            await world.restore()
    assert (world.noted, world.known.skipped, world.made) == ({}, {}, [])


@pytest.mark.parametrize("error", [REFUSED, FAILED])
async def test_a_start_over_that_fails_is_raised(error: Exception) -> None:
    world = World()
    world.errors[None] = [error]
    with pytest.raises(tinker.RequestFailedError):
        await world.restore()
    assert world.noted == {}


# -- what was replaced meanwhile -----------------------------------------------------------------


def _save_again(world: World, client: Client) -> None:
    if client.source == path("a", 2):
        world.listed[1] = {**world.listed[1], "time": (NOW + timedelta(minutes=5)).isoformat()}


async def test_what_another_save_has_replaced_while_it_was_loaded_is_chosen_anew() -> None:
    world = World(1)
    world.save(2, by="user")
    times: list[Client] = []

    def once(client: Client) -> None:
        times.append(client)
        if len(times) == 1:
            _save_again(world, client)

    world.on_made = once
    restored = await world.restore()
    assert restored.checkpoint is not None
    assert restored.checkpoint.step == 2
    assert world.sources() == [path("a", 2)] * 2
    assert world.closed == world.made[:1]
    assert world.noted == {}


# -- the claim -----------------------------------------------------------------------------------


class _Lost(Guard):
    """A claim that is lost when a client is made, or before anything."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when

    async def check(self, *, for_certain: bool = False) -> None:
        assert not for_certain
        if self._when == "before":
            raise LeaseLost("it is another's", run="r")

    async def announce_run(self, run_id: str) -> None:
        assert run_id == "new-0"
        if self._when == "announced":
            raise LeaseLost("it is another's", run="r")


@pytest.mark.parametrize("when", ["before", "announced", "made"])
async def test_a_run_that_is_another_processs_by_now_is_not_restored(when: str) -> None:
    world = World(1, 2)
    world.guard = _Lost(when)
    if when == "made":
        world.errors[path("a", 2)] = [LeaseLost("it is another's", run="r")]
    with pytest.raises(LeaseLost):
        await world.restore()
    assert len(world.made) == (when == "announced")
    assert world.closed == world.made
    assert (world.noted, world.known.skipped) == ({}, {})


async def test_cancelling_it_closes_the_client_it_has_made() -> None:
    world = World(1, 2)
    restoring: list[asyncio.Task[Restored]] = []
    world.on_made = lambda _: restoring[0].cancel()
    restoring.append(asyncio.create_task(world.restore()))
    with pytest.raises(asyncio.CancelledError):
        await restoring[0]
    assert len(world.made) == 1
    assert world.closed == world.made


async def test_a_service_that_lists_nothing_of_what_it_has_stored_is_waited_for() -> None:
    world = World()
    world.known.stored[path("a", 1)] = "a", 1
    with pytest.raises(StatusUnavailable):
        await world.restore()
    assert world.made == []
