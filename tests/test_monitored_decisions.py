"""What polls, silences and outages mean for a run: decisions, with a run and a client made up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tinker_recovery import RecoveryEvent, RecoveryPolicy
from tinker_recovery.faults import RULES, DetectedBy, Kind
from tinker_recovery.run import monitored
from tinker_recovery.run.monitored import OVERDUE_S, OVERDUE_STEPS, MonitoredRun, listening
from tinker_recovery.service import Asked, RunStatus, sdk_requests
from tinker_recovery.telemetry import EventSink, names

NOW_S = 1000.0
SOUND = RunStatus("a", corrupted=False, base_model="m", lora_rank=8)
CORRUPTED = SOUND._replace(corrupted=True)
ASKED = Asked(at_s=990.0, service_s=5.0)


class Attempt:
    """One with these facts; it can be told from others, and remembered."""

    def __init__(self, **facts: Any) -> None:
        vars(self).update(facts)


class World:
    """A run with one attempt, "a", of which everything is set by hand."""

    def __init__(self, **policy: Any) -> None:
        self.log: list[object] = []
        """What was done about it, in this order."""
        self.declared: list[tuple[Any, DetectedBy, float | None]] = []
        self.events: list[RecoveryEvent] = []
        self.spawned: list[Callable[[], Any]] = []
        self.renews = False
        self.of_save: Any = RULES[Kind.SILENCE]
        self.drained: BaseException | None = None
        self.run: Any = SimpleNamespace(
            name="r",
            ended=False,
            incident=None,
            weights=None,
            policy=RecoveryPolicy(**policy),
            checkpoints=SimpleNamespace(prompt=SimpleNamespace(batch=None)),
            history=SimpleNamespace(evidence=SimpleNamespace(step_s=None)),
            mailbox=SimpleNamespace(deliver=lambda: self.log.append("delivered")),
            spawn=self.spawned.append,
            rollbacks=SimpleNamespace(
                corrupted=None,
                sound_to=math.inf,
                note_reachable=lambda of, *, asked_s: self.log.append(("sound", of.id, asked_s)),
                note_unreachable=lambda of, *how: self.log.append(("unreachable", of.id, *how)),
                note_heard=lambda: self.log.append("heard"),
                note_cut=lambda of: self.log.append(("cut", of.id)),
            ),
        )
        self.attempt = self.trains("a")
        self.monitored = MonitoredRun(cast("Any", self.run), EventSink(self.events.append))

    def trains(self, name: str) -> Any:
        """The run's newest attempt is this one from now on."""
        attempt: Any = Attempt(
            id=name,
            run_id=name,
            client=SimpleNamespace(silence_s=None, open_requests=0, slow_s=None, drain=self._drain),
            sampling=SimpleNamespace(
                silence_s=None, open_requests=0, slow_s=None, renew_silent=self._renew
            ),
            progress=SimpleNamespace(away=lambda: self.log.append(("away", name))),
            refusal=SimpleNamespace(note_silence=self._note_silence),
            declare_fault=self._declare,
        )
        for each in (attempt.client, attempt.sampling):
            each.silent_s = lambda each=each: each.silence_s
        self.run.current = attempt
        return attempt

    async def _drain(self) -> None:
        self.log.append("drained")
        if self.drained is not None:
            raise self.drained

    def _renew(self, limit_s: float) -> bool:
        self.log.append(("renewed", limit_s))
        return self.renews

    def _note_silence(self, rule: object) -> Any:
        assert rule is RULES[Kind.SILENCE]
        return self.of_save

    def _declare(self, rule: Any, by: DetectedBy, *, silent_s: float | None = None) -> None:
        self.log.append("declared")
        self.declared.append((rule, by, silent_s))

    def silent(self, trains_s: float | None, samples_s: float | None = None) -> None:
        """Work that is open makes no progress, and has not for so long; looked at once."""
        client, sampling = self.run.current.client, self.run.current.sampling
        client.silence_s, sampling.silence_s = trains_s, samples_s
        client.open_requests = 0 if trains_s is None else 2
        sampling.open_requests = 0 if samples_s is None else 1
        self.monitored.check_silence()

    @property
    def warned(self) -> list[str]:
        assert all(event.name == names.EVENT_STALL_WARNING for event in self.events)
        return [event.message for event in self.events]


def ended(world: World) -> None:
    world.run.ended = True


def recovers(world: World) -> None:
    world.run.incident = object()


def begins(world: World) -> None:
    world.run.current = None


def was_found_corrupted(world: World) -> None:
    world.run.rollbacks.corrupted = world.run.current


NOT_WATCHED = pytest.mark.parametrize("turn", [ended, recovers, begins, was_found_corrupted])


# -- what is asked of the service, and what it says ----------------------------------------------


