"""What an outage, a poll or a fault casts doubt on: decisions, with a run and a client made up.

Everything here is about weights that may be older than their step says.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import path, segment

from tinker_recovery import RecoveryEvent, RecoveryPolicy
from tinker_recovery.checkpoints.prompt import prompt_of
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.run.rollback_detector import LONG_S, MOMENT_S, RollbackDetector, _Outage
from tinker_recovery.service import sdk_requests
from tinker_recovery.telemetry import EventSink, names


@dataclass
class World:
    """A run with one attempt, "a", whose client and clock are set by hand."""

    now_s: float = 1000.0
    prompt: bool = True
    measured: bool = True
    on_outage: Any = "recover"
    guard_loss: bool = False
    open_requests: int = 0
    steps_done: int = 9
    canaries_asked: int = 0
    declared: list[tuple[Kind, DetectedBy]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    spawned: list[object] = field(default_factory=list)
    posted: list[Any] = field(default_factory=list)
    collections: list[object] = field(default_factory=list)
    spares: list[str] = field(default_factory=list)
    events: list[RecoveryEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = CheckpointState("r", canary=prompt_of([1, 2]) if self.prompt else None)
        if self.measured:
            self.known.canaries.know_noise(0.0)
        self.client = SimpleNamespace(
            first_doubtful_step=math.inf,
            oldest_open_step=None,
            run_canary_next=self._asked,
            step=9,
            unanswered={},
        )
        self.attempt: Any = SimpleNamespace(
            id="a",
            start_step=2,
            finished=False,
            faulty=False,
            closed=False,
            checkpoint=None,
            client=self.client,
            saver=SimpleNamespace(steps_done=lambda: self.steps_done),
            segment=segment("a"),
            declare_fault=self._declare,
        )
        self.run: Any = SimpleNamespace(
            name="r",
            start_step=0,
            clock=SimpleNamespace(monotonic=lambda: self.now_s),
            policy=RecoveryPolicy(
                on_outage=self.on_outage, guard_loss=self.guard_loss, poll_interval_s=10.0
            ),
            checkpoints=self.known,
            current=self.attempt,
            attempts=[self.attempt],
            collaborators=SimpleNamespace(
                events=EventSink(self.events.append),
                distrust_spare=lambda name: self.spares.append(f"distrust {name}"),
                drop_spare=lambda name: self.spares.append(f"drop {name}"),
            ),
            mailbox=SimpleNamespace(post=self.posted.append, deliver=lambda: None),
            retention=SimpleNamespace(ask=self.collections.append),
            spawn=self.spawned.append,
            origin="a base model",
        )
        self.detector = RollbackDetector(cast("Any", self.run))

    def _asked(self) -> int:
        self.canaries_asked += 1
        return self.open_requests

    def _declare(self, rule: Any, by: DetectedBy, error: object = None) -> None:
        self.declared.append((rule.kind, by))
        self.reasons.append(str(error))

    def store(self, *steps: int) -> None:
        """Saves of these steps are known to be stored, now."""
        for step in steps:
            self.known.stored[path("a", step)] = "a", step
            self.detector.note_stored(step)

    def unreachable(self, how: Any = "refused", *, waited_s: float = 0.0) -> None:
        self.detector.note_unreachable(self.attempt, how, waited_s)

    def reachable(self) -> None:
        self.detector.note_reachable(self.attempt, asked_s=self.now_s)

    @property
    def limit(self) -> float:
        return self.known.trusted_to("a")

    @property
    def unknown(self) -> list[RecoveryEvent]:
        return [event for event in self.events if event.name == names.EVENT_WEIGHTS_UNKNOWN]


# -- what stays trusted whatever comes -----------------------------------------------------------


def test_nothing_is_confirmed_before_a_poll_behind_the_save() -> None:
    world = World()
    assert world.detector.confirmed_to("a") == 0, "where the run began"
    world.store(3, 5)
    assert world.detector.confirmed_to("a") == 0
    world.reachable()
    assert world.detector.confirmed_to("a") == 5
    assert world.detector.polled_step == 5
    assert world.collections == [world.run]
    world.reachable()
    assert world.collections == [world.run], "nothing more can be relied on"


def test_a_poll_confirms_what_was_stored_when_it_was_asked_and_not_what_came_since() -> None:
    world = World()
    world.store(3)
    asked_s = world.now_s
    world.now_s += 1.0
    world.store(5)
    world.detector.note_reachable(world.attempt, asked_s=asked_s)
    assert world.detector.confirmed_to("a") == 3
    world.detector.note_reachable(world.attempt, asked_s=world.now_s)
    assert world.detector.confirmed_to("a") == 5


def test_a_save_stored_before_any_request_under_way_was_sent_needs_no_time() -> None:
    world = World()
    world.store(3)
    under_way_s = 2 * world.run.policy.status_timeout_s
    world.now_s += under_way_s
    world.store(4)
    world.store(3)  # the same again
    assert world.detector._known_at == {3: 1000.0, 4: world.now_s}
    world.now_s += 0.1
    world.store(5)
    assert world.detector._known_at.keys() == {4, 5}
    world.detector.note_reachable(world.attempt, asked_s=0.0)
    assert world.detector.polled_step == 3


def test_a_new_attempt_begins_on_weights_that_were_looked_at() -> None:
    world = World()
    world.store(3, 5)
    world.unreachable()
    world.reachable()
    world.detector.note_resumed(3)
    assert (world.detector.sound_to, world.detector.polled_step) == (math.inf, 3)
    assert world.detector._known_at == {}
    world.unreachable()
    world.reachable()
    assert len(world.spawned) == 2, "it is looked into as well"


def test_without_a_save_a_poll_confirms_where_the_attempt_began() -> None:
    world = World()
    world.reachable()
    assert world.detector.confirmed_to("a") == 2


@given(doubtful=st.integers(0, 9), saved=st.lists(st.integers(3, 9), unique=True))
def test_a_poll_confirms_no_save_behind_a_request_that_may_fail(
    doubtful: int, saved: list[int]
) -> None:
    world = World()
    world.client.first_doubtful_step = doubtful
    world.store(*saved)
    world.known.stored[path("b", 7)] = "b", 7
    world.reachable()
    sure = max([step for step in saved if step <= doubtful], default=2)
    assert world.detector.polled_step == sure
    assert world.detector.confirmed_to("a") == min(sure, doubtful)


@pytest.mark.parametrize(("done", "confirmed"), [(0, 0), (2, 2), (5, 5), (6, 5)])
def test_where_losses_are_guarded_a_step_counts_once_its_loss_was_seen(
    done: int, confirmed: int
) -> None:
    """The loss of step n + 1 tells of the weights of step n, and is reported when that is done."""
    world = World(guard_loss=True, steps_done=done)
    world.store(5)
    world.reachable()
    assert world.detector.confirmed_to("a") == confirmed


def test_an_attempt_that_is_over_or_another_has_no_limit_of_its_own() -> None:
    world = World()
    assert world.detector.confirmed_to("b") == math.inf
    world.attempt.finished = True
    assert world.detector.confirmed_to("a") == math.inf
    world.attempt.finished = False
    world.run.current = None
    assert world.detector.confirmed_to("a") == math.inf


def test_during_an_outage_nothing_behind_its_beginning_is_confirmed_or_sound() -> None:
    world = World()
    world.store(3, 5)
    world.reachable()
    assert world.detector.sound_to == math.inf
    world.store(7)
    world.unreachable()
    world.store(8)
    assert world.detector.sound_to == 7
    assert world.detector.confirmed_to("a") == 5


def test_an_outage_may_have_begun_with_the_request_that_met_it() -> None:
    world = World()
    world.store(3)
    world.now_s += 4.0
    world.store(5)
    world.now_s += 1.0
    world.unreachable("silent", waited_s=3.0)
    assert world.detector.sound_to == 3
    world.now_s += 10.0
    world.unreachable("silent", waited_s=0.0)
    assert world.detector.sound_to == 3, "it is still the same"


def test_an_outage_without_a_request_that_waited_begins_now() -> None:
    world = World()
    world.store(3)
    world.now_s += 1.0
    world.store(5)
    world.now_s += 0.5
    world.detector.note_unreachable(world.attempt, "refused")
    assert world.detector.sound_to == 5


def test_an_outage_before_any_attempt_begins_where_the_run_does_and_met_no_request() -> None:
    world = World(prompt=False)
    world.run.start_step, world.run.current = 7, None
    world.detector.note_unreachable(None, "refused")
    assert world.detector.sound_to == 7
    world.run.current = world.attempt
    world.reachable()
    assert world.declared == []
    assert len(world.unknown) == 1


# -- what an outage was like ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("met", "heard", "lasted_s", "refused_s", "requests", "down"),
    [
        ([], False, 0, 0, False, False),
        ([], True, 0, 0, False, False),
        ([(1, "refused")], False, 0, 0, True, True),
        ([(1, "refused"), (2, "refused"), (4, "refused")], False, 3, 3, True, True),
        ([(1, "silent"), (2, "refused"), (4, "refused"), (9, "down")], False, 8, 2, True, True),
        ([(1, "silent"), (1 + LONG_S, "silent")], False, LONG_S, 0, True, False),
        ([(1, "silent"), (0.9 + LONG_S, "silent")], False, LONG_S - 0.1, 0, False, False),
        ([(1, "down"), (2, "silent")], False, 1, 0, False, True),
        ([(1, "unserved"), (9, "unserved")], False, 8, 0, False, False),
        ([(1, "unserved"), (9, "unserved")], True, 8, 0, True, True),
        ([(1, "unserved"), (2, "unserved")], True, 1, 0, False, True),
        ([(1, "unserved"), (2, "silent")], False, 1, 0, False, True),
        ([(1, "silent"), (2, "unserved")], False, 1, 0, False, True),
    ],
)
def test_what_requests_under_way_may_have_met_is_told_by_what_ours_met(
    met: list[tuple[float, Any]],
    lasted_s: float,
    refused_s: float,
    *,
    heard: bool,
    requests: bool,
    down: bool,
) -> None:
    """Only where all that ours met is a proxy's answers, the SDK has to have heard of it too."""
    for under_way in (0, 1):
        outage = _Outage(3, under_way, heard=heard)
        for now_s, how in met:
            outage.note(now_s, how)
        assert (outage.lasted_s, outage.refused_s) == pytest.approx((lasted_s, refused_s))
        assert outage.met_requests is (requests and under_way > 0)
        assert outage.met_down is (down and under_way > 0)


