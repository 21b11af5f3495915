"""What comes of what a client reports to its run: AttemptHooks, with an attempt made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sdk_errors import failed, status
from tinker.types import RequestErrorCategory

from tinker_recovery import RecoveryEvent
from tinker_recovery.faults import RULES, DetectedBy, Kind, SeenIn, judge
from tinker_recovery.recovery import metadata_notes
from tinker_recovery.run import client_hooks
from tinker_recovery.run.client_hooks import AttemptHooks
from tinker_recovery.service.client import CANARY, CUSTOM_LOSS, SAVE
from tinker_recovery.service.sampler import Source, SupervisedSamplerFuture
from tinker_recovery.telemetry import EventSink, names


class World:
    """An attempt and its run, as far as the hooks look; :attr:`log` is what they were told."""

    def __init__(self, **facts: Any) -> None:
        self.log: list[tuple[object, ...]] = []
        self.posted: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self.events: list[RecoveryEvent] = []
        note = self._note
        self.metadata = SimpleNamespace(stored=note("metadata"))
        self.http = SimpleNamespace(
            take_cut=lambda: facts.get("cut", True), cut=note("others look")
        )
        reader = SimpleNamespace(metadata=self.metadata, http=self.http, service_now=lambda: 50.0)
        self.collaborators = SimpleNamespace(
            reader=reader, events=EventSink(self.events.append), load_spare=note("spare")
        )
        self.checkpoints = SimpleNamespace(
            stored={},
            note_replaced=note("replaced"),
            note_lifetime=note("lifetime"),
            write_canary=note("write canary"),
            write_prompt=note("write prompt"),
            note_canary=self._answers("canary", facts.get("fingerprint", "seen")),
            prompt=SimpleNamespace(problem="no text"),
        )
        self.saver = SimpleNamespace(
            training_continues=note("continues"),
            step_done=note("saver"),
            step_submitted=self._answers("ends", facts.get("may_save", True)),
            while_idle=self._answers("idle", "a save"),
            sends_metadata=lambda: facts.get("sends", True),
            metadata=lambda step, by: {"ours": f"{step} {by}"},
            stored=self._answers("stored", facts.get("took_s", 1.5)),
            failed=self._answers("failed", facts.get("reports", True)),
            failing=facts.get("failing", (1, 4)),
            gives_up=facts.get("gives_up", False),
            plan=facts.get("plan"),
            canary=None,
        )
        self.trail = SimpleNamespace(
            passed=note("passed"), stepped=note("stepped"), ended=note("ended")
        )
        self.run = SimpleNamespace(
            name="r",
            collaborators=self.collaborators,
            checkpoints=self.checkpoints,
            history=SimpleNamespace(saves_inside=False),
            policy=SimpleNamespace(
                retryable_errors=facts.get("retryable", ()),
                checkpoints=SimpleNamespace(ttl_s=facts.get("ttl_s")),
            ),
            rollbacks=SimpleNamespace(
                sound_to=facts.get("sound_to", math.inf),
                note_cut=note("cut"),
                note_stored=note("rollbacks"),
            ),
            journal=SimpleNamespace(step_done=note("journal"), stored=note("journal")),
            budget=SimpleNamespace(note_saved=note("progress")),
            retention=SimpleNamespace(ask=note("retention")),
            spawn=lambda work: note("spawn")(work.func, *work.args),
        )
        self.scope = SimpleNamespace(
            id="a",
            run=self.run,
            saver=self.saver,
            recall=SimpleNamespace(trail=self.trail),
            sampling=SimpleNamespace(
                note_saving=note("saving"), unless_saved_over=lambda _path, renew: renew
            ),
            client=SimpleNamespace(
                first_doubtful_step=facts.get("doubtful", math.inf),
                unanswered=dict.fromkeys((1, 3, 5)),
            ),
            faulty=facts.get("faulty", False),
            closed=facts.get("closed", False),
            refusal=SimpleNamespace(
                is_it=self._answers("is it", facts.get("refused", False)), note=note("refused")
            ),
            canary_loss=SimpleNamespace(
                drops=self._answers("drops", facts.get("drops", False)),
                answered=note("answered"),
            ),
            declare_fault=note("declare"),
            suspect_fault=note("suspect"),
            declare_bad_loss=note("bad loss"),
            look_into_failed_save=note("look into"),
            save_when_idle=note("when idle"),
            post=lambda call, *given: self.posted.append((call, given)),
        )
        self.run.current = self.scope if facts.get("current", True) else object()
        self.hooks = AttemptHooks(
            cast("Any", self.scope), cast("Any", self.saver), cast("Any", self.trail)
        )

    def _answers(self, what: str, answer: object) -> Callable[..., Any]:
        def note(*given: object, **named: object) -> object:
            self.log.append((what, *given, *([named] if named else [])))
            return answer

        return note

    def _note(self, what: str) -> Callable[..., None]:
        return self._answers(what, None)

    def delivered(self) -> list[tuple[object, ...]]:
        """What the hooks were told so far, and then what the event loop was given to do."""
        while self.posted:
            call, given = self.posted.pop(0)
            call(*given)
        told, self.log = self.log, []
        return told


# -- a request that failed -----------------------------------------------------------------------

UNKNOWN = failed(RequestErrorCategory.Unknown)


@pytest.mark.parametrize(
    ("operation", "error", "kind"),
    [
        ("forward_backward", status(503), Kind.UNAVAILABLE),
        ("optim_step", status(404), Kind.MODEL_MISSING),
        ("forward_backward", status(401), Kind.UNAUTHORIZED),
        ("forward_backward", UNKNOWN, Kind.REQUEST_FAILED),
        (SAVE, status(503), Kind.UNAVAILABLE),
        (CANARY, status(503), Kind.UNAVAILABLE),
    ],
)
def test_a_request_that_failed_is_a_fault_of_its_step(
    operation: str, error: Exception, kind: Kind
) -> None:
    world = World()
    world.hooks.call_failed(operation, 3, error)
    assert [told for told in world.log if told[0] == "declare"] == []
    *before, (what, rule, how, of, where) = world.delivered()
    assert (what, how, of, where) == ("declare", DetectedBy.CALL, error, {"failed_step": 3})
    assert rule == judge(error, SeenIn.CALL)
    assert cast("Any", rule).kind is kind
    asked = {SAVE: [("is it", error)], CANARY: [("drops", rule, error)]}
    assert before == asked.get(operation, [])


@pytest.mark.parametrize(
    ("operation", "error", "suspected"),
    [
        ("forward_backward", status(403), Kind.FORBIDDEN),
        ("save_weights_for_sampler", status(403), Kind.FORBIDDEN),
        ("save_weights_for_sampler", status(404), None),
        ("forward_backward", failed(RequestErrorCategory.User), None),
        (CUSTOM_LOSS, ValueError("the loss"), None),
    ],
)
def test_an_error_that_trying_again_cannot_help_is_a_fault_only_if_the_loop_goes_on_behind_a_gap(
    operation: str, error: Exception, suspected: Kind | None
) -> None:
    world = World()
    world.hooks.call_failed(operation, 3, error)
    assert world.delivered() == (
        [("suspect", RULES[suspected], error, 3)] if suspected is not None else []
    )


def test_an_error_that_the_policy_names_is_a_fault_whatever_raised_it() -> None:
    world, error = World(retryable=(ValueError,)), ValueError("the loss")
    world.hooks.call_failed(CUSTOM_LOSS, 3, error)
    assert [told[:2] for told in world.delivered()] == [("declare", RULES[Kind.RETRYABLE])]


def test_a_save_that_cost_its_client_is_noted_and_one_whose_result_failed_is_looked_into() -> None:
    for refused, error, told in (
        (True, status(503), "refused"),
        (True, UNKNOWN, "refused"),
        (False, UNKNOWN, "look into"),
    ):
        world = World(refused=refused)
        world.hooks.call_failed(SAVE, 3, error)
        assert world.delivered() == [("is it", error), (told, error)]
    world = World(refused=True)
    world.hooks.call_failed("optim_step", 3, UNKNOWN)
    assert [told[0] for told in world.delivered()] == ["declare"], "it is no save"


def test_a_canary_that_is_dropped_costs_a_client_only_if_it_left_a_gap() -> None:
    world, error = World(drops=True), status(422)
    world.hooks.call_failed(CANARY, 3, error)
    assert world.delivered() == [
        ("drops", RULES[Kind.INVALID_REQUEST], error),
        ("declare", RULES[Kind.CANCELLED], DetectedBy.CALL),
    ]
    rejected = failed(RequestErrorCategory.User)
    world.hooks.call_failed(CANARY, 3, rejected)
    assert world.delivered() == [("drops", RULES[Kind.USER_ERROR], rejected)]
    world.hooks.call_failed("forward", 3, rejected)
    assert world.delivered() == [], "it is no canary"


def test_a_request_that_was_cancelled_may_be_a_fault() -> None:
    world = World()
    world.hooks.call_cancelled("optim_step", 3)
    assert world.delivered() == [("suspect", RULES[Kind.CANCELLED], None, 3)]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("sound_to", [4.0, math.inf])
def test_a_connection_that_was_cut_is_looked_into_unless_the_weights_are_in_doubt_as_it_is(
    sound_to: float, *, cut: bool
) -> None:
    world, looks = World(cut=cut, sound_to=sound_to), cut and sound_to == math.inf
    assert world.hooks.was_cut() == looks
    told = [("cut", world.scope, {"asked": True}), ("others look",)]
    assert world.delivered() == (told if looks else [])


def test_a_loss_that_is_not_finite_is_declared() -> None:
    world = World()
    world.hooks.loss_not_finite(3, math.inf)
    assert world.delivered() == [("bad loss", 3, math.inf)]


# -- steps ---------------------------------------------------------------------------------------


def test_the_client_asks_the_schedule_and_notes_what_goes_into_the_weights() -> None:
    world = World()
    world.hooks.save_due(3)
    world.hooks.training_submitted("batch")
    assert world.delivered() == [("continues", 3), ("passed", "batch")]
    assert str(world.hooks.save_while_idle(3)) == "a save"
    assert world.delivered() == [("idle", 3)]


def test_a_step_that_is_done_is_measured_and_written() -> None:
    world = World()
    world.hooks.step_done()
    assert world.delivered() == [("saver",), ("journal", world.scope)]


def test_only_where_an_iteration_ends_may_a_step_be_saved() -> None:
    world = World()
    world.hooks.update_submitted()
    assert world.delivered() == [("stepped", {"skipped": False, "ends": False})]
    world.hooks.iteration_ended(2, 3.0)
    assert world.delivered() == [("ended",), ("ends", 2, 3.0), ("when idle", 2)]


@pytest.mark.parametrize(("passes", "skipped"), [(1.0, False), (None, True)])
@pytest.mark.parametrize("may_save", [False, True])
def test_a_step_is_saved_when_the_loop_rests_if_one_may_be_due(
    passes: float | None, *, skipped: bool, may_save: bool
) -> None:
    world = World(may_save=may_save)
    world.hooks.step_submitted(2, passes)
    idle: list[tuple[object, ...]] = [("when idle", 2)] if may_save else []
    assert world.delivered() == [("stepped", {"skipped": skipped}), ("ends", 2, passes), *idle]


def test_that_a_loop_was_left_inside_an_iteration_is_said_once_and_not_after_a_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    World(faulty=True).hooks.left_inside("behind the first")
    assert caplog.messages == []
    hooks = World().hooks
    for _ in range(2):
        hooks.left_inside("behind the first")
    (said,) = caplog.messages
    assert said.startswith("run r: the loop was left inside an iteration, behind the first: ")


def test_why_there_is_no_canary_is_said(caplog: pytest.LogCaptureFixture) -> None:
    World().hooks.no_canary()
    assert "run r has no canary (no text), so" in caplog.text


# -- samplers ------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_sample_itself_is_not_asked_of_a_fresh_sampler() -> None:
    hooks = World(retryable=(KeyError,)).hooks
    for error in (status(503), status(401), ValueError("x"), KeyError("x")):
        assert hooks.is_worth_renewing(error)
    for refused in (status(422), status(403), KeyboardInterrupt()):
        assert not hooks.is_worth_renewing(refused)


def test_what_the_loop_does_with_samplers_is_said() -> None:
    world = World()
    world.hooks.saving("tinker://a/weights/mine")
    assert world.delivered() == [("saving", "tinker://a/weights/mine")]
    made: Any = SimpleNamespace(future=lambda: SimpleNamespace(done=lambda: False))
    future = world.hooks.sampler(made, cast("Any", print), Source(step=3))
    assert isinstance(future, SupervisedSamplerFuture)
    assert repr(future) == "<SupervisedSamplerFuture, pending>"
    world.hooks.sampler_renewed("it was silent")
    assert world.events == [], "not in the SDK's thread"
    world.delivered()
    (renewed,) = world.events
    assert (renewed.name, renewed.run) == (names.EVENT_SAMPLER_RENEWED, "r")
    assert renewed.message == "it was silent"


@pytest.mark.parametrize("step", [None, 0, 3])
def test_sampler_weights_of_the_loops_own_are_reported_with_their_step_if_they_have_one(
    step: int | None,
) -> None:
    world = World()
    world.hooks.sampler_saved(step, "tinker://a/sampler_weights/mine")
    assert world.events == [], "not in the SDK's thread"
    world.delivered()
    (event,) = world.events
    assert (event.name, event.run) == (names.EVENT_SAMPLER_SAVED, "r")
    at = "" if step is None else f", at step {step}"
    assert event.message == f"sampler weights tinker://a/sampler_weights/mine{at}"
    numbered = {} if step is None else {names.CHECKPOINT_STEP: step}
    assert event.fields == {names.CHECKPOINT_PATH: "tinker://a/sampler_weights/mine", **numbered}


# -- saves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize("given", [None, {"theirs": "1"}, {"ours": "theirs"}])
def test_a_save_of_the_users_own_carries_what_they_say_and_what_recovery_needs(
    given: dict[str, str] | None, *, sends: bool
) -> None:
    world = World(sends=sends)
    ours = {"ours": "3 user"}
    made = world.hooks.user_metadata(3, given)
    assert made == ({**(given or {}), **ours} if sends else given)
    assert made is None or made is not given
    assert not world.run.history.saves_inside


def test_a_save_inside_an_iteration_carries_only_what_the_user_says_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    assert world.hooks.user_metadata(None, {"theirs": "1"}) == {"theirs": "1"}
    assert world.hooks.user_metadata(None, None) is None
    assert world.run.history.saves_inside
    (said,) = caplog.messages
    assert said.startswith("run r: save_state() inside an iteration: ")


PATH = "tinker://a/weights/x"


def test_a_checkpoint_of_the_schedule_is_progress_and_is_made_known() -> None:
    plan = SimpleNamespace(words="saves every 5 steps")
    world = World(ttl_s=7200.0, plan=plan)
    world.hooks.saved(3, PATH)
    assert world.log == [("stored", 3)]
    assert world.delivered() == [
        ("stored", 3),
        ("rollbacks", 3),
        ("lifetime", PATH, 7250.0),
        ("metadata", PATH),
        ("spawn", metadata_notes.write_metadata, world.collaborators),
        ("write canary", "a", 3, world.collaborators),
        ("progress", 3),
        ("spare", "r", PATH),
        ("retention", world.run),
        ("journal", world.scope, 3, PATH, {"sound": True}),
    ]
    assert world.checkpoints.stored == {PATH: ("a", 3)}
    assert world.scope.client.unanswered.keys() == {3, 5}, "the service goes back to none before"
    (event,) = world.events
    assert (event.name, event.run) == (names.EVENT_CHECKPOINT_SAVED, "r")
    assert event.message == f"{PATH}, at step 3; saves every 5 steps"
    assert event.fields == {
        names.CHECKPOINT_PATH: PATH,
        names.CHECKPOINT_STEP: 3,
        names.SAVE_S: 1.5,
    }


@pytest.mark.parametrize(
    ("facts", "sound"),
    [
        ({"doubtful": 3}, True),
        ({"doubtful": 2}, False),
        ({"faulty": True}, False),
        ({"current": False}, True),
        ({"current": False, "doubtful": 2}, False),
    ],
)
def test_a_checkpoint_is_progress_only_if_it_is_sound_and_of_the_attempt_that_runs(
    facts: dict[str, Any], *, sound: bool
) -> None:
    world, current = World(**facts), facts.get("current", True)
    world.hooks.saved(3, PATH)
    told = world.delivered()
    assert (("rollbacks", 3) in told) == current
    assert (("progress", 3) in told) == (("spare", "r", PATH) in told) == (sound and current)
    assert ("journal", world.scope, 3, PATH, {"sound": sound}) in told
    assert not any(each[0] == "lifetime" for each in told), "it stays"


def test_a_checkpoint_of_the_users_own_is_measured_by_nobody() -> None:
    world = World(took_s=None)
    world.hooks.saved(3, PATH)
    assert not {"metadata", "spawn"} & {each[0] for each in world.delivered()}
    (event,) = world.events
    assert event.message == f"{PATH}, at step 3"
    assert event.fields == {names.CHECKPOINT_PATH: PATH, names.CHECKPOINT_STEP: 3}


def test_of_a_checkpoint_without_a_step_only_the_path_is_noted() -> None:
    world = World()
    world.hooks.saved(None, PATH)
    assert world.delivered() == [("replaced", PATH)]
    assert (world.events, world.checkpoints.stored) == ([], {})


# -- saves that failed ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_save_that_failed_is_reported_and_due_again(*, scheduled: bool) -> None:
    world, error = World(), RuntimeError("no room")
    world.hooks.save_failed(3, error, scheduled=scheduled)
    assert world.events == [], "not in the SDK's thread"
    assert world.delivered() == [("is it", error, 3, {"scheduled": scheduled}), ("failed", 3)]
    (event,) = world.events
    assert (event.name, event.run) == (names.EVENT_CHECKPOINT_SAVE_FAILED, "r")
    assert event.message == "step 3 was not saved: no room; it is due again at the next step"
    assert event.fields == {names.CHECKPOINT_STEP: 3, names.ERROR_TYPE: "RuntimeError"}
    world.hooks.save_failed(3, error)
    assert world.log[0] == ("is it", error, 3, {"scheduled": False}), "it is the user's own"


def test_of_a_series_is_said_what_it_puts_at_stake() -> None:
    world = World(failing=(2, 4))
    world.hooks.save_failed(7, RuntimeError("no room"))
    world.delivered()
    (event,) = world.events
    assert event.message == (
        "step 7 was not saved: no room; 2 saves in a row have failed, so a fault would now cost "
        "every step since 4"
    )


@pytest.mark.parametrize(
    "facts", [{"reports": False}, {"faulty": True}, {"closed": True}, {"refused": True}]
)
def test_a_save_that_failed_is_not_reported_after_a_fault_or_as_one_of_a_long_series(
    facts: dict[str, Any],
) -> None:
    world = World(**facts)
    world.hooks.save_failed(3, RuntimeError("no room"), scheduled=True)
    told = world.delivered()
    assert (world.events, len(told)) == ([], 1 if "refused" in facts else 2)


def test_a_save_inside_an_iteration_that_failed_is_the_users_to_hear_of() -> None:
    world = World(gives_up=True)
    world.hooks.save_failed(None, RuntimeError("no room"))
    assert (world.delivered(), world.events) == ([], [])


def test_where_the_policy_says_so_the_run_stops_for_its_saves() -> None:
    world, error = World(gives_up=True, reports=False), RuntimeError("no room")
    world.hooks.save_failed(3, error, scheduled=True)
    assert world.delivered()[-1] == ("declare", RULES[Kind.SAVES_FAIL], DetectedBy.CALL, error)


# -- the canary ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fingerprint", [None, "seen"])
def test_the_canarys_answer_is_kept_for_the_next_checkpoint_and_for_others_to_compare(
    monkeypatch: pytest.MonkeyPatch, fingerprint: str | None
) -> None:
    monkeypatch.setattr(client_hooks, "answer_of", lambda output: ("answer", output))
    world = World(fingerprint=fingerprint)
    world.hooks.canary_answered(3, cast("Any", "output"))
    assert world.log == [("answered",)]
    assert world.delivered() == [
        ("answered",),
        ("canary", "a", 3, ("answer", "output")),
        ("write canary", "a", 3, world.collaborators),
        ("write prompt", world.collaborators),
    ]
    assert world.saver.canary == (None if fingerprint is None else (3, fingerprint))
    assert world.scope.client.unanswered.keys() == ({1, 3, 5} if fingerprint is None else {1, 5})
