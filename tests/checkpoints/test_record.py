from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import NOW, record, stored

from tinker_recovery import InvalidMetadata, UsageError
from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Listed,
    check_listing,
    checkpoint_metadata,
    run_id_of,
    run_id_unchecked,
)
from tinker_recovery.checkpoints.schedule import EverySteps, Moment


def _metadata() -> dict[str, str]:
    return checkpoint_metadata(
        step=7, lineage="l", attempt="a", parent="tinker://p/weights/q", saved_by="schedule"
    )


def _record(**fields: object) -> CheckpointRecord:
    record = CheckpointRecord.from_listing(stored(_metadata()))
    assert record is not None
    return record.model_copy(update=fields)


@given(
    step=st.integers(0, 10**9),
    lineage=st.text(min_size=1),
    attempt=st.text(min_size=1),
    parent=st.none() | st.just("tinker://p/weights/q"),
)
def test_what_is_saved_with_a_checkpoint_is_read_back(
    step: int, lineage: str, attempt: str, parent: str | None
) -> None:
    metadata = checkpoint_metadata(
        step=step, lineage=lineage, attempt=attempt, parent=parent, saved_by="user"
    )
    assert all(isinstance(value, str) for value in metadata.values())
    record = CheckpointRecord.from_listing(stored({**metadata, "theirs": "kept"}))
    assert record is not None
    assert (record.step, record.lineage, record.attempt, record.parent, record.saved_by) == (
        step,
        lineage,
        attempt,
        parent,
        "user",
    )
    assert record.run_id == "run"


def test_a_checkpoint_of_someone_else_is_not_ours() -> None:
    assert CheckpointRecord.from_listing(stored(None)) is None
    assert CheckpointRecord.from_listing(stored({"step": "3"})) is None
    assert CheckpointRecord.from_listing(stored(_metadata(), kind="sampler")) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "-1"),
        ("step", "many"),
        ("step", None),
        ("format", "99"),
        ("attempt", None),
        ("saved_by", "nobody"),
    ],
)
def test_broken_metadata_is_refused_with_the_path_and_the_reason(
    key: str, value: str | None
) -> None:
    metadata = _metadata()
    if value is None:
        del metadata[f"tinker_recovery.{key}"]
    else:
        metadata[f"tinker_recovery.{key}"] = value
    with pytest.raises(InvalidMetadata, match="tinker://run/weights/c") as caught:
        CheckpointRecord.from_listing(stored(metadata))
    assert (value or key) in str(caught.value)


@pytest.mark.parametrize(
    "path", ["run/weights/c", "tinker://run/sampler_weights/c", "tinker://run/weights/", ""]
)
def test_a_path_of_another_form_is_refused_with_the_form_it_should_have(path: str) -> None:
    with pytest.raises(UsageError, match="tinker://RUN/weights/NAME") as caught:
        run_id_of(path)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "run_id"),
    [
        ("tinker://run/weights/c", "run"),
        ("tinker://run/sampler_weights/c", "run"),
        ("run/weights/c", "run"),
        ("", ""),
    ],
)
def test_the_run_id_of_a_path_of_any_kind_is_read_unchecked(path: str, run_id: str) -> None:
    assert run_id_unchecked(path) == run_id


def _objection(listed: Listed) -> str | None:
    finding = check_listing(listed.path, {listed.path: listed}, now=NOW)
    return None if finding.ok else finding.reason


def test_a_checkpoint_about_to_expire_is_not_trusted() -> None:
    soon = _record(expires_at=NOW + timedelta(minutes=1))
    assert "expires" in (_objection(Listed.of(soon)) or "")
    assert _objection(Listed.of(_record(expires_at=NOW + timedelta(hours=1)))) is None
    assert _objection(Listed.of(_record(expires_at=None))) is None


def test_one_without_metadata_of_ours_expires_like_any_other() -> None:
    soon = Listed.read(stored(None, expires_at=NOW + timedelta(minutes=1)))
    assert soon.record is None
    assert "expires" in (_objection(soon) or "")
    assert _objection(Listed.read(stored(None))) is None
    assert soon == Listed(soon.path, None, soon.problem, soon.size_bytes)


def test_an_empty_checkpoint_is_not_trusted_and_an_unknown_size_says_nothing() -> None:
    assert "0 bytes" in (_objection(Listed.of(_record(size_bytes=0))) or "")
    assert _objection(Listed.of(_record(size_bytes=None))) is None


def test_saves_are_due_every_n_steps_counted_from_the_runs_beginning() -> None:
    moments = [Moment(step, 0, last_step=step - 1) for step in range(1, 13)]
    assert [each.step for each in moments if EverySteps(4).decide(each).due] == [4, 8, 12]


def test_an_entry_is_of_the_same_save_until_another_has_taken_its_place() -> None:
    before = Listed.of(record(3, saved_by="user", metrics={"loss": float("nan")}))
    again = Listed.of(record(3, saved_by="user", metrics={"loss": float("nan")}, public=True))
    assert before.rewritable
    assert not Listed.of(record(3)).rewritable
    assert again.has_content_of(before)
    for changed in (
        record(3, saved_by="user", metrics={"loss": 1.0}),
        record(3, saved_by="user", metrics={"loss": float("nan")}, time=NOW),
        record(3, saved_by="user", metrics={"loss": float("nan")}, size_bytes=11),
    ):
        assert not Listed.of(changed).has_content_of(before)


def test_entries_that_are_not_ours_are_of_the_same_save_if_all_but_their_lifetime_is_the_same() -> (
    None
):
    theirs = Listed.read(stored({"note": "x"}))
    assert theirs.rewritable, "nothing says that its name is used once"
    assert Listed.read(stored({"note": "x"}, expires_at=NOW)).has_content_of(theirs)
    assert not Listed.read(stored({"note": "y"})).has_content_of(theirs)
    assert not Listed.read(stored(None)).has_content_of(theirs)


def test_a_date_without_a_time_zone_is_of_utc() -> None:
    plain = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as a service may say it
    utc = plain.replace(tzinfo=UTC)
    ours = CheckpointRecord.from_listing(stored(_metadata(), expires_at=plain))
    assert ours is not None
    assert ours.expires_at == utc
    assert Listed.read(stored({}, expires_at=plain)).expires_at == utc


def test_the_fingerprint_of_an_earlier_save_is_stored_as_a_text_and_read_back() -> None:
    metadata = checkpoint_metadata(
        step=7,
        lineage="l",
        attempt="a",
        parent=None,
        saved_by="schedule",
        previous_canary=(4, "said:it"),
    )
    assert metadata["tinker_recovery.previous_canary"] == "4:said:it"
    read = CheckpointRecord.from_listing(stored(metadata))
    assert read is not None
    assert read.previous_canary == (4, "said:it")


def test_a_loop_state_that_the_service_has_lost_is_not_taken_for_none() -> None:
    lost = {**_metadata(), "tinker_recovery.state_missing": "yes"}
    with pytest.raises(InvalidMetadata, match="which the service did not keep"):
        CheckpointRecord.from_listing(stored(lost))