def test_the_run_is_asked_about_by_its_newest_attempt() -> None:
    world = World()
    assert (world.monitored.name, world.monitored.watched_run_id) == ("r", "a")
    world.run.rollbacks.corrupted = world.attempt
    world.trains("b")
    assert world.monitored.watched_run_id == "b", "the corrupted one is another"


@NOT_WATCHED
def test_nothing_is_asked_or_noted_before_a_run_trains_or_while_it_does_not(
    turn: Callable[[World], None],
) -> None:
    world = World(stall_after_s=3.0)
    world.attempt.client.silence_s = 9.0
    world.run.rollbacks.sound_to = 4
    world.run.checkpoints.prompt.batch = [1]
    urgent_before = world.monitored.is_urgent
    turn(world)
    assert world.monitored.watched_run_id is None
    assert (urgent_before, world.monitored.is_urgent) == (True, False)
    world.monitored.check_silence()
    for status in (SOUND, CORRUPTED, SOUND._replace(run_id="")):
        world.monitored.note_status(status, ASKED)
    world.monitored.note_session_failed("a", "expired")
    world.monitored.note_unreachable("refused", 1.0)
    world.monitored.note_cut()
    world.monitored.note_cut(ours=False)
    assert (world.log, world.declared, world.events, world.spawned) == ([], [], [], [])
    assert world.run.weights is None


def test_a_sound_answer_says_what_was_sound_when_it_was_asked() -> None:
    world = World()
    world.monitored.note_status(SOUND, ASKED)
    assert world.log == [("sound", "a", 990.0)]
    assert world.run.weights == SOUND.weights
    assert (world.declared, world.run.rollbacks.corrupted) == ([], None)


@pytest.mark.parametrize("status", [SOUND, CORRUPTED])
def test_an_answer_about_an_earlier_attempt_is_ignored(status: RunStatus) -> None:
    world = World()
    world.trains("b")
    world.monitored.note_status(status, ASKED)
    assert (world.log, world.declared, world.run.weights) == ([], [], None)


def test_an_idle_run_that_is_corrupted_has_its_fault_at_once() -> None:
    world = World()
    world.monitored.note_status(CORRUPTED, ASKED)
    assert world.declared == [(RULES[Kind.CORRUPTED], DetectedBy.POLL, None)]
    assert world.run.weights == CORRUPTED.weights
    assert (world.spawned, world.run.rollbacks.corrupted) == ([], None)


@pytest.mark.parametrize("fails", [None, ValueError("the request failed")])
async def test_with_requests_open_the_one_that_fails_may_say_first_at_which_step(
    fails: Exception | None,
) -> None:
    world = World()
    world.attempt.client.open_requests = 1
    world.drained = fails
    world.monitored.note_status(CORRUPTED, ASKED)
    assert world.run.rollbacks.corrupted is world.attempt, "nothing is asked any more"
    assert world.declared == []
    (declare,) = world.spawned
    await declare()
    assert world.log == ["drained", "delivered", "declared"]
    assert world.declared == [(RULES[Kind.CORRUPTED], DetectedBy.POLL, None)]


async def test_requests_that_are_never_answered_hold_a_corruption_back_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert monitored.ANSWER_S < 1
    monkeypatch.setattr(monitored, "ANSWER_S", 0.0)
    world = World()
    world.attempt.client.open_requests = 1
    world.attempt.client.drain = asyncio.Event().wait
    world.monitored.note_status(CORRUPTED, ASKED)
    await asyncio.wait_for(world.spawned[0](), 60.0)
    assert world.log == ["delivered", "declared"]


def test_a_session_that_the_service_failed_is_a_fault_of_the_attempt_it_is_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.monitored.note_session_failed("b", "expired")
    assert (world.declared, caplog.messages) == ([], [])
    world.monitored.note_session_failed("a", "expired")
    assert world.declared == [(RULES[Kind.SESSION_FAILED], DetectedBy.POLL, None)]
    assert caplog.messages == ["run r: the service failed its session: expired"]


# -- a service that is away ----------------------------------------------------------------------


@pytest.mark.parametrize("silent_s", [None, 0.0, 2.0])
@pytest.mark.parametrize("how", ["refused", "down", "silent", "unserved"])
def test_what_waits_for_a_service_that_is_away_is_not_held_to_be_stuck(
    how: Any, silent_s: float | None
) -> None:
    """Except where it may be our own requests' route that is away."""
    world = World()
    world.attempt.client.silence_s = silent_s
    world.monitored.note_unreachable(how, 3.0)
    away = how != "unserved" and silent_s is not None
    assert world.log == [*[("away", "a")] * away, ("unreachable", "a", how, 3.0)]


@pytest.mark.parametrize("silent_s", [None, 0.0])
def test_what_a_request_of_the_sdk_meets_is_heard_of_the_open_ones(silent_s: float | None) -> None:
    world = World()
    world.attempt.client.silence_s = silent_s
    world.monitored.note_heard()
    assert world.log == [*[("away", "a")] * (silent_s is not None), "heard"]


