"""How a run gets from a fault to its next attempt, and to its end: with attempts made up here."""

from __future__ import annotations

import asyncio
import functools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import tinker
from made import LINEAGE, NOW, record, segment
from tinker.types import RequestErrorCategory

from tinker_recovery import LeaseLost, RecoveryEvent, RecoveryPolicy, RunFailed, UsageError
from tinker_recovery.checkpoints import WeightsFacts
from tinker_recovery.clock import Clock
from tinker_recovery.errors import StatusRefused, StatusUnavailable
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind, Verdict
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.recoverable import Recovery
from tinker_recovery.recovery.resume import RunSnapshot
from tinker_recovery.run import member, supervised
from tinker_recovery.run.member import GroupMember, RunGroup
from tinker_recovery.run.options import plan_start
from tinker_recovery.run.retiring import finish, retire
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import EventSink


def fault(kind: Kind = Kind.CORRUPTED, verdict: Verdict | None = None, **more: Any) -> Fault:
    rule = RULES[kind] if verdict is None else replace(RULES[kind], verdict=verdict)
    return Fault("r", 1, "a", rule, DetectedBy.CALL, 7, **more)


class Attempt:
    """An attempt as its run sees it."""

    def __init__(self, name: str, log: list[object], *, step: int = 5, **facts: Any) -> None:
        self.id = self.run_id = name
        self.number = 1
        self.segment = segment(name, facts.get("start", 0), facts.get("parent"))
        self.start_step = self.segment.start_step
        self.checkpoint = facts.get("checkpoint")
        self.connection = facts.get("connection")
        self.fault: Fault | None = None
        self.entered, self.blocking = True, facts.get("blocking", False)
        self.left, self.gone = anyio.Event(), anyio.Event()
        self.client = SimpleNamespace(
            step=step,
            first_doubtful_step=math.inf,
            unsettled_saves=(),
            meter=None,
            record_canary=functools.partial(log.append, ("canary", name)),
            save=lambda _: log.append(("save", name)),
        )
        self.saver = SimpleNamespace(steps_done=lambda: 0, begin=None, probes=False)
        self.progress = SimpleNamespace(read_pauses=tuple)
        self.refusal = SimpleNamespace(is_absent=self._is_absent)
        self.absent = [True]
        self._log = log

    @property
    def faulty(self) -> bool:
        return self.fault is not None

    async def _is_absent(self) -> bool:
        return self.absent.pop(0)

    async def close(self, how: str, why: str) -> None:
        self._log.append(("close", self.id, how, why))

    def declare_fault(self, rule: Any, by: DetectedBy, error: BaseException) -> None:
        self._log.append(("declare", self.id, rule.kind, by, error))


