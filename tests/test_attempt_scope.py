"""What an attempt begins with, what its loop does, and how it is closed: with a made-up service."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import tinker
from made import record
from made_attempts import Attempt, World
from tinker.types import RequestErrorCategory

from tinker_recovery import CheckpointPolicy, StaleAttempt, UsageError
from tinker_recovery.checkpoints import Segment
from tinker_recovery.faults import RULES, DetectedBy, Kind
from tinker_recovery.run import scope as module
from tinker_recovery.service.client import CANARY
from tinker_recovery.service.sampler import SupervisedService

FAILED = tinker.RequestFailedError("lost", "1", RequestErrorCategory.Server)
INVALID = tinker.RequestFailedError("no", "1", RequestErrorCategory.User)
OWN = ZeroDivisionError("the loop's own")
LOST = RULES[Kind.CORRUPTED]


def in_another_process(attempt: Attempt) -> Attempt:
    attempt.home.pid = -1
    return attempt


# -- what it begins with --------------------------------------------------------------------------


async def test_an_attempt_begins_at_its_checkpoint_or_where_its_run_does() -> None:
    world = World(start=2)
    world.run.parent = "tinker://base/weights/2"
    first, second = world.attempt(), world.attempt(record(5))
    assert [each.start_step for each in (first, second)] == [2, 5]
    assert [each.client.step for each in (first, second)] == [2, 5]
    assert first.segment == Segment("a", first.id, 2, "tinker://base/weights/2")
    assert second.segment == Segment("a", second.id, 5, record(5).path)
    assert world.known == [(each.id, each.segment.parent) for each in (first, second)]


async def test_each_attempt_has_a_short_id_of_its_own_that_is_part_of_names() -> None:
    world = World()
    ids = {world.attempt().id for _ in range(20)}
    assert len(ids) == 20
    assert {len(id_) for id_ in ids} == {8}
    assert all(int(id_, 16) >= 0 for id_ in ids)


async def test_nothing_has_become_of_it_yet() -> None:
    attempt = World().attempt()
    assert (attempt.number, attempt.run_id, attempt.fault, attempt.faulty) == (3, "a", None, False)
    flags = attempt.entered, attempt.ending, attempt.finished, attempt.closed, attempt.blocking
    assert flags == (False,) * 5
    assert (attempt.left.is_set(), attempt.gone.is_set()) == (False, False)
    assert attempt.made_once == {}


@pytest.mark.parametrize(("origin", "counted"), [({}, 4), ({"updates_per_step": 2}, 2)])
async def test_an_iteration_is_one_update_unless_the_run_says_how_many(
    origin: dict[str, Any], counted: int
) -> None:
    world = World()
    world.run.history.origin = origin
    attempt = world.attempt()
    attempt.steps(4)
    assert attempt.client.step == counted


async def test_the_service_of_an_attempt_is_there_as_long_as_its_client_is() -> None:
    world = World()
    attempt = world.attempt(service=SimpleNamespace())
    assert isinstance(attempt.service, SupervisedService)
    with pytest.raises(UsageError, match="its ServiceClient is yours"):
        _ = world.attempt().service
    await attempt.close("success", "done")
    with pytest.raises(StaleAttempt, match="the attempt is over; make a new one in the attempt of"):
        _ = attempt.service


# -- what the loop reports ------------------------------------------------------------------------


async def test_what_is_reported_goes_to_the_run_to_who_else_wants_it_and_with_the_save() -> None:
    world = World()
    attempt = world.attempt(record(5))
    attempt.client.forward_backward([], "cross_entropy")
    attempt.report({"loss": 2, "lr": 0.5})
    attempt.client.optim_step(None)
    attempt.client.forward_backward([], "cross_entropy")
    assert world.run.metrics == {"loss": 2.0, "lr": 0.5}
    ((name, step, metrics, more),) = world.reported
    assert (name, step, metrics) == ("r", 5, {"loss": 2.0, "lr": 0.5})
    assert (more["attempt"], more["start_step"]) == (3, 5)
    (saved,) = attempt.sdk.saved
    assert any('"loss": 2' in value or '"loss":2' in value for value in saved.values()), saved


async def test_what_is_no_number_is_left_out_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    attempt = world.attempt()
    for _ in range(2):
        attempt.report({"loss": 1.0, "note": "fine"})
    attempt.report({"note": "fine", "other": None})
    said = [each.getMessage() for each in caplog.records]
    assert [each.partition(" is left out")[0] for each in said] == [
        "run r: report(note='fine')",
        "run r: report(other=None)",
    ]
    assert [metrics for _, _, metrics, _ in world.reported] == [{"loss": 1.0}] * 2 + [{}]
    assert world.run.history.no_metrics == {"note", "other"}


@pytest.mark.parametrize(
    ("guards", "metrics", "bad"),
    [
        (True, {"loss": math.nan}, True),
        (True, {"loss": math.inf}, True),
        (True, {"loss": 1.0}, False),
        (True, {"other": math.nan}, False),
        (False, {"loss": math.nan}, False),
    ],
)
async def test_a_loss_that_is_no_number_is_a_fault_if_the_policy_guards_it(
    metrics: dict[str, float], *, guards: bool, bad: bool
) -> None:
    world = World(guard_loss=guards)
    attempt = world.attempt(record(5))
    attempt.report(metrics)
    world.deliver()
    assert [(each.kind, each.failed_step) for each in world.faults] == (
        [(Kind.LOSS_NOT_FINITE, 5)] if bad else []
    ), "no step before the first"


async def test_a_bad_loss_is_of_the_step_of_which_the_loop_has_just_seen_the_results() -> None:
    world = World(guard_loss=True)
    attempt = world.attempt(record(5))
    attempt.steps(3)
    attempt.report({"loss": math.nan})
    world.deliver()
    await world.end()
    assert world.faults[0].failed_step == 7


async def test_an_epoch_counts_and_is_saved_though_the_loop_goes_idle_behind_it() -> None:
    world = World(checkpoints=CheckpointPolicy(strategy="epoch", save_best=False))
    attempt = world.attempt()
    attempt.steps()
    world.deliver()
    assert world.tasks == [], "no step of it is due"
    attempt.end_epoch()
    assert attempt.saver.epoch == 1
    world.deliver()
    assert len(world.tasks) == 1, "who looks whether it goes idle"
    await world.end()


async def test_a_canary_that_fails_once_the_run_has_none_any_more_is_no_fault() -> None:
    world = World()
    world.attempt().hooks.call_failed(CANARY, 1, INVALID)
    world.deliver()
    assert world.faults == []


async def test_a_forked_child_may_not_use_it() -> None:
    attempt = in_another_process(World().attempt())
    with pytest.raises(UsageError, match="which was forked from it"):
        attempt.report({})
    with pytest.raises(UsageError, match="which was forked from it"):
        attempt.end_epoch()
    with pytest.raises(UsageError, match="which was forked from it"):
        attempt.enter("attempt")
    assert (attempt.saver.epoch, attempt.entered) == (0, False)


async def test_a_step_is_left_out_where_the_run_says_so_and_counted() -> None:
    world = World()
    world.run.skipped = {1}
    attempt = world.attempt()
    assert attempt.skip(0) is False
    with pytest.raises(UsageError, match=r"skip\(1\) was asked while 0 steps are submitted"):
        attempt.skip(1)
    attempt.steps()
    assert attempt.skip(1) is True
    assert attempt.client.step == 2


# -- a loop that goes idle ------------------------------------------------------------------------


class Idle:
    """An attempt whose loop rests: each look at it is one of these, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: Callable[[Idle], object]) -> None:
        self.world = World()
        self.attempt = self.world.attempt()
        self.slept: list[float] = []
        self.saves: list[tuple[int, int]] = []
        """Of each save the step, and behind which look it was asked for."""
        self.looks = list(looks)
        self.client: Any = SimpleNamespace(
            step=1, oldest_open_step=None, save_while_idle=self._save
        )
        self.attempt.client = cast("Any", self.client)
        self.may_save = True
        saver = SimpleNamespace(may_save_at=lambda _: self.may_save)
        self.attempt.saver = cast("Any", saver)
        own = SimpleNamespace(sleep=self._sleep, Event=anyio.Event, CancelScope=anyio.CancelScope)
        monkeypatch.setattr(module, "anyio", own)

    async def _sleep(self, seconds: float) -> None:
        assert self.looks, "it does not end"
        self.slept.append(seconds)
        self.looks.pop(0)(self)

    def _save(self) -> None:
        self.saves.append((self.client.step, len(self.slept)))
        self.may_save = False

    async def run(self, step: int = 1) -> None:
        self.attempt.save_when_idle(step)
        await self.world.background()

    def submit(self, step: int) -> None:
        """The loop goes on to this step, which is due as well."""
        self.client.step = step
        self.attempt.save_when_idle(step)


