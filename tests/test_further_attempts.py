"""What other processes did of a run since this journal was last written: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.journal import StoredAttempt, StoredRun
from tinker_recovery.recovery.discovery import with_further


def _run(attempts: Sequence[str], *, state: str = "lost") -> StoredRun:
    """A run whose attempts trained ten steps each, the newest with a checkpoint."""
    return StoredRun(
        lineage="abc",
        origin={},
        state=state,
        detail="",
        start_step=0,
        step=10 * len(attempts),
        attempts=tuple(
            StoredAttempt(
                attempt=each,
                run_id=f"{each}:train:0",
                start_step=0,
                parent=None,
                ended=True,
                sound_step=0,
                polled_step=0,
                trusted_to=None,
                faulty=False,
            )
            for each in attempts
        ),
        leftovers=("left:train:0",),
        checkpoints=((f"tinker://{attempts[-1]}:train:0/weights/x", 10),),
    )


def _names(run: StoredRun) -> list[str]:
    return [each.attempt for each in run.attempts]


def test_attempts_that_are_newer_than_all_the_journal_knows_come_behind_them() -> None:
    stored, found = _run(["a", "b"]), _run(["a", "b", "c", "d"])
    whole = with_further(stored, found)
    assert _names(whole) == ["a", "b", "c", "d"]
    assert (whole.step, whole.checkpoints) == (found.step, found.checkpoints)
    assert whole.leftovers == stored.leftovers


def test_an_attempt_between_two_that_the_journal_knows_is_no_part_of_where_the_run_stands() -> None:
    stored = _run(["a", "c"])
    assert with_further(stored, _run(["a", "b", "c"])) is stored
    assert _names(with_further(stored, _run(["a", "b", "c", "d"]))) == ["a", "c", "d"]


def test_what_the_journal_knows_stays_where_the_service_has_nothing_of_it_any_more() -> None:
    assert _names(with_further(_run(["a", "b"]), _run(["c"]))) == ["a", "b", "c"]


@given(st.permutations("abcdef"), st.sets(st.sampled_from("abcdef"), min_size=1), st.data())
def test_nothing_known_is_lost_moved_or_doubled(
    order: list[str], in_journal: set[str], data: st.DataObject
) -> None:
    stored = _run([each for each in order if each in in_journal])
    found = _run(data.draw(st.lists(st.sampled_from(order), min_size=1, unique=True)))
    whole = _names(with_further(stored, found))
    known = _names(stored)
    assert whole[: len(known)] == known
    assert len(set(whole)) == len(whole)
    further = whole[len(known) :]
    assert further == (_names(found)[-len(further) :] if further else [])
