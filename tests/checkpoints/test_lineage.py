"""Which segments a run has, and which checkpoints are on its branch: at their edges."""

from __future__ import annotations

from datetime import timedelta

import pytest
from made import NOW, listed, path, record, segment

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import (
    AtStep,
    Latest,
    Listed,
    check_listing,
    check_metadata,
    eligible,
    segments_of,
    select,
    wanted,
)
from tinker_recovery.checkpoints.lineage import Branch, on_branch


def test_parents_that_lead_back_to_where_they_began_end_the_branch() -> None:
    itself = segment("a", 1, path("a", 1))
    assert [each.run_id for each, _ in on_branch([itself])] == ["a"]
    circle = [segment("a", 3, path("b", 3)), segment("b", 2, path("a", 2))]
    assert [(each.run_id, limit) for each, limit in on_branch(circle)[1:]] == [("a", 2)]


def test_of_one_step_the_newest_comes_first_and_of_one_time_the_last_by_path() -> None:
    def saved(step: int, name: str, hours: int) -> object:
        at = NOW + timedelta(hours=hours)
        return record(step, time=at).model_copy(update={"path": f"tinker://a/weights/{name}"})

    found = [saved(5, "m", 0), saved(5, "a", 9), saved(5, "z", 0), saved(6, "b", -9)]
    for order in (found, found[::-1]):
        names = [each.path[-1] for each in eligible(segment("a"), 9, order)]  # type: ignore[arg-type]  # records
        assert names == ["b", "a", "z", "m"]


def test_a_checkpoint_at_the_very_step_of_a_segments_beginning_and_end_is_on_the_branch() -> None:
    branch = Branch([segment("a"), segment("b", 5, path("a", 5))])
    wheres = {
        (run, step): branch.position(record(step, run)).where
        for run, step in (("a", 0), ("a", 5), ("a", 6), ("b", 4), ("b", 5), ("b", 6))
    }
    assert wheres == {
        ("a", 0): "branch",
        ("a", 5): "branch",
        ("a", 6): "abandoned",
        ("b", 4): "unknown",
        ("b", 5): "branch",
        ("b", 6): "branch",
    }
    assert branch.position(record(5, "b")).order > branch.position(record(5, "a")).order


def test_an_attempt_began_where_its_first_save_says() -> None:
    early, late = NOW + timedelta(hours=1), NOW + timedelta(hours=2)
    root = [record(2, "r"), record(4, "r")]
    first = record(9, "b", time=early, parent=path("r", 2))
    second = record(5, "b", time=late, parent=path("r", 4))
    for found in ([first, second], [second, first]):
        newest = segments_of([*root, *found])[-1]
        assert (newest.start_step, newest.parent) == (2, path("r", 2))
    same = record(5, "b", time=early, parent=path("r", 4))
    for found in ([first, same], [same, first]):
        assert segments_of([*root, *found])[-1].parent == path("r", 4), (
            "by path, whatever the order"
        )


def test_where_its_beginning_is_gone_an_attempt_began_at_its_lowest_step() -> None:
    found = [record(step, "b", parent="tinker://z/weights/mine") for step in (9, 7, 8)]
    (only,) = segments_of(found)
    assert only.start_step == 7


def test_segments_are_in_the_order_of_their_first_saves_and_of_their_attempts() -> None:
    def at(hours: int, run: str) -> object:
        return record(1, run, time=NOW + timedelta(hours=hours))

    found = [at(1, "a"), at(0, "c"), at(0, "b")]
    for order in (found, found[::-1]):
        assert [each.run_id for each in segments_of(order)] == ["b", "c", "a"]  # type: ignore[arg-type]  # records


@pytest.mark.parametrize("strategy", ["best:5", ":5", "step:", "step:-1", "step:1.5", "newest"])
def test_a_strategy_that_is_none_is_refused(strategy: str) -> None:
    with pytest.raises(UsageError, match="is not known: use 'latest', 'best', 'step:N'"):
        wanted(strategy)


def test_what_was_not_asked_for_is_passed_over_with_that_reason() -> None:
    found = select(AtStep(2), [record(1), record(2)], [segment("a")])
    assert [each.step for each in found.candidates] == [2]
    assert found.passed_over == {path("a", 1): f"not asked for: {AtStep(2)}"}


@pytest.mark.parametrize("root_step", [1, 9])
def test_what_the_user_started_from_is_tried_last_whatever_its_step(root_step: int) -> None:
    root = record(root_step, "theirs", lineage="theirs")
    found = select(Latest(), [record(3), record(4)], [segment("a")], root=root)
    assert [each.path for each in found.candidates] == [path("a", 4), path("a", 3), root.path]


def test_of_one_step_the_one_of_the_newer_segment_is_chosen_and_then_the_newer_one() -> None:
    segments = [segment("z"), segment("a", 5, path("z", 5))]
    late = record(5, "z", time=NOW + timedelta(hours=9))
    found = select(Latest(), [late, record(5, "a")], segments)
    assert [each.run_id for each in found.candidates] == ["a", "z"]
    own = [
        record(5, time=NOW + timedelta(hours=hours)).model_copy(
            update={"path": f"tinker://a/weights/{name}"}
        )
        for name, hours in (("m", 0), ("b", 9), ("z", 0))
    ]
    for order in (own, own[::-1]):
        chosen = select(Latest(), order, [segment("a")]).candidates
        assert [each.path[-1] for each in chosen] == ["b", "z", "m"]


def test_metadata_that_cannot_be_read_is_an_objection_with_its_own_words_if_it_has_any() -> None:
    at = path("a", 1)
    assert check_metadata(Listed(at, None, "its step is odd")).reason == "its step is odd"
    without = check_metadata(Listed(at, None, None))
    assert (without.ok, without.reason) == (False, "it has no tinker_recovery metadata")


def test_a_listing_says_what_was_found_of_it() -> None:
    found = listed(1)
    sound = check_listing(found.path, {found.path: found}, now=NOW)
    assert (sound.ok, sound.reason) == (True, "listed, not expiring, of the same size")
    missing = check_listing(found.path, {}, now=NOW)
    assert (missing.ok, missing.reason) == (False, "the service does not list it")