def nothing(_: Idle) -> None:
    pass


def opens(of: Idle) -> None:
    of.client.oldest_open_step = 1


def ends(of: Idle) -> None:
    of.client.oldest_open_step = None


async def test_a_step_that_is_due_is_saved_once_the_loop_has_rested_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = Idle(monkeypatch, nothing, nothing, nothing)
    await of.run()
    assert of.saves == [(1, 2)], "what was just answered may have the loop set something first"
    assert sum(of.slept[:2]) <= 1.0
    of.may_save, of.looks = True, [nothing] * 3
    await of.run()
    assert of.saves == [(1, 2), (1, 5)], "it looks again if it is asked again"


async def test_as_long_as_requests_are_open_the_loop_does_not_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = Idle(monkeypatch, opens, nothing, nothing, ends, nothing, nothing)
    await of.run()
    assert of.saves == [(1, 5)]


async def test_a_loop_that_goes_on_is_looked_at_behind_its_next_step_by_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = Idle(monkeypatch, nothing, lambda of: of.submit(2), nothing, nothing, nothing)
    await of.run()
    assert of.saves == [(2, 4)]
    assert len(of.slept) == 5
    gone_on = Idle(monkeypatch, lambda of: setattr(of.client, "step", 2))
    await gone_on.run()
    assert (gone_on.saves, gone_on.looks) == ([], [])


