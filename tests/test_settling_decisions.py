"""The end of a body: what is waited for, saved and raised, with an attempt made up here."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tinker_recovery.run import settling
from tinker_recovery.run.settling import finish_open, save_before_leaving

OWN = ValueError("of a request")
SAVING = ValueError("of a save")
OTHER = ValueError("of another save")


def nothing() -> None:
    """What happens unless a test says otherwise."""


class World:
    """An attempt whose client is at step 9, with one request open."""

    def __init__(self, **facts: Any) -> None:
        self.log: list[Any] = []
        self.corrupted = False
        self.free_at = 9
        """The step at which nothing has followed yet."""
        self.draining: list[Callable[[], Any]] = []
        """What each wait for what is open comes to, in turn; nothing behind the last."""
        self.on_deliver: Callable[[], object] = nothing
        self.refusal = SimpleNamespace(at_end=False, waiting=None, error=None)
        self.client = SimpleNamespace(
            step=9,
            open_requests=1,
            failed=[],
            failed_saves=[],
            errors=SimpleNamespace(unseen=[]),
            save=lambda due: self.log.append(due(9)),
            drain=self._drain,
        )
        self.saver = SimpleNamespace(
            due=lambda step, *, end: ("due", step, end),
            last=lambda step: ("last", step),
            failing=(0, 9),
            awaits_state=False,
            may_save_at=lambda step: step == self.free_at,
        )
        self.run = SimpleNamespace(
            name="r",
            policy=SimpleNamespace(
                enabled=facts.get("enabled", True),
                create_timeout_s=facts.get("create_timeout_s", 30.0),
                checkpoints=SimpleNamespace(save_on_stop_s=facts.get("limit_s", 30.0)),
            ),
            signals=SimpleNamespace(requested=True),
            history=SimpleNamespace(refused_saves=0),
            mailbox=SimpleNamespace(deliver=self._deliver),
            is_corrupted=self._is_corrupted,
        )
        self.scope: Any = SimpleNamespace(
            run=self.run,
            client=self.client,
            saver=self.saver,
            refusal=self.refusal,
            fault=None,
            closed=False,
            ending=False,
            finished=False,
            looked_into_save=None,
        )

    async def _drain(self) -> None:
        self.log.append("waited")
        if self.draining and (waiting := self.draining.pop(0)()) is not None:
            await waiting

    def _deliver(self) -> None:
        self.log.append("delivered")
        self.on_deliver()

    async def _is_corrupted(self) -> bool:
        self.log.append("asked")
        return self.corrupted

    async def finish(self) -> BaseException | None:
        """Come to the end of the body; what is raised there."""
        try:
            await finish_open(self.scope)
        except ValueError as error:
            return error
        return None


def fails(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


END = ("due", 9, True)


# -- a loop that has ended -----------------------------------------------------------------------


async def test_what_is_open_is_waited_for_and_a_save_that_was_held_back_comes_behind_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    assert await world.finish() is None
    assert world.log == [END, "waited", END, "waited", "delivered"]
    assert (world.scope.finished, caplog.messages) == (False, []), "leaving the body says so"


async def test_why_a_save_has_failed_is_known_before_the_run_is_over() -> None:
    world = World()
    known = world.scope.looked_into_save = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(world.finish)
        await anyio.wait_all_tasks_blocked()
        assert world.log[-1] == "delivered"
        world.client.failed_saves.append(ValueError("lost"))
        known.set()
    assert world.log[-1] == "asked"


async def test_but_not_for_ever() -> None:
    world = World(create_timeout_s=0.0)
    world.scope.looked_into_save = anyio.Event()
    with anyio.fail_after(5):
        assert await world.finish() is None


async def test_where_nothing_is_open_nothing_is_waited_for() -> None:
    world = World()
    world.client.open_requests = 0
    assert await world.finish() is None
    assert world.log == [END, END, "delivered"]


async def test_an_attempt_at_fault_saves_nothing_more_and_raises_nothing_of_its_own() -> None:
    world = World()
    world.scope.fault = object()
    world.client.failed_saves, world.client.errors.unseen = [SAVING], [OWN]
    world.corrupted = True
    world.run.history.refused_saves, world.saver.failing = 1, (1, 3)
    assert await world.finish() is None
    assert world.log == ["waited", "waited", "delivered"]


async def test_a_wait_that_takes_long_is_said_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settling, "DRAIN_WARNING_S", 0.0)
    world = World()
    world.draining = [anyio.sleep_forever, anyio.sleep_forever]
    assert await world.finish() is None
    assert world.log == [END, "waited", "waited", "waited", END, "waited", "delivered"]
    said = "run r: the loop has ended, and 1 request is still open at the service"
    assert caplog.messages == [said, said]


@pytest.mark.parametrize("error", [None, SAVING])
async def test_a_last_save_that_nobody_answers_or_that_is_refused_ends_the_wait_for_all(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What is behind it is nothing of the loop's, and may never be answered."""
    world = World()

    def refused() -> Any:
        world.refusal.at_end, world.refusal.error = True, error
        if error is not None:
            raise error
        world.refusal.waiting.cancel()
        return anyio.sleep_forever()

    world.draining = [refused]
    assert await world.finish() is None
    more = [] if error is None else ["delivered", "asked"]
    assert world.log == [END, "waited", *more, "delivered"]
    assert world.scope.finished, "what fails from here on is no fault"
    assert caplog.messages == []


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("corrupted", [True, False])
async def test_a_refused_last_save_is_raised_only_of_a_run_that_is_corrupted(
    *, corrupted: bool, enabled: bool
) -> None:
    """That it was refused may be known only once what was posted is delivered."""
    world = World(enabled=enabled)
    world.corrupted, world.refusal.error = corrupted, SAVING

    def noted() -> None:
        world.refusal.at_end = True

    world.on_deliver = noted
    world.draining = [fails(SAVING)]
    raised = await world.finish()
    assert raised is (SAVING if corrupted and enabled else None)
    assert world.log.count("asked") == enabled
    assert world.scope.finished is (raised is None)


