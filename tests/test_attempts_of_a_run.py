"""What the attempts of a run know of each other and hand on: with attempts made up here."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from made import LINEAGE, path, segment

from tinker_recovery import RecoveryPolicy
from tinker_recovery.checkpoints import metadata
from tinker_recovery.journal.recalled import Kept
from tinker_recovery.run.attempts import Attempts
from tinker_recovery.run.history import OFF_AFTER, RunHistory


class Attempt:
    """One as far as the others look at it."""

    def __init__(self, name: str, *, over: bool = True, faulty: bool = False) -> None:
        self.id = name
        self.faulty = faulty
        self.gone, self.left = anyio.Event(), anyio.Event()
        if over:
            self.gone.set()
            self.left.set()
        self.client = SimpleNamespace(first_doubtful_step=7, unsettled_saves=(f"{name}1", "of all"))
        self.forgotten = 0

    def forget_frames(self) -> None:
        self.forgotten += 1


def attempts_of(*each: Attempt) -> Any:
    attempts: Any = Attempts()
    for one in each:
        attempts.add(one)
    return attempts


# -- the attempts of this process ----------------------------------------------------------------


def test_an_attempt_is_known_by_its_id_and_its_place() -> None:
    first, second = Attempt("a"), Attempt("b")
    attempts = attempts_of(first, second)
    assert (*attempts,) == (first, second)
    assert (attempts.find("a"), attempts.find("b"), attempts.find("c")) == (first, second, None)
    assert not attempts.begun.is_set()


def test_of_all_but_the_newest_two_the_frames_of_errors_are_dropped_once() -> None:
    """They hold the loop's data; a traceback of the newest may still be wanted."""
    each = [Attempt(name) for name in "abcd"]
    attempts_of(*each[:2])
    assert [one.forgotten for one in each] == [0, 0, 0, 0]
    attempts_of(*each)
    assert [one.forgotten for one in each] == [1, 1, 0, 0]


@pytest.mark.parametrize("still", ["gone", "left"])
def test_those_of_an_attempt_that_is_still_in_use_are_dropped_later(still: str) -> None:
    first = Attempt("a", over=False)
    (first.left if still == "gone" else first.gone).set()
    attempts = attempts_of(first, Attempt("b"), Attempt("c"))
    assert first.forgotten == 0
    getattr(first, still).set()
    attempts.add(Attempt("d"))
    assert first.forgotten == 1


def test_a_request_casts_doubt_on_what_a_fault_has_ended_alone() -> None:
    attempts = attempts_of(Attempt("a", faulty=True), Attempt("b"))
    assert attempts.first_doubtful_step("a") == 7
    assert attempts.first_doubtful_step("b") == math.inf
    assert attempts.first_doubtful_step("of another process") == math.inf


def test_a_save_of_an_attempt_that_a_fault_has_ended_may_still_be_written() -> None:
    assert attempts_of(Attempt("a"), Attempt("b")).unsettled_saves() == set()
    attempts = attempts_of(Attempt("a", faulty=True), Attempt("b"), Attempt("c", faulty=True))
    assert attempts.unsettled_saves() == {"a1", "c1", "of all"}


# -- what they hand on ---------------------------------------------------------------------------


def history(snapshot: object = None, **policy: Any) -> RunHistory:
    record = SimpleNamespace(given_name=None, path=None, lineage=LINEAGE, stored=None)
    opened: Any = SimpleNamespace(
        record=record,
        origin={"seed": 3},
        plan=SimpleNamespace(job="job"),
        snapshot=snapshot,
    )
    return RunHistory.of(opened, RecoveryPolicy(**policy))


def test_a_run_begins_with_what_is_known_of_its_beginning_and_nothing_else() -> None:
    begun = history(recall_bytes=123)
    assert (begun.origin, begun.job, begun.saved) == ({"seed": 3}, "job", {})
    assert begun.recall.values.put("key", Kept("a", 1, 1, "x"))
    assert not begun.recall.values.put("key", Kept("a", 1, 1, "x" * 123)), "as the policy limits it"
    assert (begun.left_out, begun.refused_saves, begun.no_metrics) == (0, 0, set())
    said = begun.drifts, begun.saves_inside, begun.stands_in, begun.metrics_cut
    assert said == (False, False, False, False)


def test_what_earlier_processes_have_saved_is_known_and_theirs_is_left_as_it_was() -> None:
    saved = {("a", 3): {"loss": 0.5}}
    resumed = history(SimpleNamespace(saved=saved))
    assert resumed.saved == saved
    resumed.saved["a", 4] = {}
    assert ("a", 4) not in saved


def test_the_saves_below_a_step_are_those_of_its_branch_in_order_of_their_steps() -> None:
    """Attempt "b" went on from step 3 of "a", which had gone on to step 5 itself."""
    of = history()
    for attempt, step in (("b", 9), ("b", 4), ("a", 5), ("a", 3), ("a", 0), ("other", 2)):
        of.saved[attempt, step] = {"loss": float(step)}
    segments = [segment("a"), segment("b", 3, path("a", 3))]

    def below(step: int) -> list[int]:
        found = of.saved_below(step, segments)
        assert all(metrics == {"loss": float(at)} for at, metrics in found)
        return [at for at, _ in found]

    assert below(9) == [0, 3, 4, 9]
    assert below(8) == [0, 3, 4]
    assert below(2) == [0]
    of.saved["other", 0] = {"loss": 0.0}
    assert below(0) == [0], "what is on no branch of it never counts"


def test_saves_of_the_same_step_are_told_apart_by_no_metric() -> None:
    """Metrics have no order: asked for one, this would end the run."""
    of = history()
    of.saved["b", 3], of.saved["a", 3] = {"loss": 1.0}, {"loss": 2.0}
    segments = [segment("a"), segment("b", 3, path("a", 3))]
    assert of.saved_below(3, segments) == [(3, {"loss": 1.0}), (3, {"loss": 2.0})]


def test_metrics_that_a_checkpoint_cannot_hold_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metadata, "JSON_LIMIT", 20)
    of = history()
    assert of.fitting("r", {"a": 1.0}, "loss") == {"a": 1.0}
    assert (of.metrics_cut, caplog.messages) == (False, [])
    metrics = {"a": 1.0, "b": 2.0, "loss": 3.0}
    for _ in range(2):
        assert of.fitting("r", metrics, "loss") == {"loss": 3.0}
    assert of.metrics_cut
    (said,) = caplog.messages
    assert said == (
        "run r: 3 metrics are too many for a checkpoint, which is stored without the last 2 "
        "(a, ...); the journal has all"
    )


def test_saves_that_each_cost_a_client_are_asked_for_no_more() -> None:
    of = history()
    off = []
    for refused in range(OFF_AFTER + 2):
        of.refused_saves = refused
        off.append(of.saves_off)
    assert off == [False, False, True, True]