def test_a_run_is_in_doubt_while_an_outage_is_open_or_a_poll_has_found_it_corrupted() -> None:
    world = World()
    detector = world.detector

    def doubts() -> tuple[bool, bool]:
        return detector.is_out_of_reach, detector.in_doubt

    assert doubts() == (False, False)
    detector.note_cut(world.attempt)
    assert doubts() == (False, False), "that is a mere hint"
    world.unreachable()
    assert doubts() == (True, True)
    detector.note_resumed(3)
    assert doubts() == (False, False)
    detector.corrupted = world.attempt
    assert doubts() == (False, True)
    detector.corrupted = cast("Any", object())
    assert doubts() == (False, False), "that is another attempt"
    detector.corrupted = world.run.current = None
    assert doubts() == (False, False)
    world.unreachable()
    assert doubts() == (True, True)


# -- what a fault casts doubt on -----------------------------------------------------------------


def _fault(kind: Kind, by: DetectedBy, failed_step: int | None = None) -> Fault:
    return Fault("r", 1, "a", RULES[kind], by, 9, failed_step=failed_step)


@pytest.mark.parametrize(
    ("kind", "by", "failed_step", "outage", "limit"),
    [
        (Kind.CORRUPTED, DetectedBy.CALL, 8, False, math.inf),
        (Kind.CORRUPTED, DetectedBy.POLL, 8, False, 5),
        (Kind.CORRUPTED, DetectedBy.POLL, None, True, 5),
        (Kind.CORRUPTED, DetectedBy.CALL, None, True, 7),
        (Kind.LOSS_NOT_FINITE, DetectedBy.CALL, 8, False, 7),
        (Kind.LOSS_NOT_FINITE, DetectedBy.CALL, 4, True, 3),
        (Kind.LOSS_NOT_FINITE, DetectedBy.CALL, None, False, math.inf),
        (Kind.LOSS_NOT_FINITE, DetectedBy.POLL, 8, False, 5),
    ],
)
def test_what_was_saved_since_a_fault_may_have_begun_is_not_trusted(
    kind: Kind, by: DetectedBy, failed_step: int | None, limit: float, *, outage: bool
) -> None:
    world = World()
    world.store(5)
    world.reachable()
    world.store(7)
    if outage:
        world.unreachable()
    world.detector.distrust_since(_fault(kind, by, failed_step), world.attempt)
    assert world.limit == limit


