"""What an attempt saves, when, and what its checkpoints say: the Saver, with a run made up."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made import LINEAGE, record, segment, stored

from tinker_recovery import CheckpointPolicy, UsageError
from tinker_recovery.checkpoints import Segment
from tinker_recovery.checkpoints.naming import SaveName, mark_of
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.run.boundary import ASK_AGAIN_S
from tinker_recovery.run.history import OFF_AFTER, RunHistory
from tinker_recovery.run.saver import Saver
from tinker_recovery.run.saves_together import SavesTogether
from tinker_recovery.service import SaveRequest
from tinker_recovery.service.metadata import ServiceMetadata

ATTEMPT = "01234567"


class World:
    """A run, its service and its clock; :attr:`saver` is that of its attempt."""

    def __init__(self, **given: Any) -> None:
        if "strategy" not in given:
            given = {"strategy": "steps", "save_every": 2, "save_best": False, **given}
        self.now_s = 100.0
        self.looks_at_the_clock = 0
        self.sound_step = 10**9
        self.metadata = ServiceMetadata()
        self.metadata.keeps = given.pop("keeps", "kept")
        self.history = RunHistory(cast("Any", None), {"seed": 3}, "job-1")
        self.history.saves = given.pop("together", self.history.saves)
        self.history.saved.update(given.pop("saved", {}))
        name = given.pop("name", "named")
        start, checkpoint = given.pop("start", 0), given.pop("checkpoint", None)
        own = Segment("a", ATTEMPT, start, None if checkpoint is None else checkpoint.path)
        run: Any = SimpleNamespace(
            policy=SimpleNamespace(
                enabled=given.pop("enabled", True),
                checkpoints=CheckpointPolicy(**given),
            ),
            lineage=LINEAGE,
            given_name=name,
            collaborators=SimpleNamespace(reader=SimpleNamespace(metadata=self.metadata)),
            origin=object(),
            history=self.history,
            checkpoints=CheckpointState("named"),
            clock=SimpleNamespace(monotonic=self._monotonic),
            segments=[segment("before"), own] if start else [own],
        )
        self.run = run
        trail: Any = SimpleNamespace(followed="trail")
        self.saver = Saver(run, own, checkpoint, lambda: self.sound_step, trail)

    def _monotonic(self) -> float:
        self.looks_at_the_clock += 1
        return self.now_s

    def step(self, step: int, state: object = None, *, goes_on: bool = True) -> SaveRequest | None:
        """An optimizer step, what the loop sets behind it, and the next training request."""
        self.saver.step_submitted(step, 1)
        if state is not None:
            self.saver.set_loop_state(state)
        return self.saver.training_continues(step) if goes_on else None

    def awaits_state(self) -> bool:
        return self.saver.awaits_state

    def steps(self, first: int, last: int, *, store: bool = True) -> list[int]:
        """The steps of these that were saved."""
        saved = []
        for step in range(first, last + 1):
            if self.step(step) is not None:
                saved.append(step)
                if store:
                    self.saver.stored(step)
        return saved


def begun(**given: Any) -> World:
    """A world whose loop has submitted its first forward pass."""
    world = World(**given)
    assert world.saver.training_continues(0) is None
    return world


def state_of(request: SaveRequest | None) -> object:
    assert request is not None
    assert request.metadata is not None
    return json.loads(request.metadata.get("tinker_recovery.loop_state", "null"))


def named(request: SaveRequest | None) -> SaveName:
    assert request is not None
    read = SaveName.read(request.name)
    assert read is not None
    return read


# -- when it saves -------------------------------------------------------------------------------


def test_each_step_is_saved_that_the_schedule_wants_and_asked_for_once() -> None:
    world = begun()
    assert world.steps(1, 6) == [2, 4, 6]
    assert world.saver.training_continues(6) is None, (
        "inside the next step there is nothing to save"
    )
    assert world.saver.due(6) is None


def test_the_client_is_asked_to_stop_only_where_a_save_may_be_due() -> None:
    world = begun()
    assert not world.saver.step_submitted(1, 1)
    world.saver.training_continues(1)
    assert world.saver.step_submitted(2, 1)
    assert world.saver.training_continues(2) is not None
    assert world.saver.step_submitted(3, 1), "one is in flight: its end may make another due"
    world.saver.training_continues(3)
    world.saver.stored(2)
    assert world.saver.step_submitted(4, 1)
    assert not world.saver.step_submitted(5, 1), "that of step 4 was not asked for"


def test_in_a_group_any_step_may_become_due_for_another() -> None:
    world = begun()
    assert not world.saver.step_submitted(1, 1)
    world.history.saves.begin([world.saver, Saver.__new__(Saver)])
    assert world.saver.step_submitted(1, 1)


def group(one: dict[str, Any], two: dict[str, Any]) -> tuple[World, World]:
    """Two runs that save the same steps, and have begun."""
    together = SavesTogether()
    worlds = begun(together=together, **one), begun(together=together, **two)
    together.begin([world.saver for world in worlds])
    return worlds


def test_a_step_is_left_out_once_though_a_run_is_not_asked_about_each_of_its_group() -> None:
    one, two = group({"save_every": 1000, "save_at_steps": (5,)}, {"max_saves_in_flight": 1})
    for step in range(1, 6):
        for world in (one, two):
            world.step(step)
    assert two.saver.is_full
    assert (one.history.left_out, two.history.left_out) == (0, 1)


def test_no_run_saves_a_step_that_another_of_its_group_has_trained_past() -> None:
    one, two = group({"save_every": 1000}, {"save_every": 1000, "save_every_s": 10.0})
    one.step(1)
    two.now_s += 11.0
    assert two.step(1) is None
    assert one.step(2) is not None
    assert two.step(2) is not None


def test_a_step_that_the_user_saved_and_is_saved_again_is_not_left_out() -> None:
    world = begun(max_saves_in_flight=1)
    world.steps(1, 3, store=False)
    world.saver.step_submitted(4, 1)
    world.saver.metadata(4, "user")
    world.saver.end_epoch()
    assert named(world.saver.training_continues(4)).again == 1
    assert world.history.left_out == 0


def test_a_step_that_is_due_while_too_many_saves_are_under_way_is_left_out_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = begun(max_saves_in_flight=1)
    assert world.steps(1, 2, store=False) == [2]
    world.now_s += 5.0
    world.saver.stored(2)
    assert world.steps(3, 7, store=False) == [4]
    (said,) = caplog.messages
    assert "step 6 is due and not saved, as 1 save is under way; the last one took 5.0 s" in said
    assert (
        "left out so far: 1. Save less often, or allow more at once: max_saves_in_flight=1" in said
    )
    assert world.steps(8, 23, store=False) == []
    assert world.history.left_out == 9
    assert world.steps(24, 24, store=False) == []
    assert len(caplog.messages) == 2, "the tenth"


def test_before_the_first_save_has_ended_its_time_is_not_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = begun(max_saves_in_flight=1)
    world.steps(1, 4, store=False)
    assert "as 1 save is under way. Steps" in caplog.text


@pytest.mark.parametrize("keeps", ["unknown", "kept", "forgotten", "refused"])
def test_while_metadata_may_be_refused_one_save_is_under_way_at_a_time(
    keeps: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = begun(keeps=keeps, max_saves_in_flight=3)
    saved = world.steps(1, 4, store=False)
    assert saved == ([2] if keeps == "unknown" else [2, 4])
    assert world.saver.is_full == (keeps == "unknown")
    assert world.saver.may_begin(5) == (keeps != "unknown")
    alone = "Save less often, or with save_at_start=True: the first save, which shows"
    assert (alone in caplog.text) == (keeps == "unknown")
    world.saver.stored(2)
    assert world.steps(5, 10, store=False) == ([6, 8, 10] if keeps == "unknown" else [6, 8])
    assert world.saver.is_full
    assert not world.saver.may_begin(11)


def test_a_step_can_be_saved_that_is_newer_than_the_newest_saved() -> None:
    world = begun()
    world.steps(1, 4)
    assert [world.saver.may_begin(step) for step in (3, 4, 5)] == [False, False, True]
    world.saver.step_submitted(5, 1)
    assert [world.saver.may_save_at(step) for step in (4, 5)] == [False, True]
    world.saver.training_continues(5)
    assert not world.saver.may_save_at(5), "a training request has followed it"


def test_the_last_step_is_saved_on_the_way_out_unless_it_is_stored_or_too_many_are_under_way() -> (
    None
):
    world = begun(max_saves_in_flight=1)
    world.steps(1, 2)
    assert world.saver.last(2) is None
    world.saver.step_submitted(3, 1)
    assert named(world.saver.last(3)).step == 3
    world.saver.step_submitted(4, 1)
    assert world.saver.last(4) is None
    world.saver.stored(3)
    assert named(world.saver.last(4)).step == 4


def test_a_save_that_failed_is_due_at_the_next_step_and_said_ever_more_rarely() -> None:
    world = begun(save_every=100, save_at_start=False)
    asked = [step for step in range(100, 112) if world.step(step) is not None]
    assert asked == [100], "it is under way"
    said = [world.saver.failed(100)]
    for step in range(112, 123):
        assert world.step(step) is not None
        said.append(world.saver.failed(step))
    assert said == [True] + [False] * 8 + [True] + [False] * 2
    assert world.saver.failing == (12, 0)
    assert world.saver.failed(50), "the user's own is always said"
    assert world.saver.failing == (12, 0)


@pytest.mark.parametrize("on_save_failure", ["continue", "stop"])
def test_the_run_is_given_up_after_so_many_failed_saves_only_if_the_policy_says_so(
    on_save_failure: str,
) -> None:
    world = begun(save_every=1, on_save_failure=on_save_failure)
    for step in (1, 2, 3):
        assert not world.saver.gives_up
        world.step(step)
        world.saver.failed(step)
    assert world.saver.gives_up == (on_save_failure == "stop")


def test_it_is_the_third_failed_save_in_a_row_that_stops_a_run_whose_policy_says_so() -> None:
    for policy, gave_up in (
        ({"on_save_failure": "stop"}, [False, False, False, True]),
        ({}, [False] * 4),
    ):
        world, found = World(save_every=1, **policy), list[bool]()
        for step in range(4):
            found.append(world.saver.gives_up)
            world.saver.begin(step)
            world.saver.failed(step)
        assert found == gave_up
        world.saver.begin(4)
        world.saver.stored(4)
        assert not world.saver.gives_up


def test_a_run_whose_saves_are_refused_asks_for_none_any_more() -> None:
    world = begun()
    world.history.refused_saves = OFF_AFTER - 1
    assert not world.history.saves_off
    assert named(world.saver.begin(1)).step == 1
    world.saver.stored(1)
    assert world.history.refused_saves == 0, "it was stored"
    world.history.refused_saves = OFF_AFTER
    assert world.saver.begin(2) is None
    assert not world.saver.decides(2)
    assert world.steps(2, 6) == []
    assert world.saver.due(6, end=True) is None


def test_how_it_plans_is_said_as_long_as_it_saves() -> None:
    world = begun(strategy="auto")
    assert world.saver.plan is not None
    world.history.refused_saves = OFF_AFTER
    assert world.saver.plan is None


def test_a_run_that_saves_nothing_from_its_beginning_on_leaves_nothing_out() -> None:
    world = World()
    world.history.refused_saves = OFF_AFTER
    assert world.saver.training_continues(0) is None
    assert world.history.left_out == 0
    assert not world.saver.probes


def test_a_schedule_that_has_nothing_to_decide_by_saves_by_steps_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = begun(strategy="best", save_best=True)
    assert world.steps(1, 250) == [100, 200]
    (said,) = caplog.messages
    assert "run named: its schedule cannot decide by step 100: " in said
    caplog.clear()
    able = begun(strategy="best", save_best=True)
    able.saver.step_submitted(1, 1)
    able.saver.report({"loss": 1.0})
    assert able.saver.training_continues(1) is not None
    assert caplog.messages == []


def test_a_schedule_by_the_clock_is_asked_again_about_a_step_once_that_matters() -> None:
    world = begun(save_every=1000, save_every_s=10.0)
    world.now_s += 9.95
    assert not world.saver.step_submitted(1, 1)
    world.now_s += ASK_AGAIN_S / 2 + 0.04
    assert world.saver.due(1) is None, "the step was asked about just now"
    world.now_s += ASK_AGAIN_S / 2
    assert named(world.saver.due(1)).step == 1


def test_of_the_many_steps_before_one_that_may_be_due_the_schedule_is_asked_about_the_first() -> (
    None
):
    """Each would read the clock, and hold up the loop."""
    world = begun(save_every=100)
    world.step(1)
    before = world.looks_at_the_clock
    assert world.steps(2, 99) == []
    assert world.looks_at_the_clock == before
    assert world.steps(100, 100) == [100]
    assert world.looks_at_the_clock > before


def test_at_its_end_a_loop_has_its_last_step_saved() -> None:
    world = begun()
    world.steps(1, 3)
    world.saver.step_submitted(3, 1)
    request = world.saver.due(3, end=True)
    assert named(request).step == 3
    assert world.saver.due(3, end=True) is None


def test_at_its_end_the_state_is_saved_as_it_is_by_then_if_it_can_be() -> None:
    for last, kept in (({"at": 3}, {"at": 3}), ({"at": object()}, {"at": 1})):
        world, state = begun(), dict[str, object]({"at": 1})
        world.step(1, state)
        world.saver.step_submitted(3, 1)
        state |= last
        assert state_of(world.saver.due(3, end=True)) == kept
    world, state = begun(), dict[str, object]({"at": 1})
    world.step(1, state)
    world.saver.step_submitted(2, 1)
    state["at"] = 2
    assert state_of(world.saver.due(2)) == {"at": 1}, "the loop may yet change it"


def test_a_loop_that_has_nothing_more_to_set_is_saved_while_it_rests() -> None:
    world = begun()
    world.saver.step_submitted(2, 1)
    assert named(world.saver.while_idle(2)).step == 2
    assert world.saver.while_idle(2) is None
    world.saver.training_continues(2)
    world.saver.stored(2)
    world.saver.step_submitted(4, 1)
    world.saver.training_continues(4)
    assert world.saver.while_idle(4) is None


@pytest.mark.parametrize("ended", [False, True])
def test_a_loop_that_counts_epochs_may_yet_count_one_while_it_rests(*, ended: bool) -> None:
    world = begun(strategy="epoch", save_every=1)
    for epoch, step in enumerate((2, 4), 1):
        world.saver.step_submitted(step, 1)
        if ended:
            world.saver.end_epoch()
        request = world.saver.while_idle(step)
        assert (request is not None) == ended
        world.saver.training_continues(step)
        world.saver.stored(step)
        assert world.saver.epoch == (epoch if ended else 0)


def test_what_becomes_due_inside_a_step_or_before_an_epoch_is_counted_waits() -> None:
    world = begun(save_every=1000, save_every_s=10.0)
    world.step(1)
    world.now_s += 11.0
    assert world.saver.while_idle(1) is None
    world.saver.step_submitted(2, 1)
    assert world.saver.while_idle(2) is not None
    world = begun(strategy="epoch", save_every=1, save_every_s=10.0)
    world.now_s += 11.0
    world.saver.step_submitted(1, 1)
    assert world.saver.while_idle(1) is None
    world.saver.end_epoch()
    assert world.saver.while_idle(1) is not None


def test_an_epoch_once_counted_is_waited_for_by_any_schedule() -> None:
    world = begun()
    world.saver.end_epoch()
    world.saver.step_submitted(2, 1)
    assert world.saver.while_idle(2) is None
    world.saver.end_epoch()
    assert world.saver.while_idle(2) is not None


# -- what belongs to a step ----------------------------------------------------------------------


def test_what_the_loop_sets_up_to_the_next_request_belongs_to_the_step_before_it() -> None:
    world = begun()
    assert world.step(1, {"at": 1}) is None
    assert state_of(world.step(2, {"at": 2})) == {"at": 2}
    world.saver.stored(2)
    world.saver.set_loop_state({"at": 3})  # between forward_backward and optim_step
    world.step(3)
    world.saver.set_loop_state({"at": 4})
    assert state_of(world.step(4)) == {"at": 4}


def test_a_state_changed_in_place_is_seen_as_the_next_request_is_submitted() -> None:
    world, state = begun(), {"at": 0}
    world.step(1, state)
    world.saver.step_submitted(2, 1)
    state["at"] = 2
    assert state_of(world.saver.training_continues(2)) == {"at": 2}
    world.saver.stored(2)
    world.saver.step_submitted(3, 1)
    assert world.awaits_state(), "as one that was set"
    state["at"] = 99
    assert world.saver.metadata(2, "schedule")["tinker_recovery.loop_state"] == '{"at":2}'
    assert world.saver.metadata(3, "user")["tinker_recovery.loop_state"] == '{"at":99}'


def test_a_state_changed_in_place_inside_a_step_is_that_steps() -> None:
    world, state = begun(), {"at": 0}
    world.step(1, state)
    state["at"] = 2
    world.saver.training_continues(1)
    world.saver.step_submitted(2, 1)
    assert not world.awaits_state()
    assert state_of(world.saver.while_idle(2)) == {"at": 2}


def test_a_state_set_ahead_of_its_batch_and_behind_it_is_refused_and_the_one_before_kept() -> None:
    world = World()
    world.saver.set_loop_state({"at": 0})
    world.saver.training_continues(0)
    world.saver.step_submitted(1, 1)
    with pytest.raises(UsageError, match="whether it is where the loop stands before or after"):
        world.saver.set_loop_state({"at": 1})
    assert world.saver.loop_state == {"at": 0}
    world.saver.set_loop_state({"at": 0})
    world.saver.training_continues(1)
    world.saver.set_loop_state({"at": 1})  # inside a step it may be set
    assert state_of(world.step(2)) == {"at": 1}
    with pytest.raises(UsageError):
        world.saver.set_loop_state(object())
    assert world.saver.loop_state == {"at": 1}


def test_a_loop_that_sets_its_state_for_each_step_is_waited_for() -> None:
    world = begun()
    world.step(1, {"at": 1})
    world.saver.step_submitted(2, 1)
    assert world.awaits_state()
    assert (world.saver.while_idle(2), world.saver.last(2)) == (None, None)
    world.saver.set_loop_state({"at": 1})
    assert not world.awaits_state(), "it may as well be the same"
    assert world.saver.while_idle(2) is not None
    world.saver.training_continues(2)
    assert not world.awaits_state(), "inside a step"
    world.step(3)
    world.saver.step_submitted(4, 1)
    assert not world.awaits_state(), "it was not set for the step before"


def test_a_loop_without_a_state_is_waited_for_at_no_step() -> None:
    world = begun()
    world.step(1)
    world.saver.step_submitted(2, 1)
    assert not world.awaits_state()


def test_a_resumed_loop_with_a_state_has_it_from_the_checkpoint_and_is_waited_for() -> None:
    before = record(4, "before").model_copy(update={"loop_state": {"at": 4}, "epoch": 2})
    world = World(start=4, checkpoint=before)
    assert (world.saver.loop_state, world.saver.epoch) == ({"at": 4}, 2)
    assert world.awaits_state()
    assert world.saver.metadata(4, "schedule")["tinker_recovery.loop_state"] == '{"at":4}'
    assert World().saver.epoch == 0
    assert World(start=4, checkpoint=record(4)).saver.epoch == 0


def test_a_step_saved_while_the_loop_rested_is_saved_again_if_it_then_sets_something() -> None:
    world = begun()
    world.saver.step_submitted(2, 1)
    assert named(world.saver.while_idle(2)).again == 0
    world.saver.set_loop_state({"at": 2})
    again = world.saver.training_continues(2)
    assert (named(again).step, named(again).again, state_of(again)) == (2, 1, {"at": 2})
    world.saver.stored(2)
    world.saver.step_submitted(3, 1)
    world.saver.set_loop_state({"at": 3})
    assert world.saver.training_continues(3) is None, "of another step there is nothing more to say"
    world.saver.step_submitted(4, 1)
    world.saver.set_loop_state({"at": 4})
    assert named(world.saver.while_idle(4)).again == 0
    assert world.saver.training_continues(4) is None, "nothing was set since"
    world.saver.step_submitted(5, 1)
    world.saver.set_loop_state({"at": 5})
    world.saver.last(5)
    world.saver.end_epoch()
    assert named(world.saver.due(5, end=True)).again == 2
    world.history.refused_saves = OFF_AFTER
    world.saver.end_epoch()
    assert world.saver.due(5, end=True) is None


def test_before_the_loop_has_begun_nothing_is_saved_a_second_time() -> None:
    world = World()
    assert world.saver.begin(0) is not None
    world.saver.set_loop_state({"at": 0})
    assert world.saver.training_continues(0) is None


def test_metrics_reported_behind_a_step_are_of_it_and_ahead_of_each_batch_of_the_next() -> None:
    behind = begun()
    behind.saver.step_submitted(2, 1)
    behind.saver.report({"loss": 2.0})
    behind.saver.report({"other": 1.0})
    request = behind.saver.training_continues(2)
    assert request is not None
    assert request.metadata is not None
    assert json.loads(request.metadata["tinker_recovery.metrics"]) == {"loss": 2.0, "other": 1.0}
    ahead = World()
    ahead.saver.report({"loss": 2.0})
    ahead.saver.training_continues(0)
    ahead.saver.step_submitted(2, 1)
    ahead.saver.report({"loss": 3.0})
    request = ahead.saver.training_continues(2)
    assert request is not None
    assert request.metadata is not None
    assert json.loads(request.metadata["tinker_recovery.metrics"]) == {"loss": 2.0}


def test_a_loop_whose_index_may_drift_from_its_steps_hears_of_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = begun()
    for passes in (None, 1):
        world.saver.step_submitted(1, passes)
    assert caplog.messages == []
    for passes in (2, 3):
        world.saver.step_submitted(1, passes)
    (said,) = caplog.messages
    assert "run named: 2 forward_backward calls for one optim_step" in said
    caplog.clear()
    kept = begun()
    kept.saver.set_loop_state({"at": 0})
    kept.saver.step_submitted(1, 2)
    assert caplog.messages == []


# -- what a checkpoint says ----------------------------------------------------------------------


def test_a_checkpoint_says_what_it_is_of_and_how_far_that_is_vouched_for() -> None:
    world = begun(ttl_s=7200.5)
    world.sound_step = 1
    world.saver.canary = 1, "seen"
    request = world.step(2)
    name = named(request)
    assert (name.step, name.attempt, name.lag, name.has_state) == (2, ATTEMPT, 1, False)
    assert (name.run, name.lineage) == (mark_of("named"), mark_of(LINEAGE))
    assert request is not None
    assert request.ttl_s == 7200
    said = world.saver.metadata(2, "schedule")
    assert request.metadata == said
    values = {key.removeprefix("tinker_recovery."): value for key, value in said.items()}
    assert (values["step"], values["sound_step"]) == ("2", "1")
    assert "epoch" not in values
    assert "ended" not in values
    world.sound_step = 5
    world.saver.set_loop_state({"at": 2})
    world.saver.step_submitted(3, 1)
    name = named(world.saver.begin(3))
    assert (name.lag, name.has_state) == (0, True), "more may be known to be sound than is saved"
    plain = begun()
    plain.saver.end_epoch()
    plain.saver.step_submitted(3, 1)
    assert plain.saver.metadata(3, "schedule")["tinker_recovery.epoch"] == "1"
    assert named(plain.saver.begin(3)).has_state
    assert named(begun(ttl_s=None).step(2)).step == 2
    assert begun().saver.run_name == "named"
    assert begun(name=None).saver.run_name == LINEAGE
    assert named(begun(name=None).step(2)).run == mark_of(LINEAGE)


@pytest.mark.parametrize(
    ("end", "by", "sound", "says"),
    [
        (True, "schedule", 3, True),
        (True, "schedule", 4, True),
        (True, "schedule", 2, False),
        (True, "user", 3, False),
        (False, "schedule", 3, False),
    ],
)
def test_a_checkpoint_says_that_the_run_has_ended_only_if_all_of_it_succeeded(
    by: Any, sound: int, *, end: bool, says: bool
) -> None:
    world = begun()
    world.saver.step_submitted(3, 1)
    world.saver.due(3, end=end)
    world.sound_step = sound
    said = world.saver.metadata(3, by)
    assert any(key.endswith("ended") for key in said) == says


def test_the_last_checkpoint_says_that_the_run_has_ended_if_its_own_step_is_sound() -> None:
    world = World()
    world.saver.training_continues(0)
    world.saver.step_submitted(3, 1)

    def says() -> list[bool]:
        """Of a run that is sound up to the step before it, to it, and of the user's own."""
        found = []
        for world.sound_step, by in ((2, "schedule"), (3, "schedule"), (3, "user")):
            said = world.saver.metadata(3, cast("Any", by))
            found.append("tinker_recovery.ended" in said)
            assert said["tinker_recovery.sound_step"] == str(world.sound_step)
        return found

    assert says() == [False, False, False]
    world.saver.due(3, end=True)
    assert says() == [False, True, False]


