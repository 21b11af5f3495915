"""What a run begins with, and what it tells its spans and figures, trackers and the terminal."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from made import LINEAGE, record
from test_incidents_of_a_run import World, fault, snapshot

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import WeightsFacts
from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.errors import StatusUnavailable
from tinker_recovery.faults import Kind, Verdict
from tinker_recovery.recovery.recoverable import Recovery
from tinker_recovery.telemetry.greeting import RunEnd


class Told:
    """A run whose telemetry, trackers and greeting are written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
        self.world = World(monkeypatch, **facts)
        self.run = self.world.run
        self.said: list[Any] = []
        self.first_end = True
        self.run.telemetry = SimpleNamespace(
            started=self._noted("started"),
            segment_began=self._noted("segment"),
            faulted=self._noted("faulted"),
            stopped=self._noted("stopped"),
            ended=self._ended,
            figures=SimpleNamespace(
                follows=self._noted("follows"),
                recovered=self._noted("recovered"),
                read=lambda: SimpleNamespace(lost_s=1.5),
            ),
        )
        for part, what in (("outlets", "run_ended"), ("greeting", "ended")):
            parts = self.run.collaborators
            monkeypatch.setattr(getattr(parts, part), what, self._noted(f"{part} {what}"))

    def _noted(self, what: str) -> Any:
        return lambda *given, **more: self.said.append((what, *given, *more.values()))

    def _ended(self, **how: Any) -> bool:
        self.said.append(("ended", *how.values()))
        return self.first_end

    def take(self) -> list[Any]:
        said, self.said[:] = list(self.said), []
        return said