@pytest.mark.parametrize("kind", list(Kind))
def test_a_spare_is_given_up_where_the_service_may_have_been_restarted(kind: Kind) -> None:
    world = World()
    world.detector.distrust_since(_fault(kind, DetectedBy.CALL), world.attempt)
    if kind not in {Kind.ROLLED_BACK, Kind.UNAVAILABLE}:
        assert (world.spares, world.posted) == ([], [])
        return
    assert world.spares == ["distrust r"]
    (close,) = world.posted
    close()
    assert world.spares == ["distrust r", "drop r"]


# -- what is done about an outage ----------------------------------------------------------------


def test_once_it_answers_again_the_canary_is_asked_once() -> None:
    world = World()
    world.reachable()
    assert world.spawned == [], "there was no outage"
    world.unreachable()
    assert world.canaries_asked == 1, "before the next request of the loop"
    assert world.spares == ["distrust r"]
    world.reachable()
    world.reachable()
    assert len(world.spawned) == 1
    assert (world.declared, world.unknown) == ([], [])


@pytest.mark.parametrize(
    ("how", "requests", "lasted_s", "goes_back"),
    [
        ("refused", 1, 0.0, True),
        ("refused", 0, 0.0, False),
        ("silent", 1, LONG_S, True),
        ("silent", 1, LONG_S - 0.1, False),
        ("silent", 0, LONG_S, False),
        ("broken", 1, 0.0, True),
        ("broken", 0, 9.0, False),
    ],
)
def test_requests_that_were_under_way_may_have_been_applied_to_older_weights(
    how: str, requests: int, lasted_s: float, *, goes_back: bool
) -> None:
    """Then the canary answers as it never did before, and tells nothing."""
    world = World(open_requests=requests)
    world.store(5)
    world.unreachable(how)
    world.now_s += lasted_s
    world.unreachable(how)
    world.store(7)
    world.reachable()
    assert world.declared == ([(Kind.ROLLED_BACK, DetectedBy.CANARY)] if goes_back else [])
    assert world.limit == (5 if goes_back else math.inf)
    assert len(world.spawned) == (not goes_back)
    assert world.unknown == []