def test_a_save_ahead_of_the_loop_or_on_the_way_out_does_not_say_that_the_run_has_ended() -> None:
    for begin in ("begin", "last"):
        world = World()
        world.saver.step_submitted(3, 1)
        request = getattr(world.saver, begin)(3)
        assert not any(key.endswith("ended") for key in request.metadata)


def test_its_saves_are_known_by_their_names_to_a_service_that_forgets_their_metadata() -> None:
    world = begun(keeps="forgotten")
    name = named(world.step(2))
    listed = stored(None).model_copy(
        update={"tinker_path": f"tinker://elsewhere/weights/{name}", "checkpoint_id": "x"}
    )
    (filled,) = world.metadata.filled([listed])
    assert filled.user_metadata is not None
    assert filled.user_metadata["tinker_recovery.run_name"] == "named"


def test_what_a_service_turns_out_to_have_forgotten_of_a_save_is_known_all_the_same() -> None:
    world = begun(keeps="unknown")
    world.saver.step_submitted(2, 1)
    world.saver.report({"loss": 0.5})
    request = world.saver.training_continues(2)
    where = f"tinker://a/weights/{named(request)}"
    world.metadata.stored(where)
    (filled,) = world.metadata.filled([stored(None).model_copy(update={"tinker_path": where})])
    assert world.metadata.keeps == "forgotten"
    assert request is not None
    assert filled.user_metadata == request.metadata


