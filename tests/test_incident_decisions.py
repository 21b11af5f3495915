"""What an incident waits for, which faults are left, and what a run is given up with: decisions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tinker_recovery import RecoveryEvent, RecoveryLost, RecoveryPolicy, RunFailed
from tinker_recovery.clock import Clock
from tinker_recovery.detection.outage import Outage
from tinker_recovery.errors import DeadlineExceeded
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.recovery import words
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.waits import REMIND_S, Waits
from tinker_recovery.run.at_exit import failure_at_exit, unseen_fault
from tinker_recovery.run.recall import floor_of
from tinker_recovery.telemetry import EventSink, names

GRACE_S = 100.0


def _fault(
    run: str = "r", kind: Kind = Kind.CORRUPTED, by: DetectedBy = DetectedBy.CALL, **more: Any
) -> Fault:
    return Fault(run, 1, "a", RULES[kind], by, 9, **more)


# -- waiting -------------------------------------------------------------------------------------


class World:
    """An incident, with a clock that is set by hand."""

    def __init__(self, fault: Fault) -> None:
        self.now_s = 500.0
        self.events: list[RecoveryEvent] = []
        sink = EventSink(self.events.append)
        self.outage = Outage(sink, lambda: self.now_s)
        policy = RecoveryPolicy(credential_grace_s=GRACE_S, max_wait_s=3600.0)
        clock = Clock(monotonic=lambda: self.now_s)
        self.waits = Waits(fault, policy, sink, clock, self.outage)

    @property
    def said(self) -> list[str]:
        assert {event.name for event in self.events} <= {names.EVENT_WAITING}
        return [event.message for event in self.events]


REFUSED = RULES[Kind.UNAUTHORIZED]


def test_a_credential_refused_after_the_fault_is_waited_for_from_then_on_and_that_is_said() -> None:
    world = World(_fault())
    assert world.waits.grace_left_s() == math.inf
    assert not world.waits.for_credential(RULES[Kind.UNAVAILABLE])
    world.now_s += 50.0
    assert world.waits.for_credential(REFUSED)
    assert world.waits.grace_left_s() == GRACE_S
    assert len(world.said) == 1
    assert "waited for for 100 s" in world.said[0]
    world.waits.failed(ValueError(), waits=True)
    world.now_s += GRACE_S - 1.0
    assert world.waits.for_credential(REFUSED)
    assert world.waits.grace_left_s() == 1.0
    assert len(world.said) == 1, "it is said once"
    world.now_s += 1.0
    assert not world.waits.for_credential(REFUSED)
    assert world.waits.grace_left_s() == 0.0
    world.now_s += 1.0
    assert world.waits.grace_left_s() == 0.0


def test_a_fault_that_is_a_refused_credential_is_waited_for_from_its_beginning() -> None:
    world = World(_fault(kind=Kind.UNAUTHORIZED))
    world.now_s += 60.0
    assert world.waits.grace_left_s() == GRACE_S - 60.0
    assert world.waits.for_credential(REFUSED)
    assert "waited for for 40 s" in world.said[0]
    world.now_s += 40.0
    assert not world.waits.for_credential(REFUSED)
    assert len(world.said) == 1, "nothing is left to wait for"


@pytest.mark.parametrize("rule", [None, RULES[Kind.UNAVAILABLE]])
def test_a_credential_that_was_taken_in_between_has_its_time_anew(rule: Any) -> None:
    world = World(_fault(kind=Kind.UNAUTHORIZED))
    world.now_s += GRACE_S - 1.0
    assert not world.waits.for_credential(rule)
    assert world.waits.grace_left_s() == math.inf
    world.now_s += 60.0
    assert world.waits.for_credential(REFUSED)
    assert world.waits.grace_left_s() == GRACE_S


@pytest.mark.parametrize("by", list(DetectedBy))
def test_where_nothing_was_trained_yet_a_refused_credential_is_a_wrong_one(by: DetectedBy) -> None:
    world = World(_fault(by=by))
    waits = world.waits.for_credential(REFUSED)
    assert waits == (by not in {DetectedBy.START, DetectedBy.JOURNAL})
    assert len(world.said) == waits


def test_it_is_one_wait_after_another_only_where_both_tries_waited() -> None:
    waits = World(_fault()).waits
    assert (waits.missed, waits.last) == (0, None)
    late, other = DeadlineExceeded("late", 1.0), ValueError("other")
    assert not waits.failed(late, waits=True)
    assert waits.failed(other, waits=True)
    assert waits.last is other
    assert not waits.failed(late, waits=False)
    assert not waits.failed(late, waits=True)
    assert waits.missed == 3


@pytest.mark.parametrize("kind", list(Kind))
def test_only_what_the_service_did_not_answer_is_an_outage(kind: Kind) -> None:
    world = World(_fault())
    world.waits.remind(RULES.get(kind), waits=False)
    assert world.said == []
    unanswered = {Kind.UNAVAILABLE, Kind.DEADLINE, Kind.STATUS_UNREAD}
    assert world.outage.begins() == (kind not in unanswered)


def test_what_is_waited_for_is_said_when_it_is_time_with_the_silence_before_the_fault() -> None:
    world = World(_fault(silent_s=7.0))
    world.waits.failed(ValueError("last"), waits=True)
    rule = RULES[Kind.UNAVAILABLE]
    world.now_s += REMIND_S - 1.0
    world.waits.remind(rule, waits=True)
    assert world.said == []
    world.now_s += 1.0
    assert world.waits.lasted_s == REMIND_S
    world.waits.remind(rule, waits=False)
    assert world.said == []
    world.waits.remind(rule, waits=True)
    world.waits.remind(rule, waits=True)
    assert world.said == [
        words.waiting(REMIND_S + 7.0, rule, ValueError("last"), max_s=3600.0),
    ]


@pytest.mark.parametrize(
    ("step", "replayed", "said"),
    [
        (5, 0, "runs again from step 5, 0 steps are replayed"),
        (5, 1, "runs again from step 5, 1 step is replayed"),
        (0, 2, "runs again from step 0, 2 steps are replayed"),
        (None, 2, "at a step unknown to us"),
    ],
)
def test_a_recovery_says_where_the_loop_goes_on(step: int | None, replayed: int, said: str) -> None:
    assert said in words.recovered(step, replayed)


# -- the queue of faults -------------------------------------------------------------------------


async def test_faults_are_taken_in_their_order_and_again_if_who_took_them_died() -> None:
    queue, faults = FaultQueue(), [_fault(name) for name in "abcd"]
    for fault in faults[:3]:
        queue.put(fault)
    assert [await queue.take() for _ in range(2)] == faults[:2]
    queue.acknowledge(faults[0])
    queue.put(faults[3])
    assert queue.deliver_again() == 1
    assert [await queue.take() for _ in range(3)] == faults[1:]
    assert queue.deliver_again() == 3
    assert [await queue.take() for _ in range(3)] == faults[1:]


async def test_who_waits_for_a_fault_is_woken_by_one_that_is_delivered_again() -> None:
    queue, fault = FaultQueue(), _fault()
    queue.put(fault)
    assert await queue.take() == fault
    taken: list[Fault] = []

    async def take() -> None:
        taken.append(await queue.take())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            assert queue.deliver_again() == 1
    assert taken == [fault]
    queue.acknowledge(fault)
    assert queue.deliver_again() == 0


async def test_a_fault_is_settled_once_it_is_acknowledged_and_not_by_another() -> None:
    queue, fault, other = FaultQueue(), _fault("r"), _fault("s")
    with anyio.fail_after(5):
        await queue.settled(fault)  # it was never put in
        queue.put(fault)
        queue.put(other)
        settled: list[Fault] = []

        async def wait() -> None:
            await queue.settled(fault)
            settled.append(fault)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert settled == []
            await queue.take()
            await queue.take()
            queue.acknowledge(other)
            await anyio.wait_all_tasks_blocked()
            assert settled == []
            queue.acknowledge(fault)
        assert settled == [fault]


# -- the end of the Supervisor -------------------------------------------------------------------


def _run(**facts: Any) -> Any:
    return SimpleNamespace(
        **{
            "name": "r",
            "current": SimpleNamespace(entered=True),
            "incident": None,
            "recoveries": [],
            "failure": None,
            **facts,
        }
    )


NOT_ENTERED = SimpleNamespace(entered=False)
RECOVERED = [SimpleNamespace(fault=_fault("earlier")), SimpleNamespace(fault=_fault("newest"))]


@pytest.mark.parametrize(
    ("facts", "unseen"),
    [
        ({}, None),
        ({"current": None, "incident": _fault()}, None),
        ({"incident": _fault()}, "r"),
        ({"incident": _fault(), "current": NOT_ENTERED, "recoveries": RECOVERED}, None),
        ({"recoveries": RECOVERED}, None),
        ({"recoveries": RECOVERED, "current": NOT_ENTERED}, "newest"),
        ({"current": NOT_ENTERED}, None),
    ],
)
def test_a_fault_is_unseen_whose_loop_has_not_come_back(
    facts: dict[str, Any], unseen: str | None
) -> None:
    found = unseen_fault(_run(**facts))
    assert (None if found is None else found.run) == unseen


def test_a_run_whose_supervisor_ends_fails_by_what_was_wrong_with_it() -> None:
    own = RuntimeError("its own")
    fault = _fault(error=ValueError("gone"))
    assert failure_at_exit(_run(), None) is None
    assert failure_at_exit(_run(failure=own), None) is own
    assert failure_at_exit(_run(failure=own, incident=fault), None) is own
    cut = failure_at_exit(_run(incident=fault), None)
    assert isinstance(cut, RunFailed)
    assert not isinstance(cut, RecoveryLost)
    assert "while run 'r' was being recovered" in str(cut)
    lost = failure_at_exit(_run(failure=own, incident=fault), fault)
    assert isinstance(lost, RecoveryLost)
    assert "came to light after its loop had been left" in str(lost)


@pytest.mark.parametrize(
    ("confirmed", "floor"), [([], None), ([5], None), ([5, 5], None), ([5, 3], 3), ([1, 9, 5], 5)]
)
def test_what_is_made_for_a_step_is_kept_as_long_as_two_confirmed_saves_are_below(
    confirmed: list[int], floor: int | None
) -> None:
    assert floor_of(confirmed) == floor