@pytest.mark.parametrize(
    ("heard_s", "others", "goes_back"),
    [
        (None, [], False),
        (-10.1, [], False),  # longer ago than a poll
        (-10.0, [], True),
        (0.0, [], True),
        (0.5, [], True),
        (None, ["down"], True),
        (None, ["silent"], True),
        (None, ["refused"], True),
    ],
)
@pytest.mark.parametrize("lasted_s", [0.0, LONG_S])
def test_http_503_to_a_request_of_ours_is_an_outage_if_the_sdk_meets_it_as_well(
    heard_s: float | None, others: list[str], lasted_s: float, *, goes_back: bool
) -> None:
    """Otherwise it is that route alone: the canary is asked, and nothing is gone back from."""
    world = World(open_requests=2)
    world.store(5)
    if heard_s is not None and heard_s <= 0:
        world.detector.note_heard()
        world.now_s -= heard_s
    for how in ["unserved", *others]:
        world.unreachable(how)
    if heard_s is not None and heard_s > 0:
        world.now_s += heard_s
        world.detector.note_heard()
    world.now_s += lasted_s
    world.unreachable("unserved")
    world.reachable()
    assert world.declared == ([(Kind.ROLLED_BACK, DetectedBy.CANARY)] if goes_back else [])
    assert len(world.spawned) == (not goes_back)
    assert world.unknown == []


def test_where_the_sdk_cannot_be_listened_to_any_http_503_may_be_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_SDK_WORKAROUNDS", "0")
    world = World(open_requests=1)
    world.unreachable("unserved")
    world.reachable()
    assert world.declared == [(Kind.ROLLED_BACK, DetectedBy.CANARY)]


def test_who_only_wants_to_be_warned_has_the_canary_asked_all_the_same() -> None:
    world = World(open_requests=1, on_outage="warn")
    world.unreachable()
    world.reachable()
    assert (world.declared, world.unknown, len(world.spawned)) == ([], [], 1)


