"""What of a run is written for a later process, and how much of it: with a run made up here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made import segment

from tinker_recovery import LeaseLost
from tinker_recovery.checkpoints.interval import Plan
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.run.journaling import RunJournal

UNSOUND = 3
"""An outage that is not looked into yet has begun behind this step."""


class World:
    """A run that is at step 9 of attempt "a", and a journal that notes what it is given."""

    def __init__(self, *, stored: Any = None) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.posted: list[Any] = []
        self.lost: list[BaseException] = []
        self.due = True
        self.trusted_to = math.inf
        self.record: Any = SimpleNamespace(
            stored=stored,
            wall=lambda: 5000.0,
            is_due=lambda: self.due,
            attempt_begins=self._begins,
            fault=lambda *given, **more: self.log.append(("fault", *given, more)),
            saved=lambda *given, **more: self.log.append(("saved", *given, more)),
            stepped=lambda *given, **more: self.log.append(("stepped", *given, more)),
            reported=lambda *given: self.log.append(("reported", *given)),
            submit=self._submit,
            end=self._end,
        )
        recall = SimpleNamespace(
            durable=False, values=SimpleNamespace(clear=lambda: self.log.append(("cleared",)))
        )
        self.run: Any = SimpleNamespace(
            budget=SimpleNamespace(left=4),
            mailbox=SimpleNamespace(post=self.posted.append),
            lease_lost=self.lost.append,
            current=None,
            checkpoints=SimpleNamespace(trusted_to=lambda _: self.trusted_to),
            rollbacks=SimpleNamespace(sound_to=math.inf, polled_step=2),
            clock=SimpleNamespace(monotonic=lambda: 100.0),
            history=SimpleNamespace(recall=recall),
            signals=SimpleNamespace(by=None),
        )
        self.journal = RunJournal(cast("Any", self.run), cast("Any", self.record))

    async def _begins(self, *given: Any) -> None:
        self.log.append(("begins", *given))

    async def _submit(self, job: Any) -> None:
        self.log.append(("on disk", job(None)))

    async def _end(self, *given: Any) -> None:
        self.log.append(("end", *given))

    def trains(self, name: str = "a", *, sound: int = 8, doubtful: float = math.inf) -> Any:
        """The run's newest attempt from now on."""
        self.run.current = SimpleNamespace(
            id=name,
            number=2,
            segment=segment(f"run of {name}", 1, "parent"),
            start_step=1,
            sound_step=sound,
            faulty=False,
            client=SimpleNamespace(
                step=9,
                first_doubtful_step=doubtful,
                meter=SimpleNamespace(read=lambda: "tokens", up_to=lambda step: f"to {step}"),
            ),
            progress=SimpleNamespace(pauses=[]),
            saver=SimpleNamespace(plan=None),
        )
        return self.run.current

    @property
    def position(self) -> tuple[Any, ...]:
        """What was written last of how far all has succeeded, and how often it was written."""
        written = [each for each in self.log if each[0] == "stepped"]
        return len(written), *written[-1][1:]


def position(step: int, *, sound: int, pauses: Sequence[tuple[float, float]] = ()) -> Any:
    more = {"sound": sound, "polled": 2, "plan": {}, "pauses": [*pauses]}
    return "a", step, "tokens", more


# -- what a run tells its journal of itself ------------------------------------------------------


def test_the_journal_knows_how_many_attempts_are_left_and_whom_a_lost_claim_concerns() -> None:
    world = World()
    world.run.budget.left = 3
    assert world.record.attempts_left() == 3
    error = LeaseLost("taken over", run="r")
    world.record.on_lost(error)
    assert world.lost == [], "it is said in the journal's own thread"
    (lost,) = world.posted
    lost()
    assert world.lost == [error]


async def test_an_attempt_is_written_once_before_it_trains() -> None:
    world = World()
    first = world.trains()
    for attempt in (first, first, world.trains("b")):
        await world.journal.attempt_begins(attempt)
    assert world.log == [("begins", 2, name, f"run of {name}", 1, "parent") for name in "ab"]


def test_what_the_loop_reports_is_passed_on() -> None:
    world = World()
    world.journal.metrics(4, {"loss": 0.5})
    assert world.log == [("reported", 4, {"loss": 0.5})]


