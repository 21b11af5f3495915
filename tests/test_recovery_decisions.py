"""What the Executor makes of each way a try to recover ends: a run and tries made up here."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import tinker
from made import LINEAGE
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr
from tinker.types import RequestErrorCategory

from tinker_recovery import (
    FaultError,
    LeaseLost,
    NoUsableCheckpoint,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryPolicy,
    RecoveryRefused,
    StatusRefused,
    StatusUnavailable,
)
from tinker_recovery.clock import Clock
from tinker_recovery.detection.outage import Outage
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind, Verdict
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.admission import MASS_RUNS
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.executor import Executor
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.recoverable import HandOver, Recovery
from tinker_recovery.recovery.waits import REMIND_S
from tinker_recovery.service import Endpoint, Patience, StatusReader, TinkerBackend
from tinker_recovery.telemetry import EventSink, RunTelemetry, metrics, names
from tinker_recovery.telemetry.greeting import Greeting

URL = "http://127.0.0.1:1"
STEP = 9
"""The step of each fault."""
REFUSED = tinker.RequestFailedError("bad rank", request_id="r", category=RequestErrorCategory.User)
NO_KEY = StatusRefused("HTTP 401", status_code=401)
SILENT = StatusUnavailable("no answer")


def fault(kind: Kind = Kind.CORRUPTED, verdict: Verdict | None = None, **more: Any) -> Fault:
    rule = RULES[kind] if verdict is None else replace(RULES[kind], verdict=verdict)
    given = {"detected_by": DetectedBy.CALL, "step": STEP, "detected_at": 0.0, **more}
    return Fault(run="r", attempt=1, run_id="a", rule=rule, **given)


def stopped() -> Fault:
    return fault(Kind.PROCESS_LOST, orderly=True, detected_by=DetectedBy.JOURNAL)


class World:
    """A run whose tries end as they are given, and a clock that is ahead by what was slept.

    Args:
        tries: What each try ends in: an error, the step of the client that it makes, or what is
            done in its place.
        of: The fault.
        policy: Fields of the policy.
    """

    def __init__(
        self, *tries: Any, of: Fault | None = None, name: str = "r", **policy: Any
    ) -> None:
        self.name = name
        self.fault = of or fault()
        self.tries = list(tries)
        self.progress: list[Any] = []
        """What each look for something newer ends in."""
        self.looks = 0
        self.aheads: list[bool] = []
        self.patiences: list[Patience] = []
        self.slept: list[float] = []
        self.now_s = 0.0
        self.events: list[RecoveryEvent] = []
        self.called: list[tuple[object, ...]] = []
        self.discarded: list[object] = []
        self.handed_over: list[Recovery] = []
        self.given_up: list[BaseException] = []
        self.said: list[tuple[str, str]] = []
        self.to_skip: int | None = None
        self.is_over = False
        self.outage: Outage | None = None
        self.policy = RecoveryPolicy(
            **{
                "max_attempts": 3,
                "backoff_s": 1.0,
                "backoff_jitter": 0.0,
                "max_wait_s": 100.0,
                "credential_grace_s": 10.0,
                "on_failure": self._note("on_failure"),
                "on_skip": self._note("on_skip"),
                **policy,
            }
        )
        self.budget = AttemptBudget(self.policy.max_attempts)
        self.telemetry = RunTelemetry("r", LINEAGE, lambda: self.now_s)

    def _note(self, name: str) -> Callable[..., None]:
        return lambda *given: self.called.append((name, *given))

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    # As the Executor sees a run

    def awaits(self, of: Fault) -> bool:
        return of is self.fault and not self.is_over

    def restoration(
        self, waiting: object, *, ahead: bool = False, patience: Patience | None = None
    ) -> Any:
        del waiting

        async def restore() -> Any:
            self.aheads.append(ahead)
            if patience is not None:
                self.patiences.append(patience)
            made = self.tries.pop(0)
            if isinstance(made, BaseException):
                raise made
            if callable(made):
                made = await made()
            return SimpleNamespace(connection=made, checkpoint=None)

        async def discard(connection: object) -> None:
            self.discarded.append(connection)

        async def progress() -> int | None:
            self.looks += 1
            found = self.progress.pop(0)
            if isinstance(found, Exception):
                raise found
            return None if found is None else int(found)

        return SimpleNamespace(restore=restore, discard=discard, progress=progress)

    def hold_ready(self, restored: Any) -> HandOver:
        step = restored.connection
        return HandOver(self._note("on_recovery"), (step,), step, step or 0)

    def step_to_skip(self) -> int | None:
        return self.to_skip

    def hand_over(self, recovery: Recovery) -> None:
        self.handed_over.append(recovery)
        self.is_over = True

    def give_up(self, error: BaseException) -> None:
        self.given_up.append(error)
        self.is_over = True

    # What is done with it

    async def recover(
        self,
        *others: World,
        known: bool = True,
        restarts: int = 0,
        until: anyio.Event | None = None,
    ) -> None:
        """Until the fault is acknowledged; a crash of the Executor restarts it so often.

        With ``until``, the Executor is ended when that is set. ``others`` are recovered with it.
        """
        runs = {each.name: each for each in (self, *others)} if known else {}
        queue = FaultQueue()
        for each in (self, *others):
            queue.put(each.fault)
        clock = Clock(
            monotonic=lambda: self.now_s,
            wall=lambda: self.now_s,
            sleep=self._sleep,
            random=lambda: 0.0,
        )
        async with (
            StatusReader(Endpoint(URL, SecretStr("tml-x")), wall=lambda: 0.0) as reader,
            Notebook(Journal(None, service=URL)) as notebook,
        ):
            executor = Executor(
                Collaborators(
                    self.policy,
                    TinkerBackend(),
                    reader,
                    notebook,
                    EventSink(self.events.append),
                    clock,
                    greeting=_Greeting(self.said),
                ),
                queue=queue,
                find=runs.get,
                watched=lambda: len(runs),
                outage=self.outage,
            )
            started: list[bool] = []
            child: Any = SimpleNamespace(started=lambda: started.append(True))
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:

                    async def serve() -> None:
                        for _ in range(restarts):
                            with contextlib.suppress(ExceptionGroup):
                                await executor.serve(child)
                        await executor.serve(child)

                    group.start_soon(serve)
                    for each in (self, *others) if until is None else ():
                        await queue.settled(each.fault)
                    if until is not None:
                        await until.wait()
                    group.cancel_scope.cancel()
            assert len(started) == 1 + restarts

    def names(self) -> list[str]:
        return [event.name.rpartition(".")[2] for event in self.events]

    def messages(self, name: str) -> list[str]:
        return [event.message for event in self.events if event.name == name]


class _Greeting(Greeting):
    """Writes down what it would print."""

    def __init__(self, said: list[tuple[str, str]]) -> None:
        super().__init__()
        self._said = said

    def goes_on(self, run: str, message: str) -> None:
        self._said.append((run, message))


# -- a try that succeeds -------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "replayed"), [(9, 0), (5, 4), (11, 0), (None, 0)])
async def test_a_recovery_says_which_steps_are_done_again_before_the_loop_runs(
    made: int | None, replayed: int
) -> None:
    async def make() -> int | None:
        world.now_s += 4.0
        return made

    world = World(make)
    await world.recover()
    (recovery,) = world.handed_over
    assert recovery.replayed_steps == replayed
    assert (recovery.attempt, recovery.handed_over_at, recovery.fault) == (2, 4.0, world.fault)
    assert world.names() == ["detected", "started", "completed"]
    assert world.messages(names.EVENT_STARTED) == ["recovery attempt 1 of 3"]
    last = world.events[-1].fields
    assert last[names.REPLAYED_STEPS] == replayed
    assert last.get(names.CHECKPOINT_STEP) == made
    assert world.called == [("on_recovery", made)]
    assert (world.given_up, world.discarded, world.said, world.slept) == ([], [], [], [])
    assert world.budget.left == 2
    assert world.aheads == [True]
    world.budget.note_saved(made or 0)
    assert world.budget.left == 2, "only what is newer is progress"
    world.budget.note_saved((made or 0) + 1)
    assert world.budget.left == 3


async def test_a_run_that_goes_on_after_a_stop_has_all_its_attempts_left_and_no_incident() -> None:
    world = World(STEP, of=stopped())
    await world.recover()
    assert world.names() == ["continued"]
    assert world.budget.left == 3
    assert world.budget.errors == ()
    assert world.called == []
    assert world.said == [("r", f"goes on from step {STEP}")]
    assert world.handed_over[0].continued


async def test_a_stopped_run_that_has_steps_to_do_again_is_an_incident_after_all() -> None:
    world = World(STEP - 1, of=stopped())
    await world.recover()
    assert world.names() == ["detected", "completed"]
    assert world.called == [("on_recovery", STEP - 1)]
    assert (world.budget.left, world.said) == (2, [])


async def test_a_step_that_faults_again_is_left_out_and_that_is_said_with_the_fault() -> None:
    world = World(5)
    world.to_skip = 7
    await world.recover()
    (skipped,) = [each for each in world.events if each.name == names.EVENT_STEP_SKIPPED]
    assert skipped.fields == {names.FAULT_STEP: 7, names.FAULT_KIND: "corrupted"}
    (name, step, error), recovered = world.called
    assert (name, step, type(error).__name__) == ("on_skip", 7, "CorruptedRun")
    assert recovered == ("on_recovery", 5)


async def test_what_was_made_for_a_run_that_ended_meanwhile_is_closed() -> None:
    async def make() -> int:
        world.is_over = True
        return 5

    world = World(make)
    await world.recover()
    assert (world.discarded, world.handed_over, world.given_up) == ([5], [], [])
    assert world.names() == ["detected", "started"]


async def test_what_was_made_is_closed_if_it_cannot_be_held_ready_and_otherwise_not() -> None:
    world = World(5, 6)
    held = world.hold_ready

    def hold_ready(restored: Any) -> HandOver:
        if restored.connection == 5:
            raise ValueError("cannot")
        return held(restored)

    world.hold_ready = hold_ready  # type: ignore[method-assign]  # once
    await world.recover()
    assert world.discarded == [5]
    assert [recovery.replayed_steps for recovery in world.handed_over] == [3]


# -- tries that fail -----------------------------------------------------------------------------


async def test_tries_that_fail_are_counted_backed_off_from_and_all_that_went_wrong_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [ValueError("one"), ValueError("two"), ValueError("three")]
    world = World(*errors)
    with caplog.at_level(logging.INFO):
        await world.recover()
    (error,) = world.given_up
    assert isinstance(error, RecoveryExhausted)
    began = [
        each for each in caplog.records if each.getMessage().endswith("recovery attempt 3 of 3")
    ]
    assert [each.levelno for each in began] == [logging.INFO], "each attempt is"
    assert error.errors == (world.budget.errors[0], *errors)
    assert "after 3 recovery attempts without a newer checkpoint" in str(error)
    assert "corrupted at step 9" in str(error)
    assert "max_attempts" in str(error)
    assert world.slept == [1.0, 2.0]
    assert world.messages(names.EVENT_WAITING) == [
        "recovery attempt 2 of 3 in 1 s",
        "recovery attempt 3 of 3 in 2 s",
    ]
    assert world.messages(names.EVENT_STARTED) == [f"recovery attempt {n} of 3" for n in (1, 2, 3)]
    assert world.messages(names.EVENT_FAILED) == [
        f"recovery attempt {n} failed: {word}" for n, word in ((1, "one"), (2, "two"), (3, "three"))
    ]
    assert world.names()[-1] == "exhausted"
    assert world.called == [("on_failure", "a", error)]
    assert world.aheads == [True, False, False], "the next may have to wait for the service"


async def test_what_says_that_the_address_is_wrong_is_said_of_the_newest_error() -> None:
    newest = tinker.APIConnectionError(request=httpx.Request("GET", URL))
    world = World(ValueError("one"), newest, max_attempts=2, max_wait_s=0.5)
    await world.recover()
    assert URL in str(world.given_up[0])
    world = World(newest, ValueError("two"), max_attempts=2)
    await world.recover()
    assert "Next: once the cause is mended" in str(world.given_up[0])


async def test_where_nothing_is_left_to_restore_the_run_is_given_up_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = NoUsableCheckpoint("none is left")
    world = World(error)
    await world.recover()
    (failed,) = [each for each in caplog.records if "failed: none is left" in each.getMessage()]
    assert failed.levelno == logging.ERROR
    assert world.given_up == [error]
    assert world.called == [("on_failure", "a", error)]
    assert world.names() == ["detected", "started", "failed"]


async def test_a_stopped_run_that_cannot_go_on_is_an_incident_before_it_is_given_up() -> None:
    for error in (NoUsableCheckpoint("none is left"), LeaseLost("taken over", run="r"), REFUSED):
        world = World(error, of=stopped())
        await world.recover()
        assert world.names().count("detected") == 1
        assert len(world.given_up) == 1
        assert world.budget.errors == (error,), "the stop is none"
    world = World(*[ValueError("no")] * 3, of=stopped())
    await world.recover()
    assert world.names().count("detected") == 1
    assert world.names()[-1] == "exhausted"


@pytest.mark.parametrize("error", [LeaseLost("taken over", run="r"), ValueError("no"), REFUSED])
async def test_a_run_that_ended_while_its_recovery_failed_is_not_given_up(error: Exception) -> None:
    async def end() -> None:
        world.is_over = True
        raise error

    world = World(end)
    await world.recover()
    assert world.given_up == ([] if error is not REFUSED else world.given_up)
    assert world.handed_over == []


async def test_what_the_service_refuses_for_good_gives_the_run_up_with_its_reason() -> None:
    world = World(REFUSED)
    await world.recover()
    (error,) = world.given_up
    assert isinstance(error, RecoveryRefused)
    assert error.errors == (world.budget.errors[0], REFUSED)
    assert "bad rank" in str(error)
    assert RULES[Kind.USER_ERROR].reason in str(error)
    (said,) = [each for each in world.events if each.name == names.EVENT_GAVE_UP]
    assert said.fields == {names.FAULT_KIND: Kind.USER_ERROR.value}
    assert world.called == [("on_failure", "a", error)]


# -- waiting -------------------------------------------------------------------------------------


async def test_a_service_that_does_not_answer_is_waited_for_and_costs_no_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(SILENT, SILENT, 5)
    with caplog.at_level(logging.DEBUG):
        await world.recover()
    assert len(world.handed_over) == 1
    assert world.budget.left == 2, "only the try before it was known that it does not answer"
    assert world.slept == [1.0, 2.0]
    assert world.messages(names.EVENT_STARTED) == [
        "recovery attempt 1 of 3",
        "trying again after a wait",
        "trying again after a wait",
    ]
    said = [(each.levelno, each.getMessage()) for each in caplog.records]
    tried = [level for level, message in said if "trying again" in message]
    failed = [level for level, message in said if "failed: no answer" in message]
    assert tried == [logging.INFO, logging.DEBUG], "the first wait is said"
    assert failed == [logging.ERROR, logging.DEBUG]
    assert world.messages(names.EVENT_WAITING) == [], "there is no attempt to announce"


async def test_a_fault_that_asks_for_patience_is_waited_for_from_its_beginning() -> None:
    world = World(5, of=fault(Kind.RATE_LIMITED))
    await world.recover()
    assert world.slept == [1.0]
    assert world.budget.left == 3
    assert world.messages(names.EVENT_STARTED) == ["trying again after a wait"]
    assert world.aheads == [False]


async def test_where_calls_failed_for_want_of_a_service_no_session_is_opened_ahead() -> None:
    world = World(5, of=fault(Kind.UNAVAILABLE))
    await world.recover()
    assert world.aheads == [False]


async def test_the_service_is_waited_for_until_the_limit_and_not_beyond() -> None:
    world = World(*[SILENT] * 20, max_wait_s=7.0, max_backoff_s=4.0)
    await world.recover()
    assert world.slept == [1.0, 2.0, 4.0, 4.0], "7 s are the limit, and not more than it"
    (error,) = world.given_up
    assert "after 7 s of waiting for the service" in str(error)
    assert "raise max_wait_s" in str(error)


async def test_a_wait_that_ends_in_another_error_is_counted_again() -> None:
    world = World(SILENT, ValueError("no"), ValueError("no"), ValueError("no"))
    await world.recover()
    assert "after 3 recovery attempts" in str(world.given_up[0])
    assert world.tries == []


async def test_a_try_may_wait_for_what_is_left_of_the_wait_and_for_longer_after_a_deadline() -> (
    None
):
    async def late() -> None:
        world.now_s += 30.0
        raise TimeoutError

    world = World(late, 5, create_timeout_s=5.0)
    await world.recover()
    first, second = world.patiences
    assert (first.silence_s, first.limit_s) == (5.0, 100.0)
    assert second.limit_s == 100.0 - 30.0
    second.report("queued behind 7 others")
    assert world.events[-1].message == "queued behind 7 others"
    assert world.events[-1].fields == {names.TRY: 2}


async def test_a_refused_credential_is_waited_for_and_then_the_calls_own_error_is_raised() -> None:
    error = FaultError("HTTP 401 of the call", kind=Kind.UNAUTHORIZED.value)
    world = World(*[NO_KEY] * 9, of=fault(Kind.UNAUTHORIZED, Verdict.RECOVER, error=error))
    await world.recover()
    assert world.given_up == [error]
    assert world.slept == [1.0, 2.0, 4.0, 3.0], "not beyond the ten seconds"
    assert "given up after 10 s (credential_grace_s)" in world.messages(names.EVENT_GAVE_UP)[0]
    assert world.called == [("on_failure", "a", error)]


async def test_a_credential_refused_only_later_gives_the_run_up_with_all_that_went_wrong() -> None:
    world = World(*[NO_KEY] * 9)
    await world.recover()
    assert isinstance(world.given_up[0], RecoveryRefused)


# -- attempts that are spent ---------------------------------------------------------------------


async def test_before_a_run_is_given_up_the_service_is_asked_for_a_newer_checkpoint() -> None:
    world = World(5, max_attempts=1)
    world.budget.note_recovered(3)
    world.budget.spend()
    world.progress = [SILENT, 4]
    await world.recover()
    assert len(world.handed_over) == 1
    assert world.slept == [1.0]


async def test_with_attempts_left_it_is_not_asked() -> None:
    world = World(5, max_attempts=2)
    world.budget.spend()
    world.progress = []
    await world.recover()
    assert (len(world.handed_over), world.looks) == (1, 0)


@pytest.mark.parametrize("found", [None, 3])
async def test_a_run_without_progress_is_given_up_when_its_attempts_are_spent(
    found: int | None,
) -> None:
    world = World(max_attempts=1)
    world.budget.note_recovered(3)
    world.budget.spend()
    world.progress = [found]
    await world.recover()
    assert isinstance(world.given_up[0], RecoveryExhausted)


async def test_a_list_that_cannot_be_read_is_asked_for_until_the_limit_only_where_it_may_help() -> (
    None
):
    world = World(max_attempts=1, max_wait_s=7.0, max_backoff_s=4.0)
    world.now_s = 50.0
    world.budget.spend()
    world.progress = [SILENT] * 9
    await world.recover()
    assert world.slept == [1.0, 2.0, 4.0, 4.0]
    assert SILENT in world.budget.errors
    for error in (ValueError("unreadable"), REFUSED):
        world = World(max_attempts=1)
        world.budget.spend()
        world.progress = [error]
        await world.recover()
        assert world.slept == []


# -- what is not recovered -----------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
async def test_what_is_only_observed_is_told_and_left_alone(*, enabled: bool) -> None:
    world = World(5, of=fault(Kind.USER_ERROR if enabled else Kind.CORRUPTED), enabled=enabled)
    await world.recover()
    assert world.names() == ["detected"]
    ((name, run_id, error),) = world.called
    assert (name, run_id) == ("on_failure", "a")
    assert isinstance(error, Exception)
    assert (world.handed_over, world.given_up, world.aheads) == ([], [], [])


@pytest.mark.parametrize("why", ["gone", "over"])
async def test_a_fault_that_no_run_waits_for_is_passed_over(why: str) -> None:
    world = World(5)
    world.is_over = why == "over"
    await world.recover(known=why != "gone")
    assert (world.events, world.called, world.aheads) == ([], [], [])


# -- the user's callbacks, and crashes -----------------------------------------------------------


@pytest.mark.parametrize("how", ["raises", "hangs", "cancelled", "is awaited"])
async def test_a_callback_may_raise_hang_or_be_cancelled_and_the_run_is_recovered(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    async def callback(step: int) -> None:
        if how == "raises":
            raise ZeroDivisionError
        if how == "hangs":
            await anyio.sleep_forever()
        if how == "cancelled":
            raise anyio.get_cancelled_exc_class()
        done.append(step)

    world = World(5, close_timeout_s=0.01)
    held = world.hold_ready
    world.hold_ready = lambda restored: HandOver(callback, (5,), held(restored).step, 5)  # type: ignore[method-assign]  # with this callback
    await world.recover()
    assert len(world.handed_over) == 1
    assert done == ([5] if how == "is awaited" else [])
    assert ("on_recovery" in caplog.text) == (how != "is awaited")


async def test_what_is_held_ready_for_a_run_that_ends_in_its_callback_is_not_handed_over() -> None:
    world = World(5)
    held = world.hold_ready

    def end(_: object) -> None:
        world.is_over = True

    world.hold_ready = lambda restored: HandOver(  # type: ignore[method-assign]  # with this callback
        end, (5,), held(restored).step, 5, is_wanted=lambda: not world.is_over
    )
    await world.recover()
    assert (world.handed_over, world.given_up, world.discarded) == ([], [], [])
    assert world.names() == ["detected", "started"]


async def test_an_executor_that_crashes_has_the_fault_again_with_the_attempt_in_full() -> None:
    async def cancelled() -> None:
        raise anyio.get_cancelled_exc_class()

    world = World(cancelled, 5)
    await world.recover(restarts=1)
    assert len(world.handed_over) == 1
    assert world.messages(names.EVENT_STARTED) == ["recovery attempt 1 of 3"] * 2
    assert world.budget.left == 2
    assert math.isclose(sum(world.slept), 0.0)


async def test_an_executor_that_ends_in_a_try_leaves_the_attempt_in_full_and_no_error() -> None:
    under_way = anyio.Event()

    async def hang() -> None:
        under_way.set()
        await anyio.sleep_forever()

    world = World(hang)
    await world.recover(until=under_way)
    assert world.budget.left == 3
    assert (world.given_up, world.handed_over, world.called) == ([], [], [])


async def test_a_service_that_is_back_is_said_in_the_outage_that_all_share() -> None:
    async def late() -> int:
        world.now_s += 60.0
        return 5

    world = World(SILENT, late)
    world.outage = Outage(EventSink(world.events.append), lambda: world.now_s)
    assert world.outage.begins()
    world.now_s = 30.0
    await world.recover()
    assert world.messages(names.EVENT_SERVICE_BACK) == ["the service is back after 91 s"]


async def test_an_executor_that_ends_in_a_callback_hands_nothing_over_and_says_nothing_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    under_way = anyio.Event()

    async def callback(step: int) -> None:
        del step
        under_way.set()
        await anyio.sleep_forever()

    world = World(5)
    held = world.hold_ready
    world.hold_ready = lambda restored: HandOver(callback, (5,), held(restored).step, 5)  # type: ignore[method-assign]  # with this callback
    await world.recover(until=under_way)
    assert world.handed_over == []
    assert "on_recovery" not in caplog.text


async def test_a_long_wait_is_reported_when_it_is_time() -> None:
    async def late() -> int:
        world.now_s += REMIND_S
        raise SILENT

    world = World(late, 5, of=fault(silent_s=7.0), max_wait_s=1000.0)
    await world.recover()
    (said,) = world.messages(names.EVENT_WAITING)
    assert said.startswith(f"no step for {REMIND_S + 7.0:.0f} s; the service does not answer")


async def test_what_a_try_may_be_answered_once_costs_an_attempt_though_it_is_a_known_fault() -> (
    None
):
    world = World(httpx.RemoteProtocolError("broken"), KeyError(), 5, retryable_errors=(KeyError,))
    await world.recover()
    assert "recovery attempt 3 of 3" in world.messages(names.EVENT_STARTED)


# -- many at once --------------------------------------------------------------------------------


async def others_run() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def restores() -> int:
    await others_run()
    return 5


def fails(error: Exception) -> Callable[[], Any]:
    async def fail() -> None:
        await others_run()
        raise error

    return fail


def fleet(*tries: list[Any], **policy: Any) -> list[World]:
    """Runs with faults alike, at once."""
    return [
        World(*each, name=f"r{n}", of=replace(fault(), run=f"r{n}"), **policy)
        for n, each in enumerate(tries)
    ]


@pytest.mark.parametrize("error", [ValueError("no"), SILENT])
async def test_where_many_fail_alike_what_fails_is_the_backends_and_costs_no_attempt(
    error: Exception,
) -> None:
    fail = fails(error)
    tries = [[fail, fail, restores], *[[fail, restores]] * (MASS_RUNS - 1)]
    first, *others = fleet(*tries, max_backoff_s=2.0)
    first.budget.spend()
    await first.recover(*others)
    assert [len(each.handed_over) for each in (first, *others)] == [1] * MASS_RUNS
    assert [each.budget.left for each in (first, *others)] == [2, *[3] * (MASS_RUNS - 1)]
    said = first.messages(names.EVENT_STARTED)
    assert "recovery attempt 2 of 3" in said
    assert said.count("trying again after a wait") == MASS_RUNS + 1
    (mass,) = [each for each in first.events if each.name == names.EVENT_MASS_FAILURE]
    assert mass.fields[names.RUNS] == MASS_RUNS
    (over,) = [each for each in first.events if each.name == names.EVENT_MASS_OVER]
    assert over.fields[names.RECOVERIES] == MASS_RUNS


async def test_all_back_off_together_after_a_probe_that_failed_as_one_does_after_its_first() -> (
    None
):
    tries = [[fails(ValueError("no")), restores]] * 2 + [[restores]] * (MASS_RUNS - 2)
    first, *others = fleet(*tries)
    await first.recover(*others)
    assert set(first.slept) == {1.0}
    assert len(first.slept) >= 3, "each of the two, and all together"
    assert all(len(each.handed_over) == 1 for each in (first, *others))


async def test_one_that_is_refused_for_good_says_nothing_of_the_backend() -> None:
    first, *others = fleet([fails(REFUSED)], *[[restores]] * (MASS_RUNS - 1))
    await first.recover(*others)
    assert first.slept == []
    assert len(first.given_up) == 1
    (over,) = [each for each in first.events if each.name == names.EVENT_MASS_OVER]
    assert over.fields[names.RECOVERIES] == MASS_RUNS - 1


async def test_each_that_succeeds_lets_one_more_begin() -> None:
    under_way, three = [0], anyio.Event()

    async def waits() -> int:
        under_way[0] += 1
        if under_way[0] == 3:
            three.set()
        with anyio.move_on_after(1):
            await three.wait()
        under_way[0] -= 1
        return 5

    first, *others = fleet([restores], [waits], [waits], [waits])
    await first.recover(*others)
    assert [len(each.handed_over) for each in (first, *others)] == [1] * 4
    assert three.is_set()


# -- spans and metrics ---------------------------------------------------------------------------


class Recorded:
    """The spans of an incident, and what its metrics record."""

    def __init__(self, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
        self._spans = spans
        self.metrics: list[dict[str, Any]] = []
        monkeypatch.setattr(metrics, "recovered", lambda **given: self.metrics.append(given))

    def named(self, name: str) -> list[Any]:
        return [span for span in self._spans.get_finished_spans() if span.name == name]


@pytest.fixture
def recorded(spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(spans, monkeypatch)


@pytest.mark.parametrize("label", [True, False])
async def test_an_incident_is_a_span_from_the_last_progress_on_and_is_counted(
    recorded: Recorded, *, label: bool
) -> None:
    world = World(
        5,
        of=fault(silent_s=2.0, detected_ns=10 * 10**9, detected_at=40.0),
        telemetry_run_label=label,
    )
    world.now_s = 47.0
    await world.recover()
    (root,) = recorded.named(names.SPAN_RECOVERY)
    assert root.start_time == 8 * 10**9
    assert root.attributes[names.OUTCOME] == names.RECOVERED
    assert names.ERROR_TYPE not in root.attributes
    (detect,) = recorded.named(names.SPAN_DETECT)
    assert (detect.start_time, detect.end_time) == (8 * 10**9, 10 * 10**9)
    assert detect.attributes[names.SILENT_S] == 2.0
    (resume,) = recorded.named(names.SPAN_RESUME)
    assert resume.attributes[names.CHECKPOINT_STEP] == 5
    assert resume.attributes[names.REPLAYED_STEPS] == STEP - 5
    assert resume.attributes[names.ATTEMPT] == 2
    assert recorded.metrics == [
        {
            "kind": "corrupted",
            "outcome": names.RECOVERED,
            "duration_s": 7.0,
            "error": None,
            "run": "r" if label else None,
        }
    ]


async def test_a_run_that_goes_on_after_a_stop_is_a_span_of_its_own_and_not_counted(
    recorded: Recorded,
) -> None:
    await World(STEP, of=stopped()).recover()
    assert [recorded.named(names.SPAN_RECOVERY), recorded.named(names.SPAN_DETECT)] == [[], []]
    assert len(recorded.named(names.SPAN_CONTINUE)) == 1
    assert recorded.metrics == []


async def test_a_run_that_cannot_just_go_on_is_a_recovery_and_counted(recorded: Recorded) -> None:
    await World(STEP - 1, of=stopped()).recover()
    assert len(recorded.named(names.SPAN_RECOVERY)) == 1
    assert recorded.named(names.SPAN_CONTINUE) == []
    assert len(recorded.metrics) == 1


LOST = LeaseLost("taken over", run="r")


@pytest.mark.parametrize(
    ("tries", "policy", "outcome"),
    [
        ([NoUsableCheckpoint("none")], {}, names.NO_CHECKPOINT),
        ([LOST], {}, names.REFUSED),
        ([REFUSED], {}, names.REFUSED),
        ([ValueError("no")], {"max_attempts": 1}, names.EXHAUSTED),
        ([5], {"enabled": False}, names.OBSERVED),
    ],
)
async def test_how_an_incident_ended_is_on_its_span_with_the_error(
    recorded: Recorded, tries: list[Any], policy: dict[str, Any], outcome: str
) -> None:
    world = World(*tries, **policy)
    await world.recover()
    (root,) = recorded.named(names.SPAN_RECOVERY)
    assert root.attributes[names.OUTCOME] == outcome
    assert root.attributes[names.ERROR_TYPE]
    assert not root.status.is_ok
    (counted,) = recorded.metrics
    assert counted["outcome"] == outcome
    assert isinstance(counted["error"], Exception)


@pytest.mark.parametrize("when", ["before", "meanwhile", "waiting"])
async def test_an_incident_of_a_run_that_its_user_ended_is_abandoned(
    recorded: Recorded, when: str
) -> None:
    async def end() -> int:
        world.is_over = True
        if when == "before":
            raise LOST
        if when == "waiting":
            raise ValueError("no")
        return 5

    world = World(end)
    await world.recover()
    (root,) = recorded.named(names.SPAN_RECOVERY)
    assert root.attributes[names.OUTCOME] == names.ABANDONED
    assert root.status.is_unset
    assert recorded.metrics[0]["error"] is None


async def test_an_incident_of_a_run_that_ended_while_it_waited_for_a_slot_is_abandoned(
    recorded: Recorded,
) -> None:
    async def end() -> int:
        await others_run()
        third.is_over = True
        return 5

    first, second, third = fleet([fails(REFUSED)], [end], [5])
    await first.recover(second, third)
    assert third.aheads == []
    outcomes = [span.attributes[names.OUTCOME] for span in recorded.named(names.SPAN_RECOVERY)]
    assert sorted(outcomes) == sorted([names.REFUSED, names.RECOVERED, names.ABANDONED])


async def test_an_incident_that_an_ending_executor_leaves_is_interrupted(
    recorded: Recorded,
) -> None:
    under_way = anyio.Event()

    async def hang() -> None:
        under_way.set()
        await anyio.sleep_forever()

    await World(hang).recover(until=under_way)
    (root,) = recorded.named(names.SPAN_RECOVERY)
    assert root.attributes[names.OUTCOME] == names.INTERRUPTED