@pytest.mark.parametrize(
    ("how", "requests", "lasted_s", "outcome"),
    [
        ("refused", 0, MOMENT_S, "back"),
        ("refused", 0, MOMENT_S - 0.1, "said once"),
        ("refused", 1, 0.0, "back"),
        ("silent", 0, MOMENT_S, "said"),
        ("silent", 0, MOMENT_S - 0.1, "nothing"),
        ("silent", 1, LONG_S, "back"),
        ("broken", 0, 0.0, "said once"),
        ("broken", 1, 0.0, "said"),
        ("broken", 0, LONG_S, "said"),
    ],
)
@pytest.mark.parametrize("on_outage", ["recover", "warn"])
def test_without_a_canary_an_outage_is_decided_by_how_long_and_how_it_was(
    how: str, requests: int, lasted_s: float, outcome: str, on_outage: str
) -> None:
    world = World(prompt=False, open_requests=requests, on_outage=on_outage)
    world.store(5)
    for _ in range(2):
        world.unreachable(how)
        world.now_s += lasted_s
        world.unreachable(how)
        world.reachable()
        if world.declared:
            break
        assert world.detector.sound_to == math.inf
    assert world.spawned == []
    back = outcome == "back" and on_outage == "recover"
    assert world.declared == ([(Kind.ROLLED_BACK, DetectedBy.CANARY)] if back else [])
    assert world.limit == (5 if back else math.inf)
    times = {"back": 0 if back else 2, "said": 2, "said once": 1, "nothing": 0}[outcome]
    assert len(world.unknown) == times
    for event in world.unknown:
        assert event.fields[names.CHECKPOINT_STEP] == 5


@pytest.mark.parametrize(
    ("hows", "outcome"),
    [
        (("refused", "silent", "refused", "silent"), "back"),
        (("silent", "refused", "silent", "silent"), "said"),
        (("silent", "silent", "silent", "refused"), "said"),
        (("silent", "broken", "refused", "refused"), "said"),
        (("refused", "refused", "refused", "silent"), "back"),
    ],
)
def test_an_outage_lasts_from_the_first_request_that_met_it_to_the_last(
    hows: tuple[str, ...], outcome: str
) -> None:
    """A third of a second each; only what was refused counts as a server that is gone."""
    world = World(prompt=False)
    for how in hows:
        world.unreachable(how)
        world.now_s += 0.3
    world.reachable()
    assert bool(world.declared) == (outcome == "back")
    assert len(world.unknown) == (outcome == "said")
    assert all("out of reach for 0.9 s" in event.message for event in world.unknown)


def test_what_was_down_once_was_down_though_the_last_request_met_a_silence() -> None:
    world = World(open_requests=1)
    for how in ("broken", "silent"):
        world.unreachable(how)
    world.reachable()
    assert world.declared == [(Kind.ROLLED_BACK, DetectedBy.CANARY)]
    (why,) = world.reasons
    assert why.endswith("so nothing can tell which weights it has kept")


@pytest.mark.parametrize("requests", [0, 2])
def test_a_warning_says_what_was_met(requests: int) -> None:
    world = World(prompt=False, open_requests=requests, on_outage="warn")
    world.unreachable()
    world.now_s += MOMENT_S
    world.unreachable()
    world.reachable()
    (event,) = world.unknown
    what = "out of reach with 2 requests under way" if requests else "refused connections for 0.5 s"
    assert what in event.message


@pytest.mark.parametrize("has", ["nothing", "an origin", "a checkpoint", "a save"])
def test_who_has_nothing_to_go_back_to_is_warned(has: str) -> None:
    world = World(prompt=False)
    world.run.origin = "a base model" if has == "an origin" else None
    world.attempt.checkpoint = object() if has == "a checkpoint" else None
    if has == "a save":
        world.store(5)
    world.unreachable()
    world.now_s += MOMENT_S
    world.unreachable()
    world.reachable()
    assert bool(world.declared) == (has != "nothing")
    assert len(world.unknown) == (has == "nothing")


# -- an idle connection that was closed ----------------------------------------------------------


def test_a_connection_closed_while_idle_has_the_weights_looked_at_now_and_then() -> None:
    world = World()
    world.detector.note_cut(world.attempt)
    assert world.canaries_asked == 1
    assert world.detector.sound_to == 2
    world.detector.note_cut(world.attempt)
    assert world.canaries_asked == 1, "it is about to be looked into"
    world.detector._outage = None
    world.now_s += 4.9
    world.detector.note_cut(world.attempt)
    assert world.canaries_asked == 1, "half a poll interval is not over"
    world.now_s += 0.1
    world.detector.note_cut(world.attempt)
    assert world.canaries_asked == 2