@pytest.mark.parametrize(
    ("last_progress", "dead_s"), [(4983.0, 17.0), (5000.0, 0.0), (5003.0, 0.0), (None, 0.0)]
)
def test_a_process_was_dead_since_its_last_progress(
    last_progress: float | None, dead_s: float
) -> None:
    """A clock that was set back meanwhile makes it no less than nothing."""
    assert World(stored=SimpleNamespace(last_progress=last_progress)).journal.dead_s == dead_s


def test_a_run_that_the_journal_does_not_know_was_never_dead() -> None:
    assert World().journal.dead_s == 0.0


# -- a fault -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted_to", "doubtful", "limit"),
    [(math.inf, math.inf, math.inf), (5.0, 7, 5.0), (6.0, 4, 4)],
)
@pytest.mark.parametrize("recovers", [True, False])
def test_a_fault_is_written_with_the_step_up_to_which_its_attempt_is_trusted(
    trusted_to: float, doubtful: float, limit: float, *, recovers: bool
) -> None:
    world = World()
    world.trains(sound=3, doubtful=doubtful)
    world.trusted_to = trusted_to
    rule = RULES[Kind.PROCESS_LOST]
    fault = Fault("r", 1, "a", rule, DetectedBy.POLL, 9, silent_s=2.5, orderly=True)
    world.journal.fault(fault, recovers=recovers)
    more = {"recovers": recovers, "orderly": True, "silent_s": 2.5}
    assert world.log == [
        ("stepped", *position(int(min(9, doubtful)), sound=3)),
        ("fault", ("process_lost", "poll", 9), "a", limit, more),
    ]


def test_a_fault_before_any_attempt_casts_doubt_on_none() -> None:
    world = World()
    world.trusted_to = 1.0
    rule = RULES[Kind.CORRUPTED]
    world.journal.fault(Fault("r", 0, "", rule, DetectedBy.CALL, 0), recovers=True)
    ((_, what, attempt, limit, more),) = world.log
    assert (what, attempt, limit) == (("corrupted", "call", 0), None, math.inf)
    assert more == {"recovers": True, "orderly": False, "silent_s": 0.0}


# -- how far all is known to have succeeded ------------------------------------------------------


@pytest.mark.parametrize("due", [True, False])
@pytest.mark.parametrize("faulty", [True, False])
def test_a_step_is_written_now_and_then_as_long_as_no_fault_was_found(
    *, due: bool, faulty: bool
) -> None:
    world = World()
    world.due, world.trains().faulty = due, faulty
    world.journal.step_done(world.run.current)
    expected = [("stepped", *position(9, sound=8))]
    assert world.log == (expected if due and not faulty else [])


def test_steps_behind_a_request_that_may_fail_are_not_written_as_done() -> None:
    world = World()
    attempt = world.trains(doubtful=6, sound=5)
    world.journal.step_done(attempt)
    assert world.position == (1, *position(6, sound=5))


def test_what_is_planned_is_written_with_it() -> None:
    world = World()
    attempt = world.trains()
    attempt.saver.plan = Plan(step=12, words="every 4 steps")
    world.journal.step_done(attempt)
    world.journal.stored(attempt, 5, "path", sound=True)
    plan = {"step": 12, "words": "every 4 steps"}
    assert [each[-1]["plan"] for each in world.log] == [plan, plan]


async def test_a_position_is_on_disk_once_what_was_queued_behind_it_is() -> None:
    world = World()
    await world.journal.position_is_written(world.trains())
    assert world.log == [("stepped", *position(9, sound=8)), ("on disk", None)]