class World:
    """A run, with all that is behind it made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
        self.log: list[object] = []
        self.queued: list[Fault] = []
        self.spawned: list[Any] = []
        self.events: list[RecoveryEvent] = []
        self.connects: list[Any] = []
        self.corrupted: bool | Exception = True
        self.claim: LeaseLost | None = None
        self.keeps = facts.get("keeps", "kept")
        self.made = 0
        self.said: Any = None
        """What the journal was given to say of the end."""
        self.settles_within_s = math.inf
        """How long callbacks have to hear of a fault."""
        for name in ("end_and_give_free", "claim_lost", "say_the_end", "first_client", "Restore"):
            monkeypatch.setattr(supervised, name, getattr(self, f"_{name.lower()}"))
        monkeypatch.setattr(supervised, "AttemptScope", self._attempt)
        monkeypatch.setattr(member, "Restore", self._restore)
        start: Any = facts.get("start", {"base_model": "m", "rank": 8})
        plan = plan_start(start, restore_optimizer=True)
        if facts.get("adopted"):
            plan = replace(plan, adopted=facts["adopted"], origin=None)
        stored: Any = SimpleNamespace(
            name=facts.get("name", "r"),
            given_name="r",
            lineage=LINEAGE,
            lease=None,
            path=None,
            stored=None,
            fault=lambda *_, **__: None,
        )
        opened: Any = SimpleNamespace(
            record=stored,
            plan=plan,
            root=None,
            start_step=3,
            snapshot=facts.get("snapshot"),
            guard=Guard(),
            origin={},
        )
        reader = SimpleNamespace(run=self._status, metadata=SimpleNamespace(keeps=self.keeps))
        collaborators = Collaborators(
            RecoveryPolicy(**facts.get("policy", {})),
            cast("Any", SimpleNamespace(close=self._close)),
            cast("Any", reader),
            cast("Any", None),
            EventSink(self.events.append),
            Clock(monotonic=lambda: 10.0),
            spawn=self.spawned.append,
            spares=cast(
                "Any",
                SimpleNamespace(
                    load=lambda *given: self.log.append(("spare", *given)),
                    drop=lambda run: self.log.append(("no spare", run)),
                ),
            ),
        )
        parts: Any = (
            SimpleNamespace(put=self.queued.append, settled=self._settled),
            SimpleNamespace(deliver=lambda: None),
            SimpleNamespace(requested=False),
            SimpleNamespace(ask=lambda run: self.log.append(("retention", run.name))),
        )
        group = facts.get("group")
        self.run: Any = (
            SupervisedRun(opened, collaborators, *parts)
            if group is None
            else GroupMember(group, opened, collaborators, *parts)
        )
        self.run.checkpoints.confirmed_to = lambda _: math.inf
        self.run.rollbacks = cast(
            "Any",
            SimpleNamespace(
                distrust_since=lambda of, _: self.log.append(("distrust", of)),
                note_resumed=lambda step: self.log.append(("resumed", step)),
                in_doubt=False,
            ),
        )
        self.run.journal = cast(
            "Any",
            SimpleNamespace(
                fault=lambda of, *, recovers: self.log.append(("journal", of, recovers)),
                attempt_begins=self._begins,
                run_ends=lambda error: ("ends", error),
                sound_step=lambda attempt: attempt.client.step,
                dead_s=17.0,
            ),
        )

    # In place of what it calls

    def _attempt(self, run: Any, number: int, connection: Any, checkpoint: Any) -> Any:
        del run
        self.made += 1
        start = 0 if checkpoint is None else checkpoint.step
        parent = None if checkpoint is None else checkpoint.path
        made = Attempt(
            f"new {self.made}", self.log, step=start, start=start, parent=parent,
            checkpoint=checkpoint, connection=connection,
        )  # fmt: skip
        made.number = number
        return made

    async def _begins(self, attempt: Any) -> None:
        self.log.append(("begins", attempt.id))

    async def _first_client(self, _: object, origin: object, patience: Any) -> Any:
        patience.report("queued")
        self.log.append(("connect", origin))
        made = self.connects.pop(0) if self.connects else "a client"
        if isinstance(made, BaseException):
            raise made
        return made

    def _restore(self, *given: Any, **more: Any) -> Any:
        return given[:1], more

    async def _close(self, connection: object, *how: object, deadline_s: float) -> None:
        self.log.append(("closed", connection, how[0], deadline_s))

    async def _end_and_give_free(
        self, said: Any, run: Any, attempts: Any, *, well: bool = False
    ) -> None:
        del run
        self.said = said
        if asyncio.iscoroutine(said):
            await said
        self.log.append(("free", [each and each.id for each in attempts], well))

    async def _claim_lost(self, _: object) -> LeaseLost | None:
        return self.claim

    async def _say_the_end(self, attempt: Any, error: BaseException | None) -> None:
        self.log.append(("said", attempt.id, error))

    async def _settled(self, of: Fault) -> None:
        self.settles_within_s = anyio.current_effective_deadline() - anyio.current_time()
        self.log.append(("settled", of))

    async def _status(self, run_id: str) -> Any:
        if isinstance(self.corrupted, Exception):
            raise self.corrupted
        self.log.append(("asked", run_id))
        info = {
            "training_run_id": run_id,
            "base_model": "m",
            "model_owner": "us",
            "is_lora": True,
            "lora_rank": 8,
            "last_request_time": NOW,
            "corrupted": self.corrupted,
        }
        return tinker.types.TrainingRun.model_validate(info)

    # What is done with it

    def trains(self, name: str = "a", **facts: Any) -> Any:
        """An attempt that is under way."""
        made: Any = Attempt(name, self.log, **facts)
        self.run.attempts.add(made)
        return made

    def restored(self, step: int = 4, answer: Any = None) -> Any:
        return SimpleNamespace(connection="c", checkpoint=record(step), answer=answer)

    def recover(self, of: Fault, **restored: Any) -> Recovery:
        self.run.hold_ready(self.restored(**restored))
        recovery = Recovery(
            of, checkpoint=None, replayed_steps=0, attempt=2, handed_over_at=1.0, service_s=0.0
        )
        self.run.hand_over(recovery)
        return recovery

    def in_background(self) -> list[object]:
        """What was to be done in the background, and of which attempt."""
        return [(each.func, each.args[0].id) for each in self.spawned]


# -- a fault -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.CORRUPTED, Kind.UNAVAILABLE])
def test_a_fault_opens_one_incident_that_ends_the_attempt(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    world = World(monkeypatch)
    run, first = world.run, fault(kind)
    world.trains()
    assert (run.state, run.recovering, run.awaits(first)) == ("training", False, False)
    run.report_fault(first)
    run.report_fault(fault(Kind.SILENCE))
    assert world.queued == [first]
    assert (run.state, run.recovering) == ("recovering", True)
    assert (run.awaits(first), run.awaits(fault())) == (True, False)
    assert world.log == [("distrust", first), ("journal", first, True)]
    closes: list[object] = [(finish, "a")] if kind is Kind.CORRUPTED else []
    assert world.in_background() == [*closes, (retire, "a")], "a service that is away is not asked"
    assert run.history.evidence.failures == 1
    assert "recovering" in repr(run)
    run.ended = True
    assert not run.awaits(first)


def test_a_stop_that_is_gone_on_from_is_no_failure_and_looks_as_if_it_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.run.report_fault(fault(Kind.PROCESS_LOST, orderly=True))
    assert (world.run.history.evidence.failures, world.run.state) == (0, "training")
    assert world.spawned == [], "there is no client"


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_fault_that_is_not_recovered_from_ends_only_a_loop_that_blocks(
    monkeypatch: pytest.MonkeyPatch, *, enabled: bool, blocking: bool
) -> None:
    world = World(monkeypatch, policy={"enabled": enabled})
    world.trains(blocking=blocking)
    left_alone = fault(verdict=Verdict.GIVE_UP if enabled else None)
    world.run.report_fault(left_alone)
    assert (world.queued, world.run.recovering) == ([left_alone], False)
    assert world.log == [("journal", left_alone, False)]
    assert world.in_background() == ([(retire, "a")] if enabled and blocking else [])
    assert world.run.awaits(left_alone)
    world.run.ended = True
    assert not world.run.awaits(left_alone)
    world.run.report_fault(fault())
    assert len(world.queued) == 1


@pytest.mark.parametrize(
    ("steps", "mode", "skipped"),
    [
        ([4, 4], "skip_step", 4),
        ([4], "skip_step", None),
        ([4, 5], "skip_step", None),
        ([4, 5, 5], "skip_step", 5),
        ([None, None], "skip_step", None),
        ([4, 4], "raise", None),
    ],
)
def test_a_step_is_left_out_if_it_faults_again_and_the_policy_says_so(
    monkeypatch: pytest.MonkeyPatch, steps: list[int | None], mode: str, skipped: int | None
) -> None:
    given = RecoveryPolicy.model_fields["on_repeated_fault"].default if mode == "raise" else mode
    world = World(monkeypatch, policy={"on_repeated_fault": given})
    for step in steps:
        of = fault(failed_step=step)
        world.run.report_fault(of)
        if step is not steps[-1] or steps.count(step) == 1:
            world.recover(of)
            continue
        world.run.incident = None
    world.run.incident = fault()
    assert world.run.step_to_skip() == skipped
    assert world.run.step_to_skip() is None, "it is left out by now"
    assert world.run.skipped == ({skipped} if skipped else set())


# -- the next attempt ----------------------------------------------------------------------------


async def test_the_loop_goes_on_with_the_client_that_was_held_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    run, old, of = world.run, world.trains(), fault()
    run.report_fault(of)
    world.log.clear()
    handed = run.hold_ready(world.restored())
    assert (handed.step, handed.progress) == (4, 4)
    assert handed.arguments[0] is old.client
    assert handed.arguments[2] == record(4)
    assert handed.callback is run.policy.on_recovery
    assert handed.is_wanted()
    assert run.current is old
    run.checkpoints.skipped["p"] = "it did not load"
    waiting = asyncio.create_task(run.next_attempt())
    await anyio.wait_all_tasks_blocked()
    assert not waiting.done()
    recovery = Recovery(of, None, 1, 2, 1.0, 0.0)
    run.hand_over(recovery)
    assert (await waiting).id == "new 1"
    assert (run.recoveries, run.recovering) == ([recovery], False)
    assert run.checkpoints.skipped == {}, "it may be tried again"
    assert world.log == [
        ("resumed", 4),
        ("canary", "new 1"),
        ("retention", "r"),
        ("spare", "r", record(4).path),
        ("begins", "new 1"),
    ]
    assert run.protected == {record(4).path: "a client was made from it"}


def test_what_was_held_ready_before_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    with pytest.raises(UsageError, match="hold_ready"):
        world.run.hand_over(cast("Any", None))
    world.run.hold_ready(world.restored(4))
    handed = world.run.hold_ready(world.restored(2))
    assert world.in_background() == [(retire, "new 1")]
    assert handed.arguments[0] is None, "there was no client before"
    assert world.run.protected == {record(2).path: "a client was made from it"}


def test_a_canary_that_was_answered_in_the_restore_is_noted_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.run.hold_ready(world.restored(4, answer=(-1.0, -2.0)))
    at = record(4).model_copy(update={"attempt": "new 1"})
    assert world.run.checkpoints.expects(at)
    world.run.hold_ready(world.restored(4))
    assert not world.run.checkpoints.expects(at.model_copy(update={"attempt": "new 2"}))


def test_a_client_that_failed_before_anyone_trained_on_it_is_recovered_from_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    first, second = fault(), fault(Kind.SILENCE)
    world.run.report_fault(first)
    world.run.hold_ready(world.restored())
    ready: Any = world.run._ready
    ready.fault = second
    world.run.hand_over(Recovery(first, None, 0, 2, 1.0, 0.0))
    assert world.queued == [first, second]
    assert ("canary", "new 1") not in world.log
    assert world.run.incident is second


def test_a_run_that_goes_on_after_a_stop_has_had_no_recovery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    of = fault(Kind.PROCESS_LOST, orderly=True)
    world.run.report_fault(of)
    world.recover(of)
    assert (world.run.recoveries, len(world.run.attempts)) == ([], 1)


async def test_who_waits_for_a_run_that_is_given_up_gets_its_error_and_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, error = World(monkeypatch), RunFailed("no", run="r", errors=[])
    world.run.report_fault(fault())
    world.run.give_up(error)
    with pytest.raises(RunFailed):
        await world.run.next_attempt()
    assert (world.run.failure, world.run.ended, world.run.state) == (error, True, "over")
    assert world.run.lost is None, "its owner knows"


async def test_who_is_cancelled_while_waiting_leaves_a_run_that_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.run.report_fault(fault())
    with anyio.move_on_after(0):
        await world.run.next_attempt()
    assert world.run.ended


# -- the first attempt ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "keeps", "saves", "probes"),
    [
        ({}, "kept", True, False),
        ({}, "unknown", True, True),
        ({"checkpoints": {"save_at_start": False}}, "unknown", False, False),
    ],
)
async def test_a_run_that_begins_saves_first_and_looks_what_becomes_of_it(
    monkeypatch: pytest.MonkeyPatch, policy: Any, keeps: str, *, saves: bool, probes: bool
) -> None:
    world = World(monkeypatch, policy=policy, keeps=keeps)
    attempt: Any = await world.run.first_attempt()
    assert attempt.number == 1
    assert (("save", "new 1") in world.log, attempt.saver.probes) == (saves, probes)
    assert world.log.count(("canary", "new 1")) == 1, "its noise is measured"
    assert world.run.checkpoints.began == (None, "new 1", 0)
    assert [each.message for each in world.events] == ["queued"]
    assert ("begins", "new 1") in world.log


async def test_an_adopted_client_is_saved_at_once_as_it_cannot_be_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(
        monkeypatch, adopted="theirs", policy={"checkpoints": {"save_at_start": False}},
        keeps="unknown",
    )  # fmt: skip
    attempt: Any = await world.run.first_attempt()
    assert (attempt.connection, attempt.saver.probes) == ("theirs", False)
    assert ("save", "new 1") in world.log


async def test_where_the_first_save_is_refused_another_client_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    made = world._attempt

    def refused_once(*given: Any) -> Any:
        attempt = made(*given)
        attempt.absent = [world.made > 1]
        return attempt

    monkeypatch.setattr(supervised, "AttemptScope", refused_once)
    attempt: Any = await world.run.first_attempt()
    assert (attempt.id, len(world.run.attempts)) == ("new 2", 2)


async def test_a_start_that_fails_for_a_time_is_recovered_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.connects = [StatusUnavailable("no answer")]
    starting = asyncio.create_task(world.run.first_attempt())
    await anyio.wait_all_tasks_blocked()
    (of,) = world.queued
    assert (of.attempt, of.run_id, of.detected_by, of.step) == (0, "", DetectedBy.START, 3)
    assert world.run.budget.left == 3
    world.recover(of)
    assert (await starting).id == "new 1"


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (StatusUnavailable("no answer"), {"policy": {"enabled": False}}),
        (ValueError("their own"), {}),
        (tinker.RequestFailedError("bad rank", "1", RequestErrorCategory.User), {}),
        (LeaseLost("taken over", run="r"), {}),
    ],
)
async def test_a_start_that_fails_otherwise_is_the_callers_error_and_the_run_over(
    monkeypatch: pytest.MonkeyPatch, error: Exception, facts: Any
) -> None:
    world = World(monkeypatch, **facts)
    world.connects = [error]
    with pytest.raises(type(error)):
        await world.run.first_attempt()
    assert (world.run.ended, world.queued) == (True, [])
    assert world.said == ("ends", error)


async def test_a_start_that_is_cancelled_leaves_a_name_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.connects = [asyncio.CancelledError()]
    with pytest.raises(asyncio.CancelledError):
        await world.run.first_attempt()
    assert world.run.ended
    assert world.said is not None


@pytest.mark.parametrize("when", ["begins", "is looked at"])
async def test_an_attempt_that_another_process_forbids_is_not_trained(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    world, lost = World(monkeypatch), LeaseLost("taken over", run="r")

    async def fail(*_: object) -> Any:
        raise lost

    if when == "begins":
        world.run.guard.begins = fail
    else:
        monkeypatch.setattr(Attempt, "_is_absent", fail)
    with pytest.raises(LeaseLost):
        await world.run.first_attempt()
    assert (world.run.ended, world.said) == (True, ("ends", lost))


@pytest.mark.parametrize("refused", [0, 1])
async def test_after_a_save_that_was_refused_it_is_looked_what_becomes_of_the_next(
    monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    world = World(monkeypatch)
    world.run.history.refused_saves = refused
    attempt: Any = await world.run.first_attempt()
    assert attempt.saver.probes == bool(refused)


async def test_a_run_that_starts_from_a_checkpoint_has_one_to_go_back_to_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, start={"from_checkpoint": "tinker://x/weights/1"})
    assert world.run.parent == "tinker://x/weights/1"
    await world.run.first_attempt()
    assert ("save", "new 1") not in world.log
    assert ("canary", "new 1") in world.log
    assert world.run.protected == {}


def snapshot(**facts: Any) -> RunSnapshot:
    return RunSnapshot(
        **{
            "name": "r",
            "lineage": LINEAGE,
            "segments": (segment("x", 0, facts.pop("parent", None)),),
            "checkpoints": CheckpointState("r"),
            "step": 6,
            "weights": WeightsFacts("m", 8),
            **facts,
        }
    )


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_run_that_another_process_left_goes_on_from_what_it_saved(
    monkeypatch: pytest.MonkeyPatch, *, orderly: bool
) -> None:
    world = World(monkeypatch, snapshot=snapshot(orderly=orderly))
    assert world.run.weights == WeightsFacts("m", 8)
    starting = asyncio.create_task(world.run.first_attempt())
    await anyio.wait_all_tasks_blocked()
    (of,) = world.queued
    assert (of.kind, of.attempt, of.run_id, of.step) == (Kind.PROCESS_LOST, 1, "x", 6)
    assert (of.orderly, of.silent_s, of.detected_by) == (orderly, 17.0, DetectedBy.JOURNAL)
    assert len(world.spawned) == 1, "its sessions are ended"
    world.recover(of)
    attempt = await starting
    assert (attempt.id, attempt.number) == ("new 1", 2)
    assert len(world.run.segments) == 2
    assert not any(each for each in world.log if isinstance(each, tuple) and each[0] == "connect")


@pytest.mark.parametrize(
    ("facts", "goes_on"),
    [({}, False), ({"saved": {("x", 4): {}}}, True), ({"parent": "p"}, True)],
)
async def test_an_adopted_client_is_used_only_if_nothing_was_saved_of_the_run(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], *, goes_on: bool
) -> None:
    world = World(monkeypatch, adopted="theirs", snapshot=snapshot(**facts))
    starting = asyncio.create_task(world.run.first_attempt())
    await anyio.wait_all_tasks_blocked()
    if goes_on:
        world.recover(world.queued[0])
    attempt: Any = await starting
    assert attempt.connection == ("c" if goes_on else "theirs")
    closed = ("closed", "theirs", "interrupted", world.run.policy.close_timeout_s)
    assert (closed in world.log) == goes_on


# -- what is asked of it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "corrupted"), [(True, True), (False, False), (StatusUnavailable("no"), False)]
)
async def test_the_service_is_asked_whether_a_run_is_corrupted(
    monkeypatch: pytest.MonkeyPatch, *, said: bool | Exception, corrupted: bool
) -> None:
    world = World(monkeypatch)
    assert not await world.run.is_corrupted(), "there is no client"
    world.trains()
    world.corrupted = said
    assert await world.run.is_corrupted() is corrupted


def test_a_run_that_another_process_took_is_trained_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = LeaseLost("taken over", run="r")
    world = World(monkeypatch)
    world.run.lease_lost(lost)
    assert world.run.failure is lost, "there is no attempt to end"
    world = World(monkeypatch)
    world.trains()
    world.run.lease_lost(lost, DetectedBy.CLAIM)
    assert world.log == [("declare", "a", Kind.LEASE_LOST, DetectedBy.CLAIM, lost)]
    assert world.run.failure is None
    world.run.report_fault(fault())
    world.run.lease_lost(lost)
    assert world.run.failure is lost, "and a recovery under way is given up"


@pytest.mark.parametrize(
    ("facts", "pending"),
    [
        ({}, True),
        ({"save_best": False}, False),
        ({"metrics": {"loss": 1.0}}, False),
        ({"metrics": {"other": 1.0}}, True),
        ({"attempt": "b"}, False),
        ({"step": 2}, False),
        ({"ended": True}, False),
        ({"trains": False}, False),
    ],
)
def test_the_newest_save_is_not_known_to_be_worse_until_its_metric_has_come(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], *, pending: bool
) -> None:
    keep: dict[str, Any] = {"best_metric": "loss", "save_best": facts.get("save_best", True)}
    world = World(monkeypatch, policy={"checkpoints": keep})
    if facts.get("trains", True):
        world.trains()
    world.run.ended = facts.get("ended", False)
    world.run.history.saved.update({("a", 2): {}, ("a", 4): {}, ("b", 9): {}})
    of = record(
        facts.get("step", 4), attempt=facts.get("attempt", "a"), metrics=facts.get("metrics")
    )
    assert world.run.is_pending(of) is pending


def test_before_anything_was_saved_nothing_is_pending_but_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, policy={"checkpoints": {"best_metric": "loss", "save_best": True}})
    world.trains()
    assert world.run.is_pending(record(0))
    assert not world.run.is_pending(record(1))


# -- the end -------------------------------------------------------------------------------------


async def test_the_end_is_said_and_the_run_given_free(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    attempt = world.trains()
    await world.run.attempt_over(attempt, None)
    assert (world.run.ended, world.run.state) == (True, "over")
    assert world.log == [("no spare", "r"), ("said", "a", None), ("free", ["a", None], True)]


async def test_a_run_that_another_process_has_by_now_has_not_come_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    attempt = world.trains()
    world.claim = LeaseLost("taken over", run="r")
    with pytest.raises(LeaseLost):
        await world.run.attempt_over(attempt, None)
    assert world.log[1:] == [("said", "a", world.claim), ("free", ["a", None], False)]
    world.log.clear()
    error = ValueError("their own")
    await world.run.attempt_over(attempt, error)
    assert ("said", "a", error) in world.log, "that ended it before"


@pytest.mark.parametrize(
    ("verdict", "enabled", "waits"),
    [(None, True, False), (Verdict.GIVE_UP, True, True), (None, False, True)],
)
async def test_callbacks_hear_of_a_fault_that_is_left_alone_before_its_error_leaves(
    monkeypatch: pytest.MonkeyPatch, verdict: Verdict | None, *, enabled: bool, waits: bool
) -> None:
    world = World(monkeypatch, policy={"enabled": enabled, "close_timeout_s": 100.0})
    attempt = world.trains()
    attempt.fault = fault(verdict=verdict)
    await world.run.attempt_over(attempt, ValueError("no"))
    assert (("settled", attempt.fault) in world.log) == waits
    if waits:
        assert 150 < world.settles_within_s <= 200, "twice as long as one may take"


async def test_a_supervisor_that_ends_closes_what_is_open_and_wakes_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    attempt, of = world.trains(), fault()
    attempt.entered = False
    world.run.report_fault(of)
    world.run.hold_ready(world.restored())
    ready: Any = world.run._ready
    waiting = asyncio.create_task(world.run.next_attempt())
    await anyio.wait_all_tasks_blocked()
    await world.run.abandon()
    closes = [each for each in world.log if isinstance(each, tuple) and each[0] == "close"]
    assert closes == [
        ("close", name, "interrupted", "the supervisor ended") for name in ("a", "new 1")
    ]
    assert attempt.left.is_set()
    assert ready.left.is_set()
    assert isinstance(world.run.failure, RunFailed)
    assert world.said == ("ends", world.run.failure)
    with pytest.raises(RunFailed, match="while run 'r' was being recovered"):
        await waiting
    assert world.run.ended


async def test_a_supervisor_that_ends_before_a_run_began_has_nothing_against_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    await world.run.abandon()
    assert (world.run.ended, world.run.failure, world.run.lost) == (True, None, None)
    assert isinstance(world.said[1], asyncio.CancelledError)


async def test_a_fault_that_came_to_light_after_its_loop_was_left_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.trains()
    world.run.report_fault(fault())
    await world.run.abandon()
    assert world.run.lost is world.run.failure is not None
    world = World(monkeypatch)
    world.trains()
    world.run.report_fault(fault())
    world.run.give_up(error := RunFailed("before", run="r", errors=[]))
    await world.run.abandon()
    assert world.run.failure is error, "that says what happened"


# -- of a group ----------------------------------------------------------------------------------


def _members(monkeypatch: pytest.MonkeyPatch, *names: str, **facts: Any) -> list[World]:
    group = RunGroup()
    return [World(monkeypatch, group=group, name=name, **facts) for name in names]


REWOUND = Kind.GROUP_REWOUND


def test_in_a_group_the_others_go_back_with_a_run_that_has_a_fault_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two, three = _members(monkeypatch, "one", "two", "three")
    for world in (one, two):
        world.trains(world.run.name)
    one.run.group.in_body = True
    one.run.report_fault(first := fault())
    (declared,) = [each for each in two.log if cast("Any", each)[0] == "declare"]
    assert cast("Any", declared)[1:4] == ("two", REWOUND, DetectedBy.GROUP)
    assert "run 'one' of the same group" in str(cast("Any", declared)[4])
    assert three.log == [], "it has no attempt"
    one.run.group.in_body = True
    one.run.report_fault(fault())
    assert len([each for each in two.log if cast("Any", each)[0] == "declare"]) == 1
    assert one.run.incident is first


def test_in_a_group_what_is_saved_and_left_out_is_of_all_and_who_is_given_up_takes_all_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = _members(monkeypatch, "one", "two")
    assert one.run.history.saves is two.run.history.saves
    assert one.run.skipped is two.run.skipped
    one.run.give_up(error := ValueError("no"))
    assert (one.run.failure, two.run.failure) == (error, error)


async def test_a_run_of_a_group_waits_for_another_attempt_than_the_one_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (one,) = _members(monkeypatch, "one")
    held = one.trains()
    assert not one.run.waits(held)
    assert one.run.waits(None)
    one.run.incident = fault()
    assert one.run.waits(held)
    one.run.incident, one.run.failure = None, ValueError("no")
    assert one.run.waits(held)
    await one.run.end(ValueError("no"))
    assert (one.run.ended, len(one.log)) == (True, 2)
    await one.run.end(ValueError("no"))
    assert len(one.log) == 2, "it is over already"


@pytest.mark.parametrize(("kind", "skipped"), [(None, None), (REWOUND, None), (Kind.CORRUPTED, 4)])
def test_in_a_group_the_run_with_the_fault_says_which_step_is_left_out(
    monkeypatch: pytest.MonkeyPatch, kind: Kind | None, skipped: int | None
) -> None:
    (one,) = _members(monkeypatch, "one", policy={"on_repeated_fault": "skip_step"})
    for _ in range(2):
        one.run.incident = None
        one.run.report_fault(fault(failed_step=4))
    one.run.incident = None if kind is None else fault(kind)
    assert one.run.step_to_skip() == skipped


@pytest.mark.parametrize(
    ("kind", "said", "asked", "distrusted"),
    [
        (REWOUND, True, True, True),
        (REWOUND, False, True, False),
        (REWOUND, StatusRefused("no"), False, False),
        (Kind.CORRUPTED, True, False, False),
        (None, True, False, False),
    ],
)
async def test_a_run_that_goes_back_with_others_is_looked_at_for_a_fault_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind | None,
    *,
    said: bool | Exception,
    asked: bool,
    distrusted: bool,
) -> None:
    one, two = _members(monkeypatch, "one", "two")
    one.trains()
    one.corrupted = said
    one.run.incident = two.run.incident = None if kind is None else fault(kind)
    await one.run.group.look_at_the_others()
    assert (("asked", "a") in one.log) == asked
    found = [cast("Any", each)[1] for each in one.log if cast("Any", each)[0] == "distrust"]
    assert [each.kind for each in found] == [Kind.CORRUPTED] * distrusted
    assert all((of.step, of.detected_by, of.run_id) == (7, DetectedBy.POLL, "a") for of in found)
    assert two.log == [], "it has no client"


async def test_in_a_group_no_answer_is_raised_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (one,) = _members(monkeypatch, "one")
    one.trains()
    one.corrupted = StatusUnavailable("no answer")
    one.run.incident = fault(REWOUND)
    with pytest.raises(StatusUnavailable):
        await one.run.look()


@pytest.mark.parametrize("grouped", [True, False])
def test_a_try_to_restore_holds_the_runs_claim_and_is_made_ahead_only_if_that_is_said(
    monkeypatch: pytest.MonkeyPatch, *, grouped: bool
) -> None:
    (world,) = _members(monkeypatch, "one") if grouped else [World(monkeypatch)]
    waiting, patience = object(), object()
    (run,), given = world.run.restoration(waiting)
    assert (run, given["ahead"], given["patience"]) == (world.run, False, None)
    assert (given["waiting"], given["guard"]) == (waiting, world.run.guard)
    assert ("order" in given) == grouped
    _, given = world.run.restoration(waiting, ahead=True, patience=patience)
    assert (given["ahead"], given["patience"]) == (True, patience)


def test_what_a_group_can_go_back_to_together_is_not_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = _members(monkeypatch, "one", "two")
    assert one.run.protected == {}
    for world, steps in ((one, (2, 4, 6)), (two, (2, 4))):
        name = world.run.name
        world.trains(name)
        world.run.checkpoints.stored = {f"{name}/{step}": (name, step) for step in steps}
    assert one.run.trusted == {2: ["one/2"], 4: ["one/4"], 6: ["one/6"]}
    assert list(one.run.protected) == ["one/4"]
    one.run.hold_ready(one.restored(2))
    assert set(one.run.protected) == {"one/4", record(2).path}