@pytest.mark.parametrize("asked", [False, True])
def test_one_closed_under_a_request_says_nothing_unless_the_canary_was_asked_behind_it(
    *, asked: bool
) -> None:
    world = World()
    world.client.oldest_open_step = 4
    world.detector.note_cut(world.attempt, asked=asked)
    assert (world.detector.sound_to == math.inf) == (not asked)
    assert world.canaries_asked == 0


@pytest.mark.parametrize("steps_done", [0, 1])
def test_without_a_canary_a_closed_connection_is_said_once_if_anything_was_trained(
    steps_done: int,
) -> None:
    world = World(prompt=False, steps_done=steps_done)
    for _ in range(2):
        world.detector.note_cut(world.attempt)
        world.reachable()
        world.now_s += 60.0
    assert len(world.unknown) == min(steps_done, 1)
    assert all("closed an idle connection" in event.message for event in world.unknown)
    assert world.canaries_asked == steps_done, "it is not even noted after that"
    assert world.declared == []


def test_with_a_canary_a_closed_connection_is_looked_into_before_the_first_step_as_well() -> None:
    world = World(steps_done=0)
    world.detector.note_cut(world.attempt)
    assert world.canaries_asked == 1


def test_a_cut_during_an_outage_changes_nothing_of_it() -> None:
    world = World(open_requests=1)
    world.unreachable()
    asked = world.canaries_asked
    world.now_s += 60.0
    world.store(8)
    world.detector.note_cut(world.attempt)
    assert (world.detector.sound_to, world.canaries_asked) == (2, asked)
    world.reachable()
    assert world.declared == [(Kind.ROLLED_BACK, DetectedBy.CANARY)]


@pytest.mark.parametrize("how", ["broken", "refused"])
def test_what_is_said_of_a_moment_is_not_what_is_said_of_an_idle_connection(how: str) -> None:
    world = World(prompt=False)
    world.unreachable(how)
    world.reachable()
    assert len(world.unknown) == 1
    assert "was away for a moment" in world.unknown[0].message


def test_a_cut_before_any_attempt_says_nothing() -> None:
    world = World()
    world.detector.note_cut(None)
    assert world.detector.sound_to == math.inf


def test_an_outage_that_follows_a_cut_counts_from_the_outage() -> None:
    """The cut alone was no outage that a request of ours met."""
    world = World(open_requests=1)
    world.detector.note_cut(world.attempt)
    world.store(5)
    world.unreachable()
    assert world.detector.sound_to == 5
    world.reachable()
    assert world.declared == [(Kind.ROLLED_BACK, DetectedBy.CANARY)]


# -- what the canary says ------------------------------------------------------------------------


def _answer(*logprobs: float) -> Any:
    return SimpleNamespace(
        loss_fn_outputs=[{"logprobs": SimpleNamespace(data=list(logprobs))}], metrics={}
    )


def _answered(result: object) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


AT = {step: (-1.0, -2.0 - step) for step in (2, 3, 5, 7, 9)}
"""What the canary answers on the weights of a step; without noise."""


async def _looked(world: World, answer: Any, *, at: int = 9) -> None:
    """An outage that is looked into, and what comes of it."""
    for step in (2, 3, 5, 7):
        world.known.canaries.record("a", step, AT[step])
    world.client.run_canary = lambda: (_answered(answer), at)
    world.reachable()
    (look,) = world.spawned
    await cast("Any", look)()


@pytest.mark.parametrize("kept", [2, 3, 5])
async def test_weights_of_an_earlier_step_take_the_run_back(kept: int) -> None:
    world = World()
    world.store(3, 5)
    world.unreachable()
    world.store(7)
    await _looked(world, _answer(*AT[kept]))
    assert world.declared == [(Kind.ROLLED_BACK, DetectedBy.CANARY)]
    assert f"the canary answers as at step {kept}: the service lost" in world.reasons[0]
    # What the canary has answered otherwise at, before the outage, is sound: up to step 5.
    assert world.limit == 5
    assert world.unknown == []


async def test_weights_as_they_never_were_before_are_the_newest_ones() -> None:
    world = World()
    world.store(3, 5)
    world.unreachable()
    await _looked(world, _answer(*AT[9]))
    assert (world.declared, world.unknown, world.limit) == ([], [], math.inf)
    assert world.detector.sound_to == math.inf, "the outage is over"
    world.spawned.clear()
    world.reachable()
    assert world.spawned == []


