from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import stored

from tinker_recovery import InvalidMetadata, UsageError
from tinker_recovery.checkpoints import CheckpointRecord, Listed, checkpoint_metadata
from tinker_recovery.checkpoints.metadata import JSON_LIMIT, decode_metrics, encode_metrics

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def _metadata(**fields: Any) -> dict[str, str]:
    given = {"step": 7, "lineage": "l", "attempt": "a", "parent": None, "saved_by": "schedule"}
    return checkpoint_metadata(**{**given, **fields})


def _read(metadata: dict[str, str]) -> CheckpointRecord:
    record = CheckpointRecord.from_listing(stored(metadata))
    assert record is not None
    return record


@given(
    metrics=st.dictionaries(st.text(max_size=9), st.floats(), max_size=5),
    loop_state=JSON,
    epoch=st.none() | st.integers(0, 10**6),
    previous_save_s=st.none() | st.floats(0, 1e6),
    sound_step=st.none() | st.integers(0, 10**6),
)
def test_everything_a_resume_needs_comes_back_from_a_listing_alone(
    metrics: dict[str, float],
    loop_state: Any,
    epoch: int | None,
    previous_save_s: float | None,
    sound_step: int | None,
) -> None:
    said = _metadata(
        metrics=metrics,
        loop_state=loop_state,
        epoch=epoch,
        previous_save_s=previous_save_s,
        sound_step=sound_step,
        previous_canary=(3, "1:ab:AA=="),
    )
    assert all(isinstance(value, str) for value in said.values())
    record = _read(json.loads(json.dumps(said)))
    assert set(record.metrics) == set(metrics)
    for name, value in metrics.items():
        read = record.metrics[name]
        assert read == value or (math.isnan(read) and math.isnan(value))
    assert record.loop_state == loop_state
    assert (record.epoch, record.previous_save_s) == (epoch, previous_save_s)
    assert record.sound_step == sound_step
    assert record.previous_canary == (3, "1:ab:AA==")
    assert record.canary is None, "its own canary is stored with a later checkpoint"


def test_a_metric_that_is_not_finite_is_spelled_out_and_survives() -> None:
    said = _metadata(metrics={"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1})
    stored = json.loads(said["tinker_recovery.metrics"], parse_constant=pytest.fail)
    assert stored == {"a": "nan", "b": "inf", "c": "-inf", "d": 0.1}
    metrics = _read(said).metrics
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"], metrics["d"]) == (math.inf, -math.inf, 0.1)


def test_metadata_of_the_first_release_is_still_read() -> None:
    first = {
        f"tinker_recovery.{key}": value
        for key, value in {
            "format": "1",
            "lineage": "l",
            "attempt": "a",
            "step": "7",
            "saved_by": "schedule",
        }.items()
    }
    record = _read(first)
    assert (record.step, record.epoch, record.loop_state, dict(record.metrics)) == (
        7,
        None,
        None,
        {},
    )
    assert _metadata() == first


def test_a_newer_format_says_that_an_update_is_needed() -> None:
    said = {**_metadata(), "tinker_recovery.format": "2"}
    with pytest.raises(InvalidMetadata, match=r"newer than '1'.*update tinker_recovery"):
        CheckpointRecord.from_listing(stored(said))
    with pytest.raises(InvalidMetadata, match="'one' is not '1'"):
        CheckpointRecord.from_listing(stored({**said, "tinker_recovery.format": "one"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", "-3"),
        ("epoch", "soon"),
        ("metrics", "[1]"),
        ("metrics", '{"loss":"low"}'),
        ("metrics", '{"loss":null}'),
        ("metrics", '{"loss"'),
        ("loop_state", "{"),
        ("loop_state", "[" * 100_000),
        ("previous_save_s", "long"),
    ],
)
def test_a_broken_optional_fact_is_refused_too(key: str, value: str) -> None:
    said = {**_metadata(), f"tinker_recovery.{key}": value}
    with pytest.raises(InvalidMetadata, match="tinker://run/weights/c"):
        CheckpointRecord.from_listing(stored(said))


def test_a_loop_state_above_the_limit_is_refused_with_its_size_and_the_limit() -> None:
    fits = "x" * (JSON_LIMIT - 2)
    assert _read(_metadata(loop_state=fits)).loop_state == fits
    with pytest.raises(UsageError, match=rf"loop_state takes {JSON_LIMIT + 1} bytes.*{JSON_LIMIT}"):
        _metadata(loop_state=fits + "x")


def test_a_loop_state_of_all_that_json_has_is_read_back() -> None:
    state = {"seed": 3, "rate": 0.5, "seen": [True, "a", None, []], "last": None, "more": {}}
    assert _read(_metadata(loop_state=state)).loop_state == state


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"seen": {1, 2}}, r"loop_state\['seen'\] is a set"),
        ({"batches": {3: "x"}}, r"loop_state\['batches'\] has the key 3, a int"),
        ([b"raw"], r"loop_state\[0\] is a bytes"),
    ],
)
def test_a_loop_state_json_would_change_is_refused_with_the_place(state: Any, where: str) -> None:
    with pytest.raises(UsageError, match=where):
        _metadata(loop_state=state)


def test_a_metric_that_is_no_number_is_refused_with_its_name() -> None:
    with pytest.raises(UsageError, match="metric 'loss' is 'low'"):
        _metadata(metrics={"loss": "low"})


def test_a_listing_is_read_without_raising_and_says_why_there_is_no_record() -> None:
    assert Listed.read(stored(_metadata())).record == _read(_metadata())
    nothing = Listed.read(stored(None))
    assert (nothing.record, nothing.size_bytes) == (None, 10)
    assert nothing.problem == "it has no tinker_recovery metadata"
    broken = Listed.read(stored({**_metadata(), "tinker_recovery.step": "x"}))
    assert broken.record is None
    assert "cannot be read" in (broken.problem or "")
    assert "sampler" in (Listed.read(stored(_metadata(), kind="sampler")).problem or "")


def test_the_same_metrics_are_stored_as_the_same_text_in_whatever_order_they_came() -> None:
    assert encode_metrics({"b": 1.5, "a": 2.0}) == encode_metrics({"a": 2.0, "b": 1.5})


def test_up_to_16_kib_of_metrics_are_stored_and_no_more() -> None:
    assert JSON_LIMIT == 16 * 1024
    name = "x" * (JSON_LIMIT - len('{"":1.0}'))
    assert list(decode_metrics(encode_metrics({name: 1.0}))) == [name]
    with pytest.raises(UsageError, match=rf"metrics takes {JSON_LIMIT + 1} bytes"):
        encode_metrics({name + "x": 1.0})


def test_a_loop_state_in_any_script_is_stored_as_it_is() -> None:
    fits = "ж" * (JSON_LIMIT // 2 - 1)
    assert _read(_metadata(loop_state=fits)).loop_state == fits
    with pytest.raises(UsageError, match=rf"loop_state takes {JSON_LIMIT + 2} bytes"):
        _metadata(loop_state=fits + "ж")


def test_of_metrics_that_cannot_be_read_only_the_beginning_is_repeated() -> None:
    with pytest.raises(ValueError, match="not a JSON object") as caught:
        decode_metrics(json.dumps(["a" * 999]))
    assert "a" * 78 in str(caught.value)
    assert "a" * 79 not in str(caught.value)