@pytest.mark.parametrize(("at_end", "same"), [(False, True), (True, False), (False, False)])
async def test_any_other_failure_is_raised_once_what_was_posted_is_delivered(
    *, at_end: bool, same: bool
) -> None:
    world = World()
    world.refusal.error = OWN if same else SAVING

    def noted() -> None:
        world.refusal.at_end = at_end

    world.on_deliver = noted
    world.draining = [fails(OWN)]
    assert await world.finish() is OWN
    assert world.log == [END, "waited", "delivered"]


async def test_a_request_that_nobody_awaited_fails_the_run_with_what_failed_first() -> None:
    world = World()
    world.client.errors.unseen = [OWN, OTHER]
    assert await world.finish() is OWN
    without = World(enabled=False)
    without.client.errors.unseen = [OWN]
    without.client.failed_saves, without.corrupted = [SAVING], True
    assert await without.finish() is None, "with recovery off it is the loop's own"
    assert "asked" not in without.log


@pytest.mark.parametrize("unseen", [[], [OWN]])
@pytest.mark.parametrize("corrupted", [True, False])
async def test_a_save_that_failed_is_raised_only_of_a_run_that_is_corrupted(
    unseen: list[Exception], *, corrupted: bool
) -> None:
    world = World()
    world.client.failed_saves, world.client.errors.unseen = [SAVING, OTHER], unseen
    world.corrupted = corrupted
    expected = OTHER if corrupted else next(iter(unseen), None)
    assert await world.finish() is expected
    assert world.log[-2:] == ["delivered", "asked"]


@pytest.mark.parametrize(
    ("refused", "stored", "said"), [(1, 6, True), (1, 8, True), (1, 9, False), (0, 6, False)]
)
async def test_a_loop_whose_end_no_checkpoint_has_hears_of_it(
    refused: int, stored: int, caplog: pytest.LogCaptureFixture, *, said: bool
) -> None:
    world = World()
    world.run.history.refused_saves, world.saver.failing = refused, (1, stored)
    assert await world.finish() is None
    lost = f"run r has come to its end, and its steps {stored + 1} to 9 are in no checkpoint"
    assert [message[: len(lost)] for message in caplog.messages] == [lost] * said


# -- a process that was asked to stop ------------------------------------------------------------


async def test_the_last_step_is_saved_on_the_way_out_whatever_the_schedule_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    await save_before_leaving(world.scope)
    assert world.scope.ending
    assert world.log == [("last", 9), "waited", "delivered"] * 2
    said = (
        "run r: stopping; step 9 is saved first, for 30 s at most. A second Ctrl-C or SIGTERM does "
        "not wait for it"
    )
    assert caplog.messages == [said, said]
    caplog.clear()
    world.client.open_requests = 0
    await save_before_leaving(world.scope)
    assert caplog.messages == []


@pytest.mark.parametrize("why", ["not asked to stop", "closed", "off", "at fault", "failed"])
async def test_nothing_is_saved_of_who_was_not_stopped_or_is_in_no_state_to_be_saved(
    why: str,
) -> None:
    world = World(limit_s=None if why == "off" else 30.0)
    world.run.signals.requested = why != "not asked to stop"
    world.scope.closed = why == "closed"
    world.scope.fault = object() if why == "at fault" else None
    world.client.failed = [("optim_step", OWN)] if why == "failed" else []
    await save_before_leaving(world.scope)
    assert world.log == []
    assert world.scope.ending is (why in {"at fault", "failed"})


async def test_what_turns_out_to_have_failed_meanwhile_is_not_saved_a_second_time() -> None:
    world = World()
    world.on_deliver = lambda: setattr(world.scope, "fault", object())
    await save_before_leaving(world.scope)
    assert world.log == [("last", 9), "waited", "delivered"]


@pytest.mark.parametrize(
    ("awaits", "free_at", "said"), [(True, 9, True), (True, 8, False), (False, 9, False)]
)
async def test_a_step_whose_state_is_not_set_yet_is_not_saved_and_the_loop_hears_how_it_would_be(
    free_at: int, caplog: pytest.LogCaptureFixture, *, awaits: bool, said: bool
) -> None:
    world = World()
    world.saver.awaits_state, world.free_at = awaits, free_at
    await save_before_leaving(world.scope)
    assert any("had not set loop_state for it yet" in each for each in caplog.messages) is said
    assert world.log.count("waited") == (0 if said else 2)


async def test_whatever_fails_then_only_the_log_hears_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.draining = [fails(SAVING)]
    await save_before_leaving(world.scope)
    assert world.log == [("last", 9), "waited"]
    assert caplog.messages[1:] == ["run r: its last step is not saved: of a save"]


async def test_what_is_not_saved_within_the_policys_limit_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(limit_s=0.0)
    world.draining = [anyio.sleep_forever]
    await save_before_leaving(world.scope)
    assert world.log == [("last", 9), "waited"]
    assert caplog.messages[1:] == ["run r: step 9 was not saved within 0 s"]


async def test_it_is_saved_though_the_loop_around_it_is_cancelled() -> None:
    world = World()
    world.draining = [anyio.lowlevel.checkpoint, anyio.lowlevel.checkpoint]
    with anyio.CancelScope() as around:
        around.cancel()
        await save_before_leaving(world.scope)
    assert world.log == [("last", 9), "waited", "delivered"] * 2