async def test_as_long_as_the_noise_is_not_known_other_weights_are_no_proof_of_new_ones() -> None:
    """A service with noise answers otherwise each time, on older weights as well."""
    world = World(measured=False)
    world.store(3, 5)
    world.unreachable()
    await _looked(world, _answer(*AT[9]))
    assert "nothing here can tell" in world.unknown[0].message


async def test_with_requests_under_way_weights_as_they_never_were_are_warned_of() -> None:
    """The policy asks to be warned: so the canary is asked, and what it says is no proof."""
    world = World(open_requests=2, on_outage="warn")
    world.store(5)
    world.unreachable()
    await _looked(world, _answer(*AT[9]))
    assert world.declared == []
    (event,) = world.unknown
    assert "with 2 requests under way" in event.message
    assert event.fields[names.CHECKPOINT_STEP] == 5


async def test_a_closed_connection_met_no_request_whatever_the_sdks_requests_meet_then() -> None:
    world = World()
    world.store(5)
    world.detector.note_cut(world.attempt)
    world.detector.note_heard()
    await _looked(world, _answer(*AT[9]))
    assert (world.declared, world.unknown) == ([], [])
    assert world.detector.sound_to == math.inf


async def test_a_save_not_known_to_be_stored_before_the_outage_may_be_what_it_went_back_to() -> (
    None
):
    """It is not gone back to here: it may as well have been carried out on older weights."""
    world = World()
    world.store(3, 5)
    world.unreachable()
    world.store(7)
    await _looked(world, _answer(*AT[7]))
    assert (world.declared, world.limit) == ([(Kind.ROLLED_BACK, DetectedBy.CANARY)], 5)
    assert "answers as at step 7" in world.reasons[0]


@pytest.mark.parametrize(
    ("saved", "known"), [(4, True), (5, False), (7, False), (8, False), (9, True), (11, True)]
)
async def test_nor_can_anything_be_told_where_the_canary_has_not_answered_on_such_a_save(
    saved: int, *, known: bool
) -> None:
    """Before the newest one that was stored, no save matters; on this step, nothing is lost."""
    world = World()
    world.store(3, 5)
    world.client.unanswered = {saved: None}
    world.unreachable()
    await _looked(world, _answer(*AT[9]))
    assert world.declared == []
    assert (world.unknown == []) is known


async def test_what_a_run_has_left_is_not_compared_with() -> None:
    """Its second attempt began at step 3 of the first, which had gone on to step 7."""
    world = World()
    second: Any = SimpleNamespace(**{**vars(world.attempt), "id": "b", "start_step": 3})
    second.segment = segment("b", 3, path("a", 3))
    world.run.current = second
    world.run.attempts.append(second)
    for step in (2, 3, 5, 7):
        world.known.canaries.record("a", step, AT[step])
    assert world.detector._known_on_branch() == [("a", 2), ("a", 3)]
    world.known.canaries.record("b", 9, AT[9])
    assert sorted(world.detector._known_on_branch()) == [("a", 2), ("a", 3), ("b", 9)]


@pytest.mark.parametrize("refused_s", [0.0, MOMENT_S])
async def test_an_answer_that_says_nothing_leaves_it_to_how_the_outage_was(
    refused_s: float,
) -> None:
    """The model has hardly moved: the answer may be that of several steps."""
    world = World()
    world.store(3, 5)
    world.unreachable()
    world.now_s += refused_s
    world.unreachable()
    for step in (2, 3, 5, 7):
        world.known.canaries.record("a", step, AT[2])
    world.client.run_canary = lambda: (_answered(_answer(*AT[2])), 9)
    world.reachable()
    (look,) = world.spawned
    await cast("Any", look)()
    assert bool(world.declared) == bool(refused_s)
    assert len(world.unknown) == (not refused_s)


@pytest.mark.parametrize("why", ["it failed", "faulty", "closed", "not asked"])
async def test_a_look_that_comes_to_nothing_leaves_the_outage_open_and_is_repeated(
    why: str,
) -> None:
    world = World()
    world.store(5)
    world.unreachable()
    asked: list[int] = []

    def run_canary() -> Any:
        asked.append(1)
        return None if why == "not asked" else (_answered(ValueError("it failed")), 9)

    world.client.run_canary = run_canary
    world.attempt.faulty, world.attempt.closed = why == "faulty", why == "closed"
    world.reachable()
    (look,) = world.spawned
    await cast("Any", look)()
    assert bool(asked) == (why in {"it failed", "not asked"})
    assert world.detector.sound_to == 5
    assert (world.declared, world.unknown) == ([], [])
    world.reachable()
    assert len(world.spawned) == 2


