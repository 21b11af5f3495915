"""What an attempt takes for a fault, and what a fault ends: an attempt on a made-up service."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import CancelledError, Future

import anyio
import pytest
import tinker
from made import record
from made_attempts import Attempt, World
from tinker.types import RequestErrorCategory

from tinker_recovery import StaleAttempt
from tinker_recovery.errors import NonFiniteLoss
from tinker_recovery.faults import RULES, DetectedBy, Kind

FAILED = tinker.RequestFailedError("lost", "1", RequestErrorCategory.Server)
INVALID = tinker.RequestFailedError("no", "1", RequestErrorCategory.User)
STALE = StaleAttempt("it is over")
OWN = ZeroDivisionError("the loop's own")
LOST = RULES[Kind.CORRUPTED]


def faulty(world: World) -> Attempt:
    attempt = world.attempt()
    attempt.declare_fault(LOST, DetectedBy.POLL)
    return attempt


def wrapped(error: BaseException) -> BaseException:
    """What a loop makes of an error that it does not know."""
    made = ValueError("a step failed")
    made.__cause__ = error
    return made


# -- what leaves the body -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "corrupted", "kind", "recovers"),
    [
        (OWN, False, None, False),
        (FAILED, False, Kind.REQUEST_FAILED, True),
        (FAILED, True, Kind.REQUEST_FAILED, True),
        (INVALID, False, Kind.USER_ERROR, False),
        (INVALID, True, Kind.CORRUPTED, True),
        (asyncio.CancelledError(), False, Kind.CANCELLED, True),
        (BaseExceptionGroup("", [STALE, FAILED]), False, None, False),
    ],
)
async def test_an_error_that_leaves_the_body_is_a_fault_if_the_loop_is_not_to_blame(
    error: BaseException, kind: Kind | None, *, corrupted: bool, recovers: bool
) -> None:
    """What the service refuses, it may refuse because the run is corrupted: that is asked."""
    world = World()
    world.corrupted = corrupted
    attempt = world.attempt()
    assert await attempt.belongs_to_incident(error) is recovers
    assert [fault.kind for fault in world.faults] == ([] if kind is None else [kind])
    if attempt.fault is not None:
        assert (attempt.fault.error, attempt.fault.detected_by) == (error, DetectedBy.CALL)
    assert attempt.faulty is (kind is not None)
    assert world.asked_status == (error is INVALID)


async def test_with_recovery_off_no_error_is_held_back() -> None:
    world = World(enabled=False)
    assert await world.attempt().belongs_to_incident(FAILED) is False
    assert world.faults == []


async def test_who_is_cancelled_from_outside_is_not_recovered_from_that() -> None:
    attempts = World().attempt(), faulty(World())

    async def leave(attempt: Attempt) -> bool:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError as error:
            return await attempt.belongs_to_incident(error)
        return True

    for attempt in attempts:
        task = asyncio.create_task(leave(attempt))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        assert await task is False


OUTLIVED = (
    r"^run 'r' was stopped at step 2: its Supervisor has ended while its loop was under way\. Wait "
    r"for the loop inside `async with Supervisor\(\)`$"
)


async def test_a_loop_that_outlives_its_supervisor_is_told_so_and_what_to_write() -> None:
    """Its requests were cancelled as that ended: there is no next attempt to wait for."""
    world = World()
    attempt = world.attempt()
    attempt.steps(2)
    attempt.sdk.answers = True
    assert await attempt.settle() is None
    world.run.ended = True
    outlived = await attempt.settle()
    assert isinstance(outlived, StaleAttempt)
    with pytest.raises(StaleAttempt, match=OUTLIVED):
        raise outlived
    world.settling = FAILED
    assert await attempt.settle() is FAILED, "that says more"
    cancelled = asyncio.CancelledError()
    with pytest.raises(StaleAttempt, match=OUTLIVED) as caught:
        await attempt.belongs_to_incident(cancelled)
    assert caught.value.__cause__ is cancelled
    assert await attempt.belongs_to_incident(FAILED) is False
    assert world.faults == []
    await world.end()


async def test_who_is_cancelled_from_outside_as_the_supervisor_ends_is_told_nothing_else() -> None:
    world = World()
    world.run.ended = True
    attempt = world.attempt()
    await asyncio.create_task(_cancelled_in(attempt, expected=False))


async def _cancelled_in(attempt: Attempt, *, expected: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await anyio.sleep_forever()
    assert await attempt.belongs_to_incident(cancelled.value) is expected
    task.uncancel()


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (STALE, True),
        (wrapped(STALE), True),
        (CancelledError(), True),
        (asyncio.CancelledError(), True),
        (OWN, False),
        (BaseExceptionGroup("", [STALE, asyncio.CancelledError()]), True),
        (BaseExceptionGroup("", [STALE, FAILED]), True),
        (BaseExceptionGroup("", [STALE, OWN]), False),
        (BaseExceptionGroup("", [OWN, STALE]), False),
        (BaseExceptionGroup("", [STALE, INVALID]), False),
        (BaseExceptionGroup("", [STALE, BaseExceptionGroup("", [STALE])]), True),
    ],
)
async def test_what_a_fault_leaves_behind_in_the_body_belongs_to_it(
    error: BaseException, *, follows: bool
) -> None:
    """Each part of a group has to: the loop's own error is never held back for another's sake."""
    world = World()
    assert await faulty(world).belongs_to_incident(error) is follows
    assert [fault.kind for fault in world.faults] == [Kind.CORRUPTED], "of one incident, one fault"


# -- declaring it ---------------------------------------------------------------------------------


async def test_a_fault_says_what_was_lost_where_and_how_long_nothing_had_been_heard() -> None:
    world = World()
    attempt = world.attempt(record(5))
    attempt.steps(2)
    attempt.steps(answered=False)
    world.now_s += 3
    attempt.declare_fault(LOST, DetectedBy.POLL, OWN)
    (fault,) = world.faults
    assert (fault.run, fault.attempt, fault.run_id) == ("r", 3, "a")
    assert (fault.rule, fault.detected_by, fault.error) == (LOST, DetectedBy.POLL, OWN)
    assert (fault.step, fault.failed_step, fault.silent_s) == (8, 7, 3)
    assert attempt.fault is fault
    attempt.declare_fault(RULES[Kind.SILENCE], DetectedBy.SILENCE)
    assert (world.faults, attempt.fault) == ([fault], fault), "what comes of it is the same one"


async def test_who_declares_a_fault_may_know_better_which_step_it_is_and_how_long_it_was_silent(
) -> None:  # fmt: skip
    world = World()
    attempt = world.attempt()
    attempt.steps(answered=False)
    attempt.declare_fault(LOST, DetectedBy.CALL, failed_step=4, silent_s=0.5)
    (fault,) = world.faults
    assert (fault.failed_step, fault.silent_s) == (4, 0.5)


@pytest.mark.parametrize(("sampled_s", "silent_s"), [(None, 0.0), (2.0, 2.0), (9.0, 5.0)])
async def test_where_nothing_trains_it_was_silent_as_long_as_the_samples_were(
    sampled_s: float | None, silent_s: float
) -> None:
    """And no longer than since the training made progress."""
    world = World()
    attempt = world.attempt()
    now_s = world.now_s
    if sampled_s is not None:
        attempt.sampling.watch(Future())
    attempt.progress.begin()
    world.now_s = now_s + 5
    if sampled_s == 2.0:
        world.now_s -= 2
        attempt.sampling.paused()
        world.now_s += 2
    attempt.declare_fault(LOST, DetectedBy.POLL)
    assert world.faults[0].silent_s == silent_s


@pytest.mark.parametrize("why", ["it has finished", "the run has ended"])
async def test_what_fails_of_what_is_over_is_no_fault(why: str) -> None:
    world = World()
    attempt = world.attempt()
    attempt.finished = why == "it has finished"
    world.run.ended = why == "the run has ended"
    attempt.declare_fault(LOST, DetectedBy.POLL)
    assert (world.faults, attempt.fault, attempt.is_cancelled()) == ([], None, False)


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_fault_ends_the_body_and_refuses_its_clients_unless_recovery_is_off(
    *, enabled: bool
) -> None:
    world = World(enabled=enabled)
    attempt = faulty(world)
    assert len(world.faults) == 1, "it is reported all the same"
    assert attempt.is_cancelled() == enabled
    if not enabled:
        attempt.steps()
        attempt.sampling.check_live("a sampler")
        return
    with pytest.raises(StaleAttempt, match=r"the attempt ended by a fault \(corrupted\)"):
        attempt.steps()
    with pytest.raises(StaleAttempt, match=r"the attempt ended by a fault \(corrupted\)"):
        attempt.sampling.check_live("a sampler")


async def test_a_loss_that_is_no_number_is_a_fault_of_its_step() -> None:
    world = World()
    attempt = world.attempt()
    attempt.steps(3)
    attempt.declare_bad_loss(1, math.nan)
    (fault,) = world.faults
    assert (fault.kind, fault.failed_step) == (Kind.LOSS_NOT_FINITE, 1)
    assert isinstance(fault.error, NonFiniteLoss)
    assert fault.error.step == 1


# -- suspicions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("corrupted", [True, False])
async def test_a_save_that_failed_is_a_fault_only_of_a_run_that_is_corrupted(
    *, corrupted: bool
) -> None:
    world = World()
    world.corrupted = corrupted
    attempt = world.run.current = world.attempt()
    attempt.look_into_failed_save(FAILED)
    await world.background()
    found = [(fault.kind, fault.detected_by, fault.error) for fault in world.faults]
    assert found == ([(Kind.CORRUPTED, DetectedBy.CALL, FAILED)] if corrupted else [])
    assert world.looked_into == ([] if corrupted else [attempt]), "it may have been restarted"
    world.run.current = None
    attempt.look_into_failed_save(FAILED)
    await world.background()
    assert len(world.looked_into) == (not corrupted), "of one that is over, nothing is asked"


SUSPECTED = RULES[Kind.CANCELLED]


async def test_a_loop_that_stays_with_a_client_that_has_a_gap_is_not_left_to_it() -> None:
    world = World()
    attempt = world.attempt()
    attempt.suspect_fault(SUSPECTED, FAILED, 4)
    assert world.faults == [], "it may be leaving with this very error"
    await world.background()
    (fault,) = world.faults
    assert (fault.rule, fault.detected_by) == (SUSPECTED, DetectedBy.CALL)
    assert (fault.error, fault.failed_step) == (FAILED, 4)
    assert 0 < sum(world.slept) < 1


async def test_a_loop_that_leaves_meanwhile_has_no_fault_declared_on_it() -> None:
    world = World()
    attempt = world.attempt()
    attempt.suspect_fault(RULES[Kind.USER_ERROR], INVALID, 4)
    world.on_sleep = attempt.left.set
    await world.background()
    assert (world.faults, world.asked_status) == ([], 0)
    later = world.attempt()
    world.on_sleep = lambda: None
    world.on_status = later.left.set
    later.suspect_fault(RULES[Kind.USER_ERROR], INVALID, 4)
    await world.background()
    assert (world.faults, world.asked_status) == ([], 1)


async def test_what_the_service_refuses_is_suspected_to_be_of_a_run_that_it_has_marked() -> None:
    world = World()
    world.corrupted = True
    world.attempt().suspect_fault(RULES[Kind.USER_ERROR], INVALID, 4)
    await world.background()
    assert [fault.kind for fault in world.faults] == [Kind.CORRUPTED]


@pytest.mark.parametrize("why", ["it has been left", "recovery is off"])
async def test_nothing_is_suspected_of_a_body_that_is_not_recovered(why: str) -> None:
    world = World(enabled=why != "recovery is off")
    world.corrupted = True
    attempt = world.attempt()
    if why == "it has been left":
        attempt.left.set()
    attempt.suspect_fault(SUSPECTED, FAILED, 4)
    attempt.look_into_failed_save(FAILED)
    assert (world.tasks, world.slept, world.asked_status) == ([], [], 0)


# -- what is known to be sound --------------------------------------------------------------------


async def test_what_is_sound_is_bounded_by_each_that_may_know_of_a_doubt() -> None:
    world = World()
    attempt = world.attempt(record(5))
    attempt.steps(3)
    assert attempt.sound_step == 8
    attempt.steps(answered=False)
    assert attempt.sound_step == 8, "the ninth is open"
    attempt.sdk.answer()
    world.run.rollbacks.sound_to = 6
    assert attempt.sound_step == 6
    assert isinstance(attempt.sound_step, int)
