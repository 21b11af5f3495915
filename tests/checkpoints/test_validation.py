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
    compare,
    first_objection,
)

P = path("a", 7)


def _with(**fields: Any) -> Listed:
    return Listed.of(record(7).model_copy(update=fields))


@pytest.mark.parametrize(
    ("found", "against"),
    [
        (_with(), None),
        (_with(parent=path("z", 5)), None),
        (Listed(P, None, "it carries no metadata of ours"), "no metadata of ours"),
        (_with(attempt=""), "its attempt is empty"),
        (_with(lineage="theirs"), "lineage theirs, and the run is mine"),
        (_with(parent=P), "names itself"),
        (_with(parent=path("a", 9)), "says step 7, and descends from step 9"),
    ],
)
def test_metadata_that_is_missing_or_contradicts_itself_is_an_objection(
    found: Listed, against: str | None
) -> None:
    verdict = check_metadata(found, lineage=LINEAGE, parent=record(9))
    assert (verdict.level, verdict.ok) == ("metadata", against is None)
    assert (against or "complete") in verdict.reason


def test_a_checkpoint_may_descend_from_another_runs_later_step() -> None:
    root = record(900, "z", lineage="theirs")
    assert check_metadata(_with(parent=root.path), parent=root).ok


@pytest.mark.parametrize(
    ("found", "recorded", "against"),
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
def test_the_listing_tells_what_is_gone_or_going_or_of_another_size(
    found: Listed, recorded: int | None, against: str | None
) -> None:
    verdict = check_listing(P, {found.path: found}, now=NOW, recorded_size=recorded)
    assert (verdict.level, verdict.ok) == ("listing", against is None)
    assert (against or "listed") in verdict.reason


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
    said = {
        "base_model": "Qwen/Qwen3-8B",
        "is_lora": True,
        "lora_rank": 32,
        "train_unembed": True,
        "train_mlp": True,
        "train_attn": True,
    }
    expected = WeightsFacts.of(types.WeightsInfoResponse.model_validate(said))
    facts = WeightsFacts.of(types.WeightsInfoResponse.model_validate(said))
    facts = WeightsFacts(**{**{n: getattr(facts, n) for n in WeightsFacts.__slots__}, **differs})
    verdict = check_weights(facts, expected)
    assert verdict.ok is ok
    assert all(ok or f"{name} is {value!r}" in verdict.reason for name, value in differs.items())


# -- canary --------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=100)


@given(numbers=NUMBERS)
def test_a_canary_survives_as_a_string_and_equals_itself(numbers: list[float]) -> None:
    canary = Canary.of(numbers)
    assert Canary.parse(str(canary)) == canary
    assert len(str(canary)) < 256
    assert compare(canary, Canary.of(numbers), tolerance=0.0).result == "exact"


@given(numbers=NUMBERS, data=st.data())
def test_one_number_off_by_a_bit_is_not_exact(numbers: list[float], data: st.DataObject) -> None:
    changed = list(numbers)
    place = data.draw(st.integers(0, len(numbers) - 1))
    changed[place] = changed[place] * 2 + 1
    if changed[place] != numbers[place]:
        found = compare(Canary.of(numbers), Canary.of(changed), tolerance=0.0)
        assert found.result != "exact"


@pytest.mark.parametrize(
    ("seen", "tolerance", "ok", "said"),
    [
        ([1.0, 2.0], 0.0, True, "exact"),
        ([1.0, 2.5], 0.0, False, "different: off by up to 0.5"),
        ([1.0, 2.5], 0.5, True, "close"),
        ([1.0, 2.75], 0.5, False, "different: off by up to 0.75"),
        ([1.0], 9.0, False, "different"),
    ],
)
def test_a_restored_model_that_answers_otherwise_is_refused(
    seen: list[float], tolerance: float, *, ok: bool, said: str
) -> None:
    stored = record(7).model_copy(update={"canary": str(Canary.of([1.0, 2.0]))})
    verdict = check_canary(stored, Canary.of(seen), tolerance=tolerance)
    assert (verdict.level, verdict.ok) == ("canary", ok)
    assert said in verdict.reason


def test_numbers_beyond_the_sample_are_compared_to_the_bit_only() -> None:
    many = [float(n) for n in range(1000)]
    other = [*many[:1], many[1] + 0.5, *many[2:]]
    verdict = check_canary(
        record(7).model_copy(update={"canary": str(Canary.of(many))}), Canary.of(other)
    )
    assert not verdict.ok
    assert compare(Canary.of(many), Canary.of(other), tolerance=0.1).result == "close"


def test_a_checkpoint_without_a_canary_passes_and_one_with_a_broken_one_does_not() -> None:
    seen = Canary.of([1.0])
    assert check_canary(record(7), seen).ok
    broken: CheckpointRecord = record(7).model_copy(update={"canary": "chirp"})
    assert "'chirp'" in check_canary(broken, seen).reason
    assert not check_canary(broken, seen).ok


@pytest.mark.parametrize("numbers", [[], [math.nan], [math.inf], [1e300]])
def test_a_canary_of_nothing_comparable_is_refused(numbers: list[float]) -> None:
    with pytest.raises(UsageError, match="canary"):
        Canary.of(numbers)


def test_checks_stop_at_the_first_objection_so_the_dear_ones_are_spared() -> None:
    run: list[str] = []

    def check(name: str, *, ok: bool) -> Any:
        def look() -> Finding:
            run.append(name)
            return Finding("metadata", ok, name)

        return look

    checks = [check("cheap", ok=True), check("dear", ok=False), check("dearest", ok=True)]
    found = first_objection(checks)
    assert found is not None
    assert found.reason == "dear"
    assert run == ["cheap", "dear"]
    assert first_objection([check("cheap", ok=True)]) is None