@pytest.mark.parametrize("ends", ["sound", "cannot tell", "a fault meanwhile"])
async def test_at_the_end_an_outage_is_looked_into_and_what_cannot_be_told_is_decided(
    ends: str,
) -> None:
    world = World()
    world.store(5)
    world.unreachable()
    world.now_s += MOMENT_S
    world.unreachable()
    delivered: list[int] = []

    def deliver() -> None:
        delivered.append(1)
        world.attempt.faulty = ends == "a fault meanwhile"

    world.run.mailbox.deliver = deliver
    world.known.canaries.record("a", 5, AT[5])
    answer = _answer(*AT[9]) if ends == "sound" else ValueError("it failed")
    world.client.run_canary = lambda: (_answered(answer), 9)
    await world.detector.settle(world.attempt)
    assert delivered == [1] * (2 if ends == "sound" else 1), "an answer is compared with all others"
    cannot_tell = ends == "cannot tell"
    assert world.declared == ([(Kind.ROLLED_BACK, DetectedBy.CANARY)] if cannot_tell else [])
    assert world.spawned == []


# -- the end -------------------------------------------------------------------------------------


async def test_at_the_end_the_word_of_a_poll_counts() -> None:
    world = World()
    world.detector.corrupted = world.attempt
    await world.detector.settle(world.attempt)
    assert world.declared == [(Kind.CORRUPTED, DetectedBy.POLL)]


async def test_at_the_end_a_poll_of_another_attempt_says_nothing() -> None:
    world = World()
    world.detector.corrupted = cast("Any", object())
    await world.detector.settle(world.attempt)
    assert world.declared == []


async def test_at_the_end_an_outage_without_a_canary_is_decided() -> None:
    world = World(prompt=False)
    world.unreachable()
    world.now_s += MOMENT_S
    world.unreachable()
    await world.detector.settle(world.attempt)
    assert world.declared == [(Kind.ROLLED_BACK, DetectedBy.CANARY)]


# -- a save that the service has lost ------------------------------------------------------------


def test_a_save_that_fails_where_nothing_was_met_is_no_sign_of_a_restart() -> None:
    world = World()
    world.store(3)
    world.detector.note_save_failed(world.attempt)
    world.detector.note_heard()
    world.now_s += 2 * max(LONG_S, world.run.policy.poll_interval_s)
    world.detector.note_save_failed(world.attempt)
    assert (world.declared, world.unknown) == ([], [])


@pytest.mark.parametrize("heard", [True, False])
def test_one_that_fails_after_a_connection_broke_off_takes_the_run_back_to_before_that(
    *, heard: bool
) -> None:
    """Whether a request of the SDK's met it, or one of ours."""
    world = World()
    world.store(3)
    world.now_s += 1.0
    if heard:
        world.detector.note_heard()
        world.now_s += 1.0
        world.detector.note_heard()
    else:
        world.unreachable("down")
    world.now_s += 1.0
    world.store(5)
    world.detector.note_save_failed(world.attempt)
    assert world.declared == [(Kind.ROLLED_BACK, DetectedBy.CANARY)]
    assert world.limit == 3, "what was stored since may be of older weights"
    assert "has lost a save" in world.reasons[0]


def test_where_saves_go_on_failing_it_is_said_and_the_run_goes_on() -> None:
    world = World()
    for again in range(2):
        world.detector.note_heard()
        world.detector.note_save_failed(world.attempt)
        world.detector.note_save_failed(world.attempt)
        assert len(world.declared) == again + 1
        assert len(world.unknown) == again + 1
        world.store(3)  # a save succeeds


def test_of_an_attempt_that_has_a_fault_already_nothing_is_decided() -> None:
    world = World()
    world.detector.note_heard()
    world.attempt.faulty = True
    world.detector.note_save_failed(world.attempt)
    assert world.declared == []


def test_where_the_sdk_cannot_be_listened_to_it_is_said_once_for_each_series(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sdk_requests, "is_possible", lambda: False)
    world = World()
    for _ in range(3):
        world.detector.note_save_failed(world.attempt)
    assert (world.declared, len(world.unknown)) == ([], 1)
    world.store(3)
    world.detector.note_save_failed(world.attempt)
    assert len(world.unknown) == 2
