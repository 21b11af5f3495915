"""A crash of the Monitor or the Executor is not a fault of the run: they are restarted under it."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from inspection import faults_left
from loops import (
    MODEL,
    SEED,
    CrashAtDetection,
    InstantClock,
    policy,
    train,
    undisturbed_state,
    until,
)
from sweeps import pairs

from tinker_recovery import Clock, RecoveryEvent, RecoveryPolicy, Supervisor
from tinker_recovery.checkpoints.canary import CanaryBook
from tinker_recovery.faults import Fault
from tinker_recovery.recovery import inspector, selection
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.retention.loop import RetentionLoop
from tinker_recovery.run.monitored import MonitoredRun
from tinker_recovery.run.rollback_detector import RollbackDetector
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service import FromCheckpoint, Origin, StatusReader, TinkerBackend
from tinker_recovery.service.client import SupervisedClient
from tinker_recovery.supervision import RestartLimitReached
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.figures import RunFigures
from tinker_recovery.telemetry.run_telemetry import RunTelemetry
from tinker_recovery.testing import FaultRule, FiredFault, LocalTinker

STEPS = 12
POLL_S = 0.02

Note = Callable[[RecoveryEvent], object]


def cancel_child(child: str) -> None:
    """Cancel a child's task from outside, as a library gone wrong would."""
    (task,) = [one for one in asyncio.all_tasks() if one.get_name().endswith(f"/{child}#1")]
    task.cancel()


class Crash:
    """Makes the Executor crash once, wherever it is put."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.count = 0

    def __call__(self) -> None:
        task = asyncio.current_task()
        if task is not None and "/retention#" in task.get_name():
            return  # it inspects checkpoints as well
        self.count += 1
        if self.count > 1:
            return
        if self.how == "its task is cancelled":
            cancel_child("executor")
        elif self.how == "the Monitor's task is cancelled":
            cancel_child("monitor")
        else:
            raise asyncio.CancelledError("nobody asked for this")


def before(crash: Crash, call: Callable[..., Any]) -> Callable[..., Any]:
    def crashing(*args: Any, **options: Any) -> Any:
        crash()
        return call(*args, **options)

    return crashing


def after(crash: Crash, call: Callable[..., Any]) -> Callable[..., Any]:
    def crashing(*args: Any, **options: Any) -> Any:
        result = call(*args, **options)
        crash()
        return result

    return crashing


EVENTS = {
    "detected": names.EVENT_DETECTED,
    "attempt started": names.EVENT_STARTED,
    "checkpoint selected": names.EVENT_CHECKPOINT_SELECTED,
    "client created": names.EVENT_CLIENT_CREATED,
    "recovery completed": names.EVENT_COMPLETED,
}
"""The phases that end with an event: there the user's own listener makes it crash."""


def put(crash: Crash, phase: str, monkeypatch: pytest.MonkeyPatch) -> Note:
    """Have it crash in this phase of a recovery, with this as a listener."""

    def note(event: RecoveryEvent) -> None:
        if event.name == EVENTS.get(phase):
            crash()

    if phase in EVENTS:
        return note
    if phase == "before the client is made":
        # Not the first client, which the Supervisor makes itself.
        connect = TinkerBackend.connect

        async def crashing(backend: TinkerBackend, origin: Origin, **options: Any) -> Any:
            if isinstance(origin, FromCheckpoint):
                try:
                    crash()
                except BaseException:
                    if options.get("pending") is not None:
                        await backend.discard(options["pending"])
                    raise
            return await connect(backend, origin, **options)

        monkeypatch.setattr(TinkerBackend, "connect", crashing)
        return note
    owner, name, where = {
        "before the listing": (selection, "list_checkpoints", before),
        "before the validation": (inspector, "check_listing", before),
        "after the validation": (inspector, "check_listing", after),
        "before the hand-over": (SupervisedRun, "hold_ready", before),
        "after the hand-over": (SupervisedRun, "hold_ready", after),
        "before the loop runs again": (SupervisedRun, "hand_over", before),
        "after the loop runs again": (SupervisedRun, "hand_over", after),
    }[phase]
    monkeypatch.setattr(owner, name, where(crash, getattr(owner, name)))
    return note