async def test_a_step_that_is_due_no_more_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    of = Idle(monkeypatch, nothing, lambda of: setattr(of, "may_save", False))
    await of.run()
    assert of.saves == []


@pytest.mark.parametrize("before", [True, False])
async def test_a_body_that_is_left_saves_no_step_as_idle(
    monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    of = Idle(monkeypatch, nothing, lambda of: of.attempt.left.set())
    if before:
        of.attempt.left.set()
    of.attempt.save_when_idle(1)
    assert len(of.world.tasks) == (not before)
    await of.world.background()
    assert of.saves in ([], [(1, 2)])
    assert of.looks == ([] if not before else of.looks)


async def test_nobody_looks_whether_a_loop_rests_that_a_fault_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = Idle(monkeypatch)
    of.attempt.fault = cast("Any", "a fault")
    of.attempt.save_when_idle(1)
    assert of.world.tasks == []


# -- entering and leaving -------------------------------------------------------------------------


async def test_an_attempt_is_entered_once() -> None:
    attempt = World().attempt()
    attempt.enter("attempt")
    assert attempt.entered
    with pytest.raises(UsageError, match="attempt was entered before"):
        attempt.enter("attempt")
    assert attempt.close_body(None) is False


async def test_a_fault_cancels_the_body_and_its_cancellation_ends_there() -> None:
    attempt = World().attempt()
    attempt.enter("attempt")
    attempt.declare_fault(LOST, DetectedBy.POLL)
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await anyio.sleep_forever()
    assert await attempt.leave(cancelled.value) is True
    await anyio.lowlevel.checkpoint()


async def test_an_error_of_the_loops_own_is_raised_and_the_run_is_over_with_it() -> None:
    world = World()
    attempt = world.attempt()
    attempt.enter("attempt")
    assert await attempt.leave(OWN) is False
    assert world.over == [OWN]


@pytest.mark.parametrize("before", [True, False])
async def test_of_attempts_that_share_a_body_a_fault_of_any_ends_it(*, before: bool) -> None:
    world = World()
    first, second = world.attempt(), world.attempt()
    if before:
        second.declare_fault(LOST, DetectedBy.POLL)
    first.share_body([second])
    assert first.is_cancelled() == before
    first.enter("group")
    if not before:
        second.declare_fault(LOST, DetectedBy.POLL)
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await anyio.sleep_forever()
    assert first.close_body(cancelled.value) is True
    world.attempt().share_body([world.attempt()])


async def test_what_is_open_at_the_end_is_waited_for_and_what_it_failed_with_is_returned() -> None:
    world = World()
    attempt = world.attempt()
    attempt.steps(answered=False)
    settling = asyncio.create_task(attempt.settle())
    await anyio.wait_all_tasks_blocked()
    assert not settling.done()
    assert len(attempt.sdk.saved) == 1, "the last step is saved"
    attempt.sdk.answer()
    assert await settling is None
    assert world.settled == 1, "whether the service has lost anything is settled too"
    world.settling = FAILED
    assert await attempt.settle() is FAILED
    failing = world.attempt()
    failing.steps(answered=False)
    failing.sdk.submitted[0].set_exception(FAILED)
    failing.sdk.answers = True
    failing.sdk.answer()
    assert await failing.settle() is FAILED
    await world.end()


# -- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [True, False])
async def test_a_body_in_a_thread_is_interrupted_by_closing_its_client(*, fault: bool) -> None:
    world = World(close_timeout_s=7.0)
    attempt = world.attempt()
    if fault:
        attempt.declare_fault(LOST, DetectedBy.POLL)
    await attempt.interrupt()
    assert world.closed == [("errored" if fault else "interrupted", "interrupted", 7.0)]


async def test_a_client_is_closed_once_whoever_asks_for_it_and_then_of_no_more_use() -> None:
    world = World()
    attempt = world.attempt()
    attempt.made_once["a"] = object()
    goes_on = anyio.Event()
    world.closing = goes_on.wait
    closing = asyncio.create_task(attempt.close("success", "done"))
    await anyio.wait_all_tasks_blocked()
    assert attempt.closed
    await attempt.close("errored", "again")
    with pytest.raises(StaleAttempt, match="the attempt is over"):
        attempt.steps()
    assert not attempt.gone.is_set()
    goes_on.set()
    await closing
    await attempt.close("errored", "again")
    assert [(status, detail) for status, detail, _ in world.closed] == [("success", "done")]
    assert attempt.gone.is_set()
    assert (attempt.connection, attempt.made_once) == (None, {})
    with pytest.raises(StaleAttempt):
        _ = attempt.client.training


async def test_a_close_comes_to_its_end_though_who_asked_for_it_is_cancelled() -> None:
    world = World()
    attempt = world.attempt()
    goes_on = anyio.Event()
    world.closing = goes_on.wait
    closing = asyncio.create_task(attempt.close("success", "done"))
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    await anyio.wait_all_tasks_blocked()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (attempt.gone.is_set(), attempt.connection) == (True, None)


async def test_what_is_open_at_a_close_is_ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed session answers within a moment, or never: each request left holds a task."""
    assert module.END_S < 1
    monkeypatch.setattr(module, "END_S", 0.01)
    world = World()
    attempt = world.attempt()
    attempt.steps(answered=False)
    answered, *others = attempt.sdk.submitted

    async def answer() -> None:
        await attempt.gone.wait()
        answered.set_result(SimpleNamespace(metrics={}))

    answering = asyncio.create_task(answer())
    await attempt.close("interrupted", "done")
    await answering
    assert not answered.cancelled()
    assert others
    assert all(each.cancelled() for each in others)


async def test_errors_that_are_kept_hold_nothing_of_the_loop() -> None:
    def raised(error: BaseException) -> BaseException:
        try:
            raise error
        except type(error):
            return error

    world = World()
    for attempt in (world.attempt(), world.attempt()):
        attempt.forget_frames()
        if world.faults:
            attempt.declare_fault(LOST, DetectedBy.POLL)
            attempt.forget_frames()
        else:
            error = raised(ValueError())
            attempt.declare_fault(LOST, DetectedBy.CALL, error)
            assert error.__traceback__ is not None
            attempt.forget_frames()
            assert error.__traceback__ is None
        of_request, of_sample = raised(KeyError()), raised(IndexError())
        attempt.client.errors.note("optim_step", of_request)
        attempt.sampling.failed.append(of_sample)
        attempt.forget_frames()
        assert (of_request.__traceback__, of_sample.__traceback__) == (None, None)
