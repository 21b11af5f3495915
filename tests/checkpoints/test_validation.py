from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import LINEAGE, NOW, listed, path, record
from tinker import types

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import (
    Canary,
    CheckpointRecord,
    Finding,
    Listed,
    WeightsFacts,
    check_canary,
    check_listing,
    check_metadata,
    check_weights,
    first_objection,
)
from tinker_recovery.checkpoints.canary import Answer, distance

P = path("a", 7)


def _with(**fields: Any) -> Listed:
    return Listed.of(record(7).model_copy(update=fields))


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (_with(), None),
        (_with(parent=path("z", 5)), None),
        (
            Listed(P, None, "it has no tinker_recovery metadata"),
            "it has no tinker_recovery metadata",
        ),
        (_with(attempt=""), "its attempt is empty"),
        (_with(lineage="theirs"), "lineage theirs, and the run is mine"),
        (_with(parent=P), "it names itself as its parent"),
        (_with(parent=path("a", 9)), "its step is 7, below step 9 of its parent"),
    ],
)
def test_metadata_that_is_missing_or_contradicts_itself_is_an_objection(
    found: Listed, problem: str | None
) -> None:
    finding = check_metadata(found, lineage=LINEAGE, parent=record(9))
    assert (finding.level, finding.ok) == ("metadata", problem is None)
    assert (problem or "complete") in finding.reason


def test_a_checkpoint_may_descend_from_another_runs_later_step() -> None:
    root = record(900, "z", lineage="theirs")
    assert check_metadata(_with(parent=root.path), parent=root).ok


@pytest.mark.parametrize(
    ("found", "recorded", "problem"),
    [
        (listed(7), None, None),
        (listed(7), 10, None),
        (listed(7, size_bytes=None), 10, None),
        (listed(8), None, "does not list it"),
        (listed(7), 11, "10 bytes, and 11 are on record"),
        (listed(7, size_bytes=0), None, "0 bytes"),
        (listed(7, expires_in_s=60), None, "expires"),
    ],
)
def test_the_listing_shows_what_is_gone_or_expires_soon_or_has_another_size(
    found: Listed, recorded: int | None, problem: str | None
) -> None:
    finding = check_listing(P, {found.path: found}, now=NOW, recorded_size=recorded)
    assert (finding.level, finding.ok) == ("listing", problem is None)
    assert (problem or "listed") in finding.reason


@pytest.mark.parametrize(
    ("differs", "ok"),
    [
        ({}, True),
        ({"base_model": "Qwen/Qwen3-4B"}, False),
        ({"lora_rank": 8}, False),
        ({"train_unembed": False}, False),
        ({"train_mlp": False}, False),
        ({"train_attn": None}, True),
        ({"lora_rank": None}, True),
    ],
)
def test_weights_of_another_model_rank_or_training_are_refused(
    differs: dict[str, Any], *, ok: bool
) -> None:
    info = {
        "base_model": "Qwen/Qwen3-8B",
        "is_lora": True,
        "lora_rank": 32,
        "train_unembed": True,
        "train_mlp": True,
        "train_attn": True,
    }
    expected = WeightsFacts.of(types.WeightsInfoResponse.model_validate(info))
    facts = WeightsFacts.of(types.WeightsInfoResponse.model_validate(info))
    facts = WeightsFacts(**{**{n: getattr(facts, n) for n in WeightsFacts.__slots__}, **differs})
    finding = check_weights(facts, expected)
    assert finding.ok is ok
    assert all(ok or f"{name} is {value!r}" in finding.reason for name, value in differs.items())


# -- canary --------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=100)


@given(numbers=NUMBERS)
def test_a_canary_survives_as_a_string_and_equals_itself(numbers: list[float]) -> None:
    canary = Canary.of(numbers)
    assert Canary.parse(str(canary)) == canary
    assert len(str(canary)) < 256
    assert canary.distance_to(Canary.of(numbers)) == 0.0