@pytest.mark.parametrize(
    ("keeps", "facts", "sends"),
    [
        ("refused", {}, False),
        ("kept", {}, True),
        ("forgotten", {"enabled": False}, True),
        ("unknown", {}, True),
        ("unknown", {"enabled": False}, False),
        ("unknown", {"origin": None}, False),
        ("unknown", {"enabled": False, "probes": True}, True),
        ("refused", {"probes": True}, False),
    ],
)
def test_saves_carry_metadata_unless_a_refusal_could_not_be_made_up_for(
    keeps: str, facts: dict[str, Any], *, sends: bool
) -> None:
    world = World(keeps=keeps, enabled=facts.get("enabled", True))
    if "origin" in facts:
        world.run.origin = None
        trail: Any = SimpleNamespace(followed=None)
        world.saver = Saver(world.run, world.run.segments[0], None, lambda: 0, trail)
    world.saver.probes = facts.get("probes", False)
    world.saver.training_continues(0)
    request = world.step(2)
    assert request is not None
    assert world.saver.sends_metadata() == sends
    assert (request.metadata is not None) == sends


def test_whether_saves_carry_metadata_is_known_before_there_is_any() -> None:
    world = World()
    for keeps, probes, remakeable, sends in (
        ("kept", False, False, True),
        ("forgotten", False, False, True),
        ("unknown", False, False, False),
        ("unknown", True, False, True),
        ("unknown", False, True, True),
        ("refused", True, True, False),
    ):
        world.metadata.keeps = cast("Any", keeps)
        world.run.policy.enabled = remakeable
        trail: Any = SimpleNamespace(followed=None)
        saver = Saver(world.run, world.run.segments[0], None, lambda: 0, trail)
        saver.probes = probes
        assert saver.sends_metadata() == sends


