from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import path, record, segment

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import (
    AtPath,
    AtStep,
    CheckpointRecord,
    Latest,
    Wanted,
    select,
    wanted,
)
from tinker_recovery.checkpoints.selection import Best, Selection

# a reached 1660; b went on from 1615, and passed 1640 again.
SEGMENTS = [segment("a"), segment("b", 1615, path("a", 1615))]
FOUND = [
    *(
        record(step, metrics={"loss": loss})
        for step, loss in ((1600, 0.5), (1615, math.nan), (1640, 0.1), (1660, 0.2))
    ),
    record(1645, "b", metrics={"loss": 0.5}),
    record(1625, "b"),
]


def _steps(selection: Selection) -> list[int]:
    return [each.step for each in selection.candidates]


@pytest.mark.parametrize(
    ("want", "steps"),
    [
        (Latest(), [1645, 1625, 1615, 1600]),
        # Equal metrics: more steps first. Those without one follow.
        (Best(), [1645, 1600, 1625, 1615]),
        (AtStep(1615), [1615]),
        (AtStep(1640), []),
        (AtPath(path("a", 1600)), [1600]),
        (AtPath(path("a", 1640)), [1640]),
        (AtPath(path("z", 1)), []),
    ],
)
def test_candidates_come_in_the_order_that_was_asked_for(want: Wanted, steps: list[int]) -> None:
    assert _steps(select(want, FOUND, SEGMENTS)) == steps


def test_what_was_rolled_back_is_never_the_latest_and_the_reason_is_given() -> None:
    found = select(Latest(), FOUND, SEGMENTS)
    assert found.passed_over == {
        path("a", 1640): "the run went back to step 1615",
        path("a", 1660): "the run went back to step 1615",
    }


def test_bad_ones_are_skipped_with_the_reason_they_were_marked_for() -> None:
    found = select(Latest(), FOUND, SEGMENTS, bad={path("b", 1645): "NaN in lora_A"})
    assert _steps(found)[0] == 1625
    assert found.passed_over[path("b", 1645)] == "marked as bad: NaN in lora_A"
    asked = AtPath(path("b", 1645))
    assert _steps(select(asked, FOUND, SEGMENTS, bad={asked.path: "NaN"})) == []


def test_the_checkpoint_the_run_was_started_from_is_the_last_resort() -> None:
    root = record(9000, "z", lineage="theirs")
    assert _steps(select(Latest(), FOUND, SEGMENTS, root=root))[-1] == 9000
    assert _steps(select(Latest(), [*FOUND, root], SEGMENTS, root=root))[-1] == 9000
    alone = select(Latest(), [], SEGMENTS, root=root, bad={root.path: "gone"})
    assert (alone.candidates, list(alone.passed_over)) == ((), [root.path])


def test_a_stranger_in_the_listing_is_passed_over() -> None:
    found = select(Latest(), [record(5, "x"), record(3, "b")], SEGMENTS)
    assert "is not part of the run's known history" in found.passed_over[path("x", 5)]
    assert "its attempt began at 1615" in found.passed_over[path("b", 3)]


@pytest.mark.parametrize(
    ("strategy", "want"),
    [
        ("latest", Latest()),
        ("best", Best("acc", "max")),
        ("step:120", AtStep(120)),
        ("tinker://r/weights/n", AtPath("tinker://r/weights/n")),
    ],
)
def test_a_strategy_is_read_from_its_name(strategy: str, want: Wanted) -> None:
    assert wanted(strategy, metric="acc", mode="max") == want


@pytest.mark.parametrize("strategy", ["newest", "step:", "step:-1", "tinker://r/sampler_weights/n"])
def test_an_unknown_strategy_is_refused_with_its_name(strategy: str) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(strategy)
    assert repr(strategy) in str(caught.value)


@given(
    steps=st.lists(st.tuples(st.sampled_from("abx"), st.integers(0, 9)), unique=True),
    want=st.sampled_from([Latest(), Best(), AtStep(4), AtPath(path("a", 4))]),
    data=st.data(),
)
def test_every_checkpoint_is_a_candidate_or_has_a_reason_and_input_order_does_not_matter(
    steps: list[tuple[str, int]], want: Wanted, data: st.DataObject
) -> None:
    segments = [segment("a"), segment("b", 5, path("a", 5))]
    losses = st.sampled_from([{}, {"loss": 1.0}, {"loss": math.nan}, {"loss": 2.0}])
    found: list[CheckpointRecord] = [
        record(step, run, metrics=data.draw(losses)) for run, step in steps
    ]
    bad = {each.path: "bad" for each in found if data.draw(st.booleans())}
    result = select(want, found, segments, bad=bad)
    taken = {each.path for each in result.candidates}
    assert taken.isdisjoint(result.passed_over)
    assert taken | set(result.passed_over) == {each.path for each in found}
    assert taken.isdisjoint(bad)
    assert select(want, data.draw(st.permutations(found)), segments, bad=bad) == result


def test_a_run_started_from_a_checkpoint_tries_it_last_and_nothing_that_is_not_on_its_branch() -> (
    None
):
    root = record(5000, "z", lineage="theirs")
    found = select(Latest(), [*FOUND, record(3, "x")], SEGMENTS, root=root)
    assert _steps(found) == [1645, 1625, 1615, 1600, 5000]
    assert set(found.passed_over) == {path("a", 1640), path("a", 1660), path("x", 3)}