PHASES = [
    "detected",
    "attempt started",
    "before the listing",
    "before the validation",
    "after the validation",
    "checkpoint selected",
    "before the client is made",
    "client created",
    "before the hand-over",
    "after the hand-over",
    "recovery completed",
    "before the loop runs again",
    "after the loop runs again",
]

TO_THE_END_IN_ONE_STEP = PHASES[PHASES.index("client created") :]
"""From here on nothing is awaited, so a cancellation from outside lands once all is done."""


async def recover_once(
    local: LocalTinker,
    *,
    clock: Clock,
    quiet: bool = False,
    note: Note = lambda _: None,
    **changes: Any,
) -> tuple[Supervisor, list[RecoveryEvent]]:
    """A run poisoned once; held to end with the weights of an undisturbed one."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("poison", 7, "optim_step", quiet=quiet))
    events: list[RecoveryEvent] = []

    def listen(event: RecoveryEvent) -> None:
        events.append(event)
        note(event)

    given: RecoveryPolicy = policy(poll_interval_s=POLL_S, **changes)
    async with Supervisor(given, clock=clock, on_event=listen) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    assert local.run_state(run.segments[-1].run_id) == expected
    starts = [attempt.start_step for attempt in run.attempts]
    # Where only a poll tells, what was saved since the last good one is not trusted, and on a busy
    # machine the loop may come to the fault before any.
    assert starts == [0, 5] or (quiet and starts == [0, 0])
    assert len(run.recoveries) == 1, "the fault was handled exactly once"
    assert not faults_left(supervisor), "and nothing of it is left"
    return supervisor, events


@pytest.mark.parametrize(
    ("phase", "how"),
    pairs(PHASES, ["its task is cancelled", "a cancellation nobody asked for"], 14),
)
async def test_an_executor_that_crashes_in_any_phase_gets_the_fault_again_and_recovers_once(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, phase: str, how: str
) -> None:
    crash = Crash(how)
    note = put(crash, phase, monkeypatch)
    taken: list[Fault] = []
    take = FaultQueue.take

    async def counted(channel: FaultQueue) -> Fault:
        fault = await take(channel)
        taken.append(fault)
        return fault

    monkeypatch.setattr(FaultQueue, "take", counted)
    clock = InstantClock(poll_interval_s=POLL_S)
    await recover_once(local, clock=clock.clock, note=note)
    assert crash.count >= 1
    if how == "its task is cancelled" and phase in TO_THE_END_IN_ONE_STEP:
        assert len(taken) == 1
    elif phase != "after the loop runs again":  # by then the loop may be over before it is back
        assert taken == [taken[0]] * 2, "the fault in hand was delivered again"


@pytest.mark.parametrize(
    "what",
    [
        (SupervisedRun, "_new_attempt"),
        (RunFigures, "recovered"),
        (RunTelemetry, "segment_began"),
        (RollbackDetector, "note_resumed"),
        (SupervisedClient, "record_canary"),
        (RetentionLoop, "ask"),
    ],
    ids=lambda what: f"{what[0].__name__}.{what[1]}",
)
async def test_an_exception_of_ours_in_a_hand_over_never_leaves_the_loop_waiting(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, what: tuple[type, str]
) -> None:
    usual, due, raised = getattr(*what), False, False

    def arm(event: RecoveryEvent) -> None:
        nonlocal due
        due |= event.name == names.EVENT_CLIENT_CREATED

    def raising(*args: Any, **options: Any) -> Any:
        nonlocal raised
        if due and not raised:
            raised = True
            raise TypeError("something of ours is None")
        return usual(*args, **options)

    monkeypatch.setattr(*what, raising)
    monkeypatch.setattr(CanaryBook, "measured", False)  # so that it is asked in every hand-over
    clock = InstantClock(poll_interval_s=POLL_S)
    with anyio.fail_after(20):
        _, events = await recover_once(local, clock=clock.clock, note=arm, canary="auto")
    assert raised, "it was called in the hand-over"
    failed = [event.message for event in events if event.name == names.EVENT_FAILED]
    assert failed == ["recovery attempt 1 failed: something of ours is None"]


@pytest.mark.parametrize("phase", PHASES[::3])
async def test_a_monitor_that_crashes_in_any_phase_of_a_recovery_does_not_touch_it(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    crash = Crash("the Monitor's task is cancelled")
    note = put(crash, phase, monkeypatch)
    clock = InstantClock(poll_interval_s=POLL_S)
    _, events = await recover_once(local, clock=clock.clock, note=note)
    assert crash.count >= 1
    assert Counter(event.name for event in events)[names.EVENT_STARTED] == 1


async def test_an_executor_that_crashes_again_and_again_leaves_the_loop_alone_until_its_limit(
    local: LocalTinker,
) -> None:
    """Ten crashes are within the budget; the run recovers all the same."""
    crash = CrashAtDetection(*[OSError("the Executor's own bug")] * 10)
    clock = InstantClock(poll_interval_s=POLL_S)
    crashing = replace(clock.clock, monotonic=crash.monotonic)
    _, events = await recover_once(local, clock=crashing, note=crash.note)
    assert Counter(event.name for event in events)[names.EVENT_DETECTED] == 11
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]


async def test_beyond_its_limit_the_run_ends_with_the_crash_that_was_one_too_many(
    local: LocalTinker,
) -> None:
    """And with every session closed, which the server is asked about after each test."""
    own = OSError("the Executor's own bug")
    crash = CrashAtDetection(*[own] * 100)
    clock = replace(InstantClock(poll_interval_s=POLL_S).clock, monotonic=crash.monotonic)
    with pytest.raises(RestartLimitReached) as caught:
        await recover_once(local, clock=clock, note=crash.note)
    assert caught.value.child == "executor"
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert caught.value.__cause__.exceptions == (own,)


@pytest.mark.parametrize(
    ("owner", "name", "where"),
    [
        (StatusReader, "run", before),
        (MonitoredRun, "note_status", before),
        (MonitoredRun, "note_status", after),
    ],
)
async def test_a_monitor_that_crashes_while_it_polls_polls_again_and_detects_once(
    local: LocalTinker,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    where: Callable[[Any, Callable[..., Any]], Callable[..., Any]],
) -> None:
    crashes = []

    def crash() -> None:
        crashes.append(True)
        if len(crashes) == 1:
            raise OSError("the Monitor's own bug")

    monkeypatch.setattr(owner, name, where(crash, getattr(owner, name)))
    clock = InstantClock(poll_interval_s=-1)
    supervisor, _ = await recover_once(local, clock=clock.clock, quiet=True)
    assert len(crashes) > 1
    assert [recovery.fault.detected_by for recovery in supervisor.runs[0].recoveries] == ["poll"]
    assert 0.1 in clock.slept, "the restart waited its backoff"


class SilenceClock:
    """Sleeps end at once; those of the watch over the heartbeat once silence is allowed to fall."""

    def __init__(self) -> None:
        self.now = 0.0
        self.silence = anyio.Event()

    async def _sleep(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        if "heartbeat" in task.get_name():
            await self.silence.wait()
            self.silence = anyio.Event()
            self.now += seconds
        await anyio.lowlevel.checkpoint()

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, sleep=self._sleep, random=lambda: 0.0)


async def test_a_monitor_that_hangs_is_replaced_and_the_next_one_detects(
    local: LocalTinker,
) -> None:
    silence = SilenceClock()
    local.inject(FaultRule("slow", request="training_run", delay_s=60.0))

    def hung() -> list[FiredFault]:
        return [fault for fault in local.fired if fault.rule.action == "slow"]

    async def fall_silent() -> None:
        await until(lambda: bool(hung()))
        silence.silence.set()

    async with anyio.create_task_group() as group:
        group.start_soon(fall_silent)
        supervisor, _ = await recover_once(
            local, clock=silence.clock, quiet=True, status_timeout_s=60.0
        )
    assert len(hung()) == 1
    assert [recovery.fault.detected_by for recovery in supervisor.runs[0].recoveries] == ["poll"]