def test_metrics_that_are_too_many_are_left_out_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = begun()
    world.saver.step_submitted(2, 1)
    world.saver.report({f"metric {number:04}": math.pi * number for number in range(1000)})
    world.saver.report({"loss": 1.0})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            said = world.saver.metadata(2, "user")
    kept = json.loads(said["tinker_recovery.metrics"])
    assert kept["loss"] == 1.0, "what the best is chosen by is never left out"
    (told,) = caplog.messages
    left_out = 1001 - len(kept)
    assert "1001 metrics are too many for a checkpoint" in told
    assert f"stored without the last {left_out} (metric " in told
    few = begun()
    few.saver.report({"loss": 1.0})
    few.saver.metadata(2, "user")
    assert len(caplog.messages) == 1


# -- what is measured ----------------------------------------------------------------------------


def test_what_a_save_takes_is_counted_from_the_end_of_what_was_before_it() -> None:
    world = begun(save_every=1, max_saves_in_flight=3)
    world.step(1)
    world.now_s += 3.0
    world.saver.step_done()
    assert world.history.evidence.step_s == 3.0
    world.now_s += 4.0
    assert world.saver.stored(1) == 4.0, "behind the step"
    world.step(2)
    world.step(3)
    world.now_s += 5.0
    assert world.saver.stored(2) == 5.0
    world.now_s += 1.0
    assert world.saver.stored(3) == 1.0, "behind the save before it"
    assert world.saver.steps_done() == 1
    assert world.history.evidence.saves == 3
    assert world.saver.stored(2) is None, "the user's own"
    assert world.history.evidence.saves == 3
    assert list(world.history.saved) == [(ATTEMPT, 1), (ATTEMPT, 2), (ATTEMPT, 3)]
    world.now_s += 1.0
    world.saver.step_done()
    assert world.history.evidence.steps == 2


def test_what_was_saved_before_the_attempt_began_counts_for_what_is_better_than_all() -> None:
    saved = {("before", 2): {"loss": 1.0}, ("before", 6): {"loss": 0.1}, ("gone", 3): {"loss": 0.0}}
    before = record(4, "before")
    world = World(start=4, checkpoint=before, saved=saved, strategy="best", save_best=True)
    world.saver.training_continues(4)
    for step, loss in ((5, 1.5), (6, 0.5)):
        world.saver.step_submitted(step, 1)
        world.saver.report({"loss": loss})
        request = world.saver.training_continues(step)
        assert (request is not None) == (loss < 1.0)