def test_a_run_is_what_it_was_opened_as(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    run = world.run
    assert (run.name, run.given_name, run.lineage, run.lease) == ("r", "r", LINEAGE, None)
    assert (run.start_step, run.step, run.root, run.snapshot) == (3, 3, None, None)
    assert (run.attempts, run.recoveries, run.metrics, run.skipped) == ([], [], {}, set())
    assert (run.current, run.segments, run.incident, run.failure) == (None, [], None, None)
    assert (run.ended, run.recovering, run.state, run.lost) == (False, False, "training", None)
    assert repr(run) == "<SupervisedRun 'r', training, attempt 0>"
    assert run.origin.base_model == "m"
    assert (run.parent, run.weights, run.history.evidence) == (None, WeightsFacts(), Evidence())
    assert run.checkpoints.run == "r"
    assert run.clock.monotonic() == 10.0
    assert run.signals.requested is False
    run.mailbox.deliver()
    run.retention.ask(run)
    run.spawn("work")
    assert (world.log, world.spawned) == ([("retention", "r")], ["work"])


def test_a_run_that_an_earlier_process_left_stands_where_that_left_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = snapshot(saved={("x", 4): {"loss": 1.0}})
    run = World(monkeypatch, snapshot=left).run
    assert (run.step, run.segments, run.current) == (6, list(left.segments), None)
    assert run.checkpoints is left.checkpoints
    assert run.history.saved == {("x", 4): {"loss": 1.0}}


async def test_a_start_is_told_with_the_model_and_the_segment_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told(monkeypatch)
    attempt: Any = await told.run.first_attempt()
    started, began = told.take()
    assert started == ("started", 3, "m")
    assert began[:3] == ("segment", attempt.segment, 1)
    assert (began[3], began[4]) == (attempt.saver.steps_done, attempt.client.meter)
    assert began[5] == attempt.progress.read_pauses
    adopted = Told(monkeypatch, adopted="theirs")
    await adopted.run.first_attempt()
    assert adopted.take()[0] == ("started", 3, ""), "what it is of is not known"


async def test_a_client_whose_first_save_was_refused_trains_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told(monkeypatch)
    made = told.world._attempt

    def refused_once(*given: Any) -> Any:
        attempt = made(*given)
        attempt.absent = [told.world.made > 1]
        return attempt

    monkeypatch.setattr("tinker_recovery.run.supervised.AttemptScope", refused_once)
    await told.run.first_attempt()
    assert [each[0] for each in told.take()] == ["started", "segment", "stopped", "segment"]


@pytest.mark.parametrize("orderly", [True, False])
def test_an_incident_is_told_from_its_silence_to_the_segment_behind_it(
    monkeypatch: pytest.MonkeyPatch, *, orderly: bool
) -> None:
    told = Told(monkeypatch)
    told.world.trains()
    kind = Kind.PROCESS_LOST if orderly else Kind.CORRUPTED
    told.world.run.report_fault(of := fault(kind, orderly=orderly, silent_s=2.5))
    assert told.take() == [("faulted", 2.5)]
    told.run.hold_ready(told.world.restored())
    told.run.hand_over(Recovery(of, None, 0, 2, 1.0, 0.0))
    recovered, began = told.take()
    assert recovered == ("recovered", not orderly)
    assert began[:3] == ("segment", told.run.current.segment, 2)


async def test_a_run_that_goes_on_counts_what_was_trained_of_it_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = snapshot()
    told = Told(monkeypatch, snapshot=left)
    starting = asyncio.create_task(told.run.first_attempt())
    await asyncio.sleep(0)
    assert ("follows", left.trained) in told.take()
    (sessions,) = told.world.spawned
    assert sessions.args == (told.run.collaborators.reader, left.sessions)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


@pytest.mark.parametrize("error", [None, ValueError("their own")])
async def test_the_end_is_told_once_to_trackers_and_in_a_line_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    told = Told(monkeypatch)
    attempt = told.world.trains(step=5)
    await told.run.attempt_over(attempt, error)
    end, outlets, greeting = told.take()
    assert end == ("ended", 5, 0, error)
    assert outlets == ("outlets run_ended", "r", error)
    what, line = greeting
    assert what == "greeting ended"
    assert isinstance(line, RunEnd)
    assert line.how == ("finished" if error is None else "failed (ValueError)")
    told.first_end = False
    await told.run.abandon()
    assert "outlets run_ended" not in [each[0] for each in told.take()], "once"


async def test_a_claim_is_begun_with_the_tinker_run_of_each_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def begins(run_id: str) -> None:
        world.log.append(("claims", run_id))

    world.run.guard.begins = begins
    await world.run.first_attempt()
    assert world.log[-2:] == [("claims", "new 1"), ("begins", "new 1")]


def test_a_fault_that_gives_up_a_run_without_a_client_is_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.run.report_fault(of := fault(verdict=Verdict.GIVE_UP))
    assert (world.queued, world.spawned) == ([of], [])


def test_what_a_restored_client_answers_is_noted_in_the_journal_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    written: list[Any] = []
    monkeypatch.setattr(
        type(world.run.checkpoints), "write_prompt", lambda _, to: written.append(to)
    )
    world.run.hold_ready(world.restored(4))
    assert written == [], "it was not asked"
    handed = world.run.hold_ready(world.restored(4, answer=(-1.0, -2.0)))
    assert written == [world.run.collaborators]
    world.run.ended = True
    assert not handed.is_wanted(), "the run ended while the user's callback was called"


@pytest.mark.parametrize("of", ["the current one", "the one held ready", "neither"])
def test_what_clients_were_made_from_is_not_deleted(
    monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    world = World(monkeypatch)
    world.trains(checkpoint=record(2) if of == "the current one" else None)
    if of == "the one held ready":
        world.run.hold_ready(world.restored(4))
    paths = {"the current one": [record(2).path], "the one held ready": [record(4).path]}
    assert list(world.run.protected) == paths.get(of, [])


async def test_a_run_that_is_over_waits_for_no_callback_that_does_not_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, policy={"close_timeout_s": 0.01})
    attempt = world.trains()
    attempt.fault = fault(verdict=Verdict.GIVE_UP)
    world.run._queue.settled = lambda _: anyio.sleep_forever()
    with anyio.fail_after(10):
        await world.run.attempt_over(attempt, error := ValueError("no"))
    assert ("said", "a", error) in world.log


async def test_a_run_whose_owner_is_cancelled_at_its_end_is_over_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    attempt = world.trains()

    async def cancelled(_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("tinker_recovery.run.supervised.claim_lost", cancelled)
    with pytest.raises(asyncio.CancelledError):
        await world.run.attempt_over(attempt, None)
    _, said, free = cast("list[Any]", world.log)
    assert isinstance(said[2], asyncio.CancelledError)
    assert (world.run.ended, free) == (True, ("free", ["a", None], False))


async def test_a_run_that_was_given_up_is_not_given_up_for_another_reason_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one that is over has no fault that nobody has seen."""
    world = World(monkeypatch)
    world.trains()
    world.run.report_fault(fault())
    world.run.ended = True
    await world.run.abandon()
    assert world.run.lost is None


async def test_a_second_incident_is_waited_for_as_the_first_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    for number in (1, 2):
        world.run.report_fault(of := fault())
        waiting = asyncio.create_task(world.run.next_attempt())
        await anyio.wait_all_tasks_blocked()
        assert not waiting.done(), "there is no client yet"
        world.recover(of)
        assert (await waiting).id == f"new {number}"


@pytest.mark.parametrize("measured", [True, False])
def test_a_canary_whose_noise_is_known_is_not_asked_of_each_new_client(
    monkeypatch: pytest.MonkeyPatch, *, measured: bool
) -> None:
    world = World(monkeypatch)
    if measured:
        world.run.checkpoints.canaries.know_noise(0.5)
    world.run.report_fault(of := fault())
    world.recover(of)
    assert (("canary", "new 1") in world.log) == (not measured)


def test_what_an_attempt_at_fault_may_not_have_done_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    attempt = world.trains()
    attempt.client.first_doubtful_step, attempt.client.unsettled_saves = 4, ("p",)
    asked = world.run.checkpoints
    assert (asked.trusted_to("a"), set(asked.unsettled())) == (math.inf, set())
    attempt.fault = fault()
    assert (asked.trusted_to("a"), set(asked.unsettled())) == (4, {"p"})


async def test_a_run_that_is_neither_made_nor_adopted_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.run.origin = None
    with pytest.raises(UsageError, match="a run without an origin has to be adopted"):
        await world.run.first_attempt()


@pytest.mark.parametrize("trains", [True, False])
async def test_a_run_of_which_nothing_is_heard_is_not_called_corrupted(
    monkeypatch: pytest.MonkeyPatch, *, trains: bool
) -> None:
    world = World(monkeypatch)
    if trains:
        world.trains()
    world.corrupted = StatusUnavailable("no answer")
    assert await world.run.is_corrupted() is False


async def test_what_fails_as_a_supervisor_closes_its_clients_is_of_a_run_that_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    attempt = world.trains()

    async def close(*_: object) -> None:
        world.run.report_fault(fault())

    attempt.close = close
    await world.run.abandon()
    assert (world.queued, world.run.failure) == ([], None)
