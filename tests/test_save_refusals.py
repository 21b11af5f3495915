"""When a save that failed has cost its client, and what comes of that: with an attempt made up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import tinker
from tinker.types import RequestErrorCategory

from tinker_recovery import RecoveryEvent
from tinker_recovery.faults import RULES, DetectedBy, Kind, VerdictRule
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.run.history import OFF_AFTER, RunHistory
from tinker_recovery.run.save_refusal import SaveRefusal
from tinker_recovery.service.client import CANARY, SAVE
from tinker_recovery.service.metadata import ServiceMetadata
from tinker_recovery.telemetry import EventSink, names

REQUEST = httpx.Request("POST", "http://127.0.0.1/api/v1/save_weights")


def status(code: int) -> tinker.APIStatusError:
    kind = {403: tinker.PermissionDeniedError, 503: tinker.InternalServerError}
    response = httpx.Response(code, request=REQUEST)
    return kind.get(code, tinker.APIStatusError)("no", response=response, body=None)


def caused(error: BaseException) -> BaseException:
    made = ValueError("Error retrieving result")
    made.__cause__ = error
    return made


class World:
    """An attempt, as far as a refused save looks at it."""

    def __init__(self, **facts: Any) -> None:
        self.events: list[RecoveryEvent] = []
        self.declared: list[tuple[VerdictRule, DetectedBy, BaseException | None]] = []
        self.closed: list[tuple[str, str]] = []
        self.canaries: list[tuple[object, ...]] = []
        self.metadata = ServiceMetadata()
        self.metadata.keeps = facts.get("keeps", "kept")
        self.history = RunHistory(cast("Any", None))
        self.history.refused_saves = facts.get("refused_before", 0)
        self.budget = AttemptBudget(3)
        self.budget.spend()
        self.rollbacks = SimpleNamespace(is_out_of_reach=facts.get("out_of_reach", False))
        self.client = SimpleNamespace(
            step=facts.get("at", 4), waits_for_ours=facts.get("waits_for"), drain=self._drain
        )
        self.on_drain: Callable[[], object] = lambda: None
        self.on_deliver: Callable[[], object] = lambda: None
        run: Any = SimpleNamespace(
            name="r",
            budget=self.budget,
            collaborators=SimpleNamespace(
                reader=SimpleNamespace(metadata=self.metadata),
                events=EventSink(self.events.append),
            ),
            history=self.history,
            rollbacks=self.rollbacks,
            policy=SimpleNamespace(
                checkpoints=SimpleNamespace(on_save_failure=facts.get("on", "continue"))
            ),
            signals=SimpleNamespace(requested=facts.get("stopping", False)),
            mailbox=SimpleNamespace(deliver=self._deliver),
        )
        self.saver = SimpleNamespace(
            sends_metadata=lambda: facts.get("sends", False), probes=facts.get("probes", True)
        )
        self.left = SimpleNamespace(set=lambda: self.closed.append(("left", "")))
        self.scope: Any = SimpleNamespace(
            run=run,
            client=self.client,
            saver=self.saver,
            ending=facts.get("ending", False),
            entered=facts.get("entered", True),
            faulty=facts.get("faulty", False),
            finished=None,
            declare_fault=lambda *given: self.declared.append(given),
            close=self._close,
            left=self.left,
            canary_loss=SimpleNamespace(drops=lambda *given: self.canaries.append(given)),
        )
        self.refusal = SaveRefusal(cast("Any", self.scope))

    def _deliver(self) -> None:
        self.on_deliver()

    async def _drain(self) -> None:
        self.on_drain()

    async def _close(self, how: str, why: str) -> None:
        self.closed.append((how, why))

    def fail(self, error: BaseException, step: int | None = 4, *, scheduled: bool = True) -> bool:
        is_it = self.refusal.is_it(error, step, scheduled=scheduled)
        self.refusal.note(error)
        return is_it


# -- whether it has cost the client --------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 403, 404, 413, 422])
@pytest.mark.parametrize("outer", [False, True])
def test_what_refuses_a_save_of_the_schedule_has_cost_its_client(code: int, *, outer: bool) -> None:
    world, error = World(), status(code)
    assert world.fail(caused(error) if outer else error)
    assert world.refusal.is_it(world.refusal.error or error), "whoever asks again"
    assert not World().fail(error, scheduled=False), "the user's own save is theirs to hear of"
    assert world.refusal.is_it(status(422), 6, scheduled=True), "one behind it"
    assert not world.refusal.is_it(status(422), 6)
    assert not world.refusal.is_it(ValueError("another"), 6, scheduled=True)


@pytest.mark.parametrize(
    "error",
    [
        status(401),
        status(402),
        status(410),
        ValueError("x"),
        tinker.RequestFailedError("x", request_id="r", category=RequestErrorCategory.Server),
    ],
)
def test_what_any_request_may_be_answered_has_not(error: BaseException) -> None:
    world = World()
    assert not world.fail(error)
    assert (world.refusal.error, world.declared, world.history.refused_saves) == (None, [], 0)


@pytest.mark.parametrize(
    "error", [status(503), caused(status(429)), tinker.APITimeoutError(REQUEST)]
)
@pytest.mark.parametrize("out_of_reach", [False, True])
def test_what_the_sdk_has_tried_for_long_has_unless_all_is_out_of_reach(
    error: BaseException, *, out_of_reach: bool
) -> None:
    world = World(out_of_reach=out_of_reach)
    assert world.fail(error) == (not out_of_reach)
    assert not World(out_of_reach=out_of_reach).fail(error, scheduled=False)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize("keeps", ["unknown", "refused"])
def test_a_refusal_may_be_for_our_metadata_only_if_the_save_carried_any(
    keeps: str, *, scheduled: bool, sends: bool
) -> None:
    world = World(keeps=keeps, sends=sends)
    of_metadata = sends and keeps == "unknown"
    assert world.fail(caused(status(422)), scheduled=scheduled) == (of_metadata or scheduled)
    assert (world.metadata.keeps == "refused") == (of_metadata or keeps == "refused")
    if of_metadata:
        assert world.refusal.rule is RULES[Kind.METADATA_REFUSED]
        assert world.events == [], "that is said elsewhere"


# -- what comes of it ----------------------------------------------------------------------------


def test_it_is_counted_once_costs_no_attempt_and_is_a_fault_of_an_attempt_that_trains() -> None:
    world, error = World(), status(422)
    assert not world.refusal.at_end
    for _ in range(2):
        world.fail(error)
    world.refusal.note(ValueError("another"))
    assert world.history.refused_saves == 1
    assert world.budget.left == 3
    assert world.declared == [(RULES[Kind.SAVE_REFUSED], DetectedBy.CALL, error)]
    assert world.scope.finished is None
    assert not world.refusal.at_end
    (told,) = world.events
    assert told.name == names.EVENT_CHECKPOINT_SAVE_FAILED
    assert told.fields == {names.CHECKPOINT_STEP: 4, names.ERROR_TYPE: "APIStatusError"}
    assert "step 4 was not saved, and the service refuses it: HTTP 422" in told.message
    assert "two in a row" not in told.message


def test_one_that_was_not_refused_is_judged_and_said_as_what_it_is() -> None:
    world = World()
    world.fail(status(503))
    assert world.refusal.rule is RULES[Kind.UNAVAILABLE]
    assert "although the service answers all else: HTTP 503" in world.events[0].message
    forbidden = World()
    forbidden.fail(status(403))
    assert forbidden.refusal.rule is RULES[Kind.SAVE_REFUSED], "no bare loop would be given up"


@pytest.mark.parametrize("on", ["continue", "stop"])
def test_after_two_in_a_row_the_run_saves_no_more_or_is_stopped(on: str) -> None:
    world = World(refused_before=OFF_AFTER - 1, on=on, entered=False)
    world.fail(status(422))
    assert ("two in a row" in world.events[0].message) == (on == "continue")
    assert (world.refusal.rule.kind is Kind.SAVES_FAIL) == (on == "stop")
    assert len(world.declared) == (on == "stop"), "before the loop begins another client is made"
    first = World(on=on)
    first.fail(status(422))
    assert first.refusal.rule.kind is Kind.SAVE_REFUSED


def test_before_the_loop_has_begun_it_is_no_fault() -> None:
    world = World(entered=False)
    world.fail(status(422))
    assert (world.declared, world.scope.finished) == ([], True)


def test_before_the_loop_has_begun_it_is_one_where_nobody_waits_for_the_save() -> None:
    """The loop would begin on a client that is of no use, and nothing of it would be a fault."""
    world = World(entered=False, probes=False)
    world.fail(status(422))
    assert [each[0].kind for each in world.declared] == [Kind.SAVE_REFUSED]
    assert world.scope.finished is None


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize(
    ("error", "facts", "at_end"),
    [
        (status(422), {"ending": True}, True),
        (caused(status(422)), {"ending": True}, True),
        (status(422), {"ending": True, "at": 5}, False),
        (status(422), {}, False),
        (status(503), {"ending": True}, False),
        (status(503), {"ending": True, "refused_before": OFF_AFTER - 1}, True),
    ],
)
def test_the_loop_needs_no_other_client_for_a_save_of_its_last_step(
    error: BaseException, facts: dict[str, Any], *, at_end: bool, stopping: bool
) -> None:
    world = World(stopping=stopping, **facts)
    world.fail(error)
    assert world.refusal.at_end == at_end
    assert len(world.declared) == (not at_end)
    assert world.scope.finished == (stopping if at_end else None)


def test_a_save_of_the_users_own_has_no_step_to_be_the_last() -> None:
    world = World(keeps="unknown", sends=True, ending=True, at=-1)
    world.fail(status(422), None, scheduled=False)
    assert world.refusal.at_end
    world = World(keeps="unknown", sends=True, ending=True, at=1)
    world.fail(status(422), None, scheduled=False)
    assert not world.refusal.at_end


SILENT = RULES[Kind.SILENCE]


@pytest.mark.parametrize("facts", [{}, {"waits_for": (SAVE, 4), "out_of_reach": True}])
def test_silence_is_a_saves_only_where_all_waits_for_one_and_the_service_answers_otherwise(
    facts: dict[str, Any],
) -> None:
    world = World(**facts)
    assert world.refusal.note_silence(SILENT) is SILENT
    assert world.history.refused_saves == 0


def test_silence_where_all_waits_for_a_canary_is_no_saves_and_the_canary_is_looked_at() -> None:
    world = World(waits_for=(CANARY, 4))
    assert world.refusal.note_silence(SILENT) is SILENT
    assert (world.canaries, world.history.refused_saves) == ([(SILENT, None)], 0)
    for facts in ({}, {"waits_for": (SAVE, 4)}):
        other = World(**facts)
        other.refusal.note_silence(SILENT)
        assert other.canaries == []


def test_a_save_that_is_not_answered_is_counted_as_one_refused() -> None:
    world = World(waits_for=(SAVE, 3))
    for _ in range(2):
        assert world.refusal.note_silence(SILENT) is SILENT
    assert world.history.refused_saves == 1
    (told,) = world.events
    assert told.message == "step 3 was not saved, although the service answers all else"
    assert told.fields == {names.CHECKPOINT_STEP: 3}
    stops = World(waits_for=(SAVE, 3), refused_before=OFF_AFTER - 1, on="stop")
    rule = stops.refusal.note_silence(SILENT)
    assert rule is not None
    assert rule.kind is Kind.SAVES_FAIL


def test_a_last_save_that_is_not_answered_ends_the_wait_for_it_once_no_more_is_asked_for() -> None:
    for before, ends in ((0, False), (OFF_AFTER - 1, True)):
        world = World(waits_for=(SAVE, 4), ending=True, refused_before=before)
        cancelled: list[bool] = []
        scope: Any = SimpleNamespace(cancel=lambda seen=cancelled: seen.append(True))
        world.refusal.waiting = scope
        assert world.refusal.note_silence(SILENT) is (None if ends else SILENT)
        assert world.refusal.note_silence(SILENT) is (None if ends else SILENT)
        assert bool(cancelled) == ends
    quiet = World(waits_for=(SAVE, 4), ending=True, refused_before=OFF_AFTER - 1)
    assert quiet.refusal.note_silence(SILENT) is None, "nobody waits"


# -- before the loop begins ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "fails", "absent"),
    [
        ({"probes": False}, True, True),
        ({}, False, True),
        ({"faulty": True}, True, True),
        ({}, True, False),
    ],
)
async def test_a_refused_save_ahead_of_the_loop_has_another_client_made(
    facts: dict[str, Any], *, fails: bool, absent: bool
) -> None:
    world, answered = World(entered=False, **facts), list[int]()
    world.on_drain = lambda: answered.append(1)
    if fails:
        world.on_deliver = lambda: answered and world.fail(status(422))
    assert await world.refusal.is_absent() == absent
    assert world.closed == (
        [] if absent else [("left", ""), ("interrupted", "the service refuses the save")]
    )
    assert not world.saver.probes


async def test_what_else_fails_ahead_of_the_loop_is_left_for_it_to_meet() -> None:
    world = World(entered=False)

    def fail() -> None:
        raise ValueError("another")

    world.on_drain = fail
    assert await world.refusal.is_absent()