def test_before_an_attempt_what_the_sdk_meets_is_heard_all_the_same() -> None:
    world = World()
    begins(world)
    world.monitored.note_heard()
    assert world.log == ["heard"]


@pytest.mark.parametrize(
    ("ours", "batch", "noted"),
    [(True, None, True), (False, None, False), (False, [1], True), (True, [1], True)],
)
def test_an_idle_connection_of_the_sdks_is_worth_a_look_of_the_canary_alone(
    *, ours: bool, batch: list[int] | None, noted: bool
) -> None:
    world = World()
    world.run.checkpoints.prompt.batch = batch
    world.monitored.note_cut(ours=ours)
    assert world.log == [("cut", "a")] * noted
    if ours:
        world.monitored.note_cut()
        assert world.log == [("cut", "a")] * 2, "it is ours unless it is said whose it is"


# -- work that is overdue ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silent_s", "step_s", "urgent"),
    [
        (None, None, False),
        (0.0, None, False),
        (OVERDUE_S - 0.01, None, False),
        (OVERDUE_S, None, True),
        (OVERDUE_S, 0.1, True),
        (OVERDUE_STEPS * 2.0 - 0.01, 2.0, False),
        (OVERDUE_STEPS * 2.0, 2.0, True),
    ],
)
def test_a_status_cannot_wait_where_work_takes_much_longer_than_the_steps_before(
    silent_s: float | None, step_s: float | None, *, urgent: bool
) -> None:
    world = World()
    world.attempt.client.silence_s = silent_s
    world.run.history.evidence.step_s = step_s
    assert world.monitored.silent_s == silent_s
    assert world.monitored.is_urgent is urgent
    world.run.rollbacks.sound_to = 0
    assert world.monitored.is_urgent, "an outage is to be looked into"
    begins(world)
    assert world.monitored.silent_s is None


# -- silence -------------------------------------------------------------------------------------


def test_a_silence_is_warned_of_once_and_says_when_it_counts_as_a_fault() -> None:
    world = World(stall_after_s=60.0, stall_warn_after_s=20.0)
    world.silent(19.9)
    assert world.warned == []
    world.silent(20.0)
    world.silent(30.0)
    assert world.warned == [
        "2 requests are open and none has finished for 20.0 s; after 60 s it counts as a fault"
    ]
    (event,) = world.events
    assert (event.run, event.fields) == ("r", {names.RUN_ID: "a", names.SILENT_S: 20.0})
    world.silent(59.9)
    assert world.declared == []
    world.silent(60.0)
    assert world.declared == [(RULES[Kind.SILENCE], DetectedBy.SILENCE, 60.0)]
    assert len(world.warned) == 1


def test_one_that_ended_is_warned_of_again_when_it_comes_back() -> None:
    world = World(stall_after_s=60.0, stall_warn_after_s=20.0)
    for silent_s in (25.0, 1.0, 26.0, None, 27.0):
        world.silent(silent_s)
    assert [message.split(" for ")[1][:6] for message in world.warned] == [
        "25.0 s", "26.0 s", "27.0 s",
    ]  # fmt: skip


def test_the_next_attempt_is_warned_of_for_itself() -> None:
    world = World(stall_after_s=60.0, stall_warn_after_s=20.0)
    world.silent(25.0)
    second = world.trains("b")
    world.silent(25.0)
    world.silent(25.0)
    assert [event.fields[names.RUN_ID] for event in world.events] == ["a", "b"]
    assert [of for of, _ in world.monitored._warned_of] == [second], "the first is let go of"


def test_samples_are_warned_of_apart_from_requests() -> None:
    world = World(stall_after_s=60.0, stall_warn_after_s=20.0)
    world.silent(25.0)
    world.silent(25.0, 21.0)
    world.silent(25.0, 22.0)
    assert [message.split(" open ")[0] for message in world.warned] == [
        "2 requests are", "1 sample is",
    ]  # fmt: skip


def test_work_that_is_not_open_is_not_silent() -> None:
    """Where everything silent is a fault at once, what is not open still is none."""
    world = World(stall_after_s=1.0)
    world.silent(None)
    assert (world.warned, world.declared) == ([], [])
    world.silent(None, 1.0)
    assert [rule.kind for rule, *_ in world.declared] == [Kind.SAMPLING_SILENCE]


def test_silence_that_is_never_a_fault_is_warned_of_where_that_is_asked_for() -> None:
    world = World(stall_after_s="off", stall_warn_after_s=20.0)
    world.silent(9999.0, 9999.0)
    assert world.warned == [
        "2 requests are open and none has finished for 9999.0 s",
        "1 sample is open and none has finished for 9999.0 s",
    ]
    never = World(stall_after_s="off")
    never.silent(9999.0, 9999.0)
    assert (never.warned, world.declared, never.declared) == ([], [], [])