def test_each_pause_is_written_once_in_seconds_before_now() -> None:
    world = World()
    attempt = world.trains()

    def written() -> Any:
        world.journal.step_done(attempt)
        return world.log[-1][-1]["pauses"]

    assert written() == []
    attempt.progress.pauses = [(10.0, 20.0), (30.0, 45.0)]
    assert written() == [(90.0, 80.0), (70.0, 55.0)]
    assert written() == []
    attempt.progress.pauses = [*attempt.progress.pauses, (50.0, 60.0)]
    assert written() == [(50.0, 40.0)]
    attempt.progress.pauses = [*attempt.progress.pauses, (80.0, 90.0)]
    assert written() == [(20.0, 10.0)]
    assert written() == []
    attempt = world.trains("b")
    attempt.progress.pauses = [(95.0, 99.0)]
    assert written() == [(5.0, 1.0)], "of the next attempt, from its first on"
    attempt.progress.pauses = [(95.0, 99.0), (99.0, 100.0)]
    assert written() == [(1.0, 0.0)]


# -- checkpoints, and what a later process takes for sound ---------------------------------------


@pytest.mark.parametrize(
    ("step", "said", "sound_to", "sound"),
    [
        (4, True, math.inf, True),
        (4, False, math.inf, False),
        (UNSOUND, True, UNSOUND, True),
        (UNSOUND + 1, True, UNSOUND, False),
        (UNSOUND, False, UNSOUND, False),
    ],
)
def test_a_checkpoint_is_written_as_sound_unless_an_outage_may_have_come_before_it(
    step: int, sound_to: float, *, said: bool, sound: bool
) -> None:
    world = World()
    attempt = world.trains(sound=1)
    world.run.rollbacks.sound_to = sound_to
    world.journal.stored(attempt, step, "path", sound=said)
    more = {"sound": sound, "plan": {}}
    assert world.log == [("saved", "a", "path", step, f"to {step}", more)]
    assert world.journal.sound_step(attempt) == (step if sound else 1)


def test_what_was_once_written_as_sound_stays_so_for_its_attempt() -> None:
    """As in the journal, which a later process reads: this one says the same of itself."""
    world = World()
    attempt = world.trains(sound=0)
    assert world.journal.sound_step(attempt) == 1, "where it began"
    world.journal.stored(attempt, 6, "path", sound=True)
    assert world.journal.sound_step(attempt) == 6
    world.journal.stored(attempt, 4, "path", sound=True)
    assert world.journal.sound_step(attempt) == 6
    attempt.sound_step = 5
    world.journal.step_done(attempt)
    assert world.position == (1, *position(9, sound=5))
    assert world.journal.sound_step(attempt) == 6
    attempt.sound_step = 7
    assert world.journal.sound_step(attempt) == 7
    world.journal.step_done(attempt)
    attempt.sound_step = 2
    assert world.journal.sound_step(attempt) == 7, "that was written"
    other = world.trains("b", sound=0)
    assert world.journal.sound_step(other) == 1, "of another nothing was written"
    world.journal.stored(other, 3, "path", sound=True)
    assert world.journal.sound_step(other) == 3


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "signal", "end"),
    [
        (None, None, ("finished",)),
        (None, "SIGTERM", ("finished",)),
        (ValueError("no"), None, ("failed", "ValueError: no")),
        (ValueError("no"), "SIGTERM", ("failed", "ValueError: no")),
        (asyncio.CancelledError(), None, ("stopped", "cancelled")),
        (KeyboardInterrupt(), None, ("stopped", "stopped by Ctrl-C")),
        (asyncio.CancelledError(), "SIGTERM", ("stopped", "stopped by SIGTERM")),
    ],
)
@pytest.mark.parametrize("durable", [True, False])
async def test_the_end_is_written_with_what_ended_it(
    error: BaseException | None, signal: str | None, end: tuple[str, ...], *, durable: bool
) -> None:
    """What was kept to be recalled goes, unless a later process may go on and ask for it."""
    world = World()
    world.trains()
    world.run.signals.by = signal
    world.run.history.recall.durable = durable
    await world.journal.run_ends(error)
    cleared = [("cleared",)] * (error is None or not durable)
    assert world.log == [("stepped", *position(9, sound=8)), *cleared, ("end", *end)]


@pytest.mark.parametrize("faulty", [True, False])
async def test_at_the_end_nothing_more_is_known_of_an_attempt_at_fault_or_where_none_was(
    *, faulty: bool
) -> None:
    world = World()
    if faulty:
        world.trains().faulty = True
    await world.journal.run_ends(ValueError("no"))
    assert world.log == [("cleared",), ("end", "failed", "ValueError: no")]