@given(numbers=NUMBERS, data=st.data())
def test_one_number_off_by_a_bit_is_not_exact(numbers: list[float], data: st.DataObject) -> None:
    changed = list(numbers)
    place = data.draw(st.integers(0, len(numbers) - 1))
    changed[place] = changed[place] * 2 + 1
    if changed[place] != numbers[place]:
        assert Canary.of(changed) != Canary.of(numbers)


@pytest.mark.parametrize(
    ("seen", "tolerance", "ok", "reason"),
    [
        ([1.0, 2.0], 0.0, True, "the logprobs are equal to the bit"),
        ([1.0, 2.5], 0.0, False, "the logprobs differ by up to 0.5; 0 is allowed"),
        ([1.0, 2.5], 0.5, True, "the logprobs differ by up to 0.5; 0.5 is allowed"),
        ([1.0, 2.75], 0.5, False, "the logprobs differ by up to 0.75; 0.5 is allowed"),
        ([1.0], 9.0, False, "the logprobs differ by up to inf; 9 is allowed"),
    ],
)
def test_a_restored_model_that_answers_otherwise_is_refused(
    seen: list[float], tolerance: float, *, ok: bool, reason: str
) -> None:
    stored = record(7).model_copy(update={"canary": str(Canary.of([1.0, 2.0]))})
    finding = check_canary(stored, Canary.of(seen), tolerance=tolerance)
    assert (finding.level, finding.ok, finding.reason) == ("canary", ok, reason)


def test_numbers_beyond_the_sample_are_compared_to_the_bit_only() -> None:
    many = [float(n) for n in range(1000)]
    other = [*many[:1], many[1] + 0.5, *many[2:]]
    stored = record(7).model_copy(update={"canary": str(Canary.of(many))})
    assert not check_canary(stored, Canary.of(other)).ok
    assert check_canary(stored, Canary.of(other), tolerance=0.1).ok
    assert Canary.of(many).distance_to(Canary.of(other)) == 0.0


def test_a_checkpoint_without_a_canary_passes_and_one_with_a_broken_one_does_not() -> None:
    seen = Canary.of([1.0])
    assert check_canary(record(7), seen).ok
    broken: CheckpointRecord = record(7).model_copy(update={"canary": "chirp"})
    assert "'chirp'" in check_canary(broken, seen).reason
    assert not check_canary(broken, seen).ok


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ((1.0, 2.0), (1.0, 2.5), 0.5),
        ((1.0,), (1.0, 2.0), math.inf),
        ((-math.inf,), (-math.inf,), 0.0),
        ((-math.inf,), (0.0,), math.inf),
        ((math.nan,), (math.nan,), math.inf),
    ],
)
def test_answers_that_cannot_be_compared_are_infinitely_far_apart(
    one: Answer, other: Answer, apart: float
) -> None:
    assert distance(one, other) == distance(other, one) == apart
    assert Canary.of([1.0]).distance_to(Canary.of([1.0, 2.0])) == math.inf


@pytest.mark.parametrize("numbers", [[], [math.nan], [math.inf], [1e300]])
def test_a_canary_of_nothing_comparable_is_refused(numbers: list[float]) -> None:
    with pytest.raises(UsageError, match="canary"):
        Canary.of(numbers)


def test_checks_stop_at_the_first_objection_so_the_costly_ones_are_not_run() -> None:
    run: list[str] = []

    def check(name: str, *, ok: bool) -> Any:
        def look() -> Finding:
            run.append(name)
            return Finding("metadata", ok, name)

        return look

    checks = [check("cheap", ok=True), check("costly", ok=False), check("costliest", ok=True)]
    found = first_objection(checks)
    assert found is not None
    assert found.reason == "costly"
    assert run == ["cheap", "costly"]
    assert first_objection([check("cheap", ok=True)]) is None


@pytest.mark.parametrize("step", [5, 7])
def test_a_child_at_or_beyond_its_parents_step_is_sound(step: int) -> None:
    child = _with(parent=path("a", step), path=path("b", 7))
    assert check_metadata(child, lineage=LINEAGE, parent=record(step)).ok