@pytest.mark.parametrize("kind", [Kind.SILENCE, Kind.SAMPLING_SILENCE])
def test_how_long_is_too_long_is_told_by_the_slow_ones_of_its_kind(kind: Kind) -> None:
    """Of the requests, or of the samples: 20 times as long, and a third of it is warned of."""
    world = World()
    trains = kind is Kind.SILENCE
    of = world.attempt.client if trains else world.attempt.sampling
    of.slow_s = 30.0

    def silent(lasts_s: float) -> None:
        world.silent(lasts_s if trains else None, None if trains else lasts_s)

    silent(199.0)
    assert world.warned == []
    silent(599.0)
    assert len(world.warned) == 1
    assert world.declared == []
    silent(600.0)
    assert world.declared == [(RULES[kind], DetectedBy.SILENCE, 600.0)]
    of.slow_s = None
    silent(1799.0)
    assert len(world.declared) == 1


@pytest.mark.parametrize("renews", [True, False])
def test_samplers_that_are_silent_are_made_again_before_that_is_a_fault(*, renews: bool) -> None:
    world = World(stall_after_s=60.0)
    world.renews = renews
    world.silent(None, 59.0)
    assert world.log == []
    world.silent(None, 61.0)
    fault = RULES[Kind.SAMPLING_SILENCE], DetectedBy.SILENCE, 61.0
    assert world.declared == ([] if renews else [fault])
    assert world.log[0] == ("renewed", 60.0)
    world.log.clear()
    world.silent(61.0)
    assert world.log == ["declared"], "a silence of requests is none of the samplers'"


def test_a_silence_that_is_a_saves_counts_as_what_the_save_says() -> None:
    world = World(stall_after_s=60.0)
    world.of_save = None
    world.silent(60.0)
    assert world.declared == [], "it is left out"
    world.of_save = replace(RULES[Kind.SILENCE], kind=Kind.REQUEST_FAILED)
    world.silent(61.0)
    assert world.declared == [(world.of_save, DetectedBy.SILENCE, 61.0)]


# -- what requests meet --------------------------------------------------------------------------


class Heard:
    """Stands in for a run, and notes what it is told."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def note_unreachable(self, how: str, waited_s: float) -> None:
        self.log.append(("unreachable", how, waited_s))

    def note_cut(self, *, ours: bool = True) -> None:
        self.log.append(("cut", ours))

    def note_heard(self) -> None:
        self.log.append(("heard",))


class Listening:
    """Two runs on an HTTP client, and what the SDK's requests report to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.http: Any = SimpleNamespace(endpoint=SimpleNamespace(base_url="http://service"))
        self.runs = {"r": Heard(), "s": Heard()}
        self.met: Any = None
        self.urls: list[str] = []
        monkeypatch.setattr(sdk_requests, "listening", self._listening)

    @contextmanager
    def _listening(self, base_url: str, met: Any) -> Iterator[None]:
        self.urls.append(base_url)
        self.met = met
        yield
        self.urls.append("no more")

    @contextmanager
    def entered(self) -> Iterator[None]:
        runs: Any = self.runs
        with listening(self.http, runs):
            yield

    @property
    def told(self) -> list[tuple[object, ...]]:
        """What every run was told."""
        first, second = (run.log for run in self.runs.values())
        assert first == second
        return first


async def test_every_run_is_told_what_a_request_of_ours_meets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Listening(monkeypatch)
    with world.entered():
        assert world.urls == ["http://service"]
        world.http.unreachable("down", 2.0)
        world.http.cut()
    assert world.told == [("unreachable", "down", 2.0), ("cut", True)]
    assert world.urls == ["http://service", "no more"]


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("refused", [("unreachable", "refused", 0.0)]),
        ("down", [("cut", False)]),
        ("unserved", [("cut", False)]),
        ("silent", []),
    ],
)
async def test_every_run_is_told_on_the_event_loop_what_the_sdks_requests_meet(
    monkeypatch: pytest.MonkeyPatch, how: str, more: list[tuple[object, ...]]
) -> None:
    """Nothing listens where it is refused; any other may be one of the SDK's many connections."""
    world = Listening(monkeypatch)
    with world.entered():
        await asyncio.to_thread(world.met, how)
        if not world.told:
            await asyncio.sleep(0)
    assert world.told == [("heard",), *more]


def test_what_the_sdk_meets_after_the_event_loop_is_over_is_nothing_to_anyone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Listening(monkeypatch)

    async def enter() -> None:
        with world.entered():
            world.met("silent")  # told in the next round of the loop, which is none of these runs'

    asyncio.run(enter())
    told = list(world.told)
    world.met("refused")
    assert world.told == told
