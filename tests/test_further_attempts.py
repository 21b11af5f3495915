"""What other processes did of a run since this journal was last written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from made import NOW
from tinker import types

from tinker_recovery.checkpoints.naming import SaveName, mark_of
from tinker_recovery.journal import StoredAttempt, StoredRun
from tinker_recovery.recovery.discovery import find_further, with_further
from tinker_recovery.service.metadata import ServiceMetadata


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


def test_what_the_run_began_with_is_by_the_journal_and_how_far_it_is_by_the_service() -> None:
    stored = replace(_run(["a"]), origin={"seed": 3}, start_step=7)
    found = _run(["a", "b"], state="finished")
    found = replace(found, origin={"seed": 4}, start_step=1, leftovers=())
    whole = with_further(stored, found)
    assert (whole.origin, whole.start_step) == ({"seed": 3}, 7)
    assert (whole.leftovers, whole.attempts[0]) == (stored.leftovers, stored.attempts[0])
    assert (whole.state, whole.step, whole.checkpoints) == ("finished", 20, found.checkpoints)


class Forgetful:
    """A service that has forgotten the metadata of these saves: lists them by their names alone."""

    def __init__(self, *saves: tuple[str, SaveName]) -> None:
        self.metadata = ServiceMetadata()
        self.metadata.keeps = "forgotten"
        self._saves = saves

    def listed(self) -> list[types.Checkpoint]:
        entries = [
            types.Checkpoint(
                checkpoint_id=f"weights/{name}",
                checkpoint_type="training",
                time=NOW,
                tinker_path=f"tinker://{run}/weights/{name}",
                size_bytes=10,
            )
            for run, name in self._saves
        ]
        return self.metadata.filled(entries)

    async def every_checkpoint(self) -> AsyncIterator[types.Checkpoint]:
        for each in self.listed():
            yield each

    async def run_finished(self, run_id: str) -> None:
        assert run_id


async def test_where_metadata_is_forgotten_the_saves_of_a_known_run_are_known_by_their_names() -> (
    None
):
    first, second = "0" * 8, "1" * 8
    stored = _run([first])
    root = "tinker://before:train:0/weights/x"
    stored = replace(stored, attempts=(replace(stored.attempts[0], parent=root),))
    marks = mark_of("r"), mark_of(stored.lineage)
    service: Any = Forgetful(
        (f"{first}:train:0", SaveName(10, first, *marks)),
        (f"{second}:train:0", SaveName(12, second, *marks)),
        ("other:train:0", SaveName(99, "2" * 8, mark_of("r"), mark_of("another lineage"))),
    )
    whole = await find_further(cast("Any", service), stored, "r")
    assert (_names(whole), whole.step) == ([first, second], 12)
    known = [entry.user_metadata or {} for entry in service.listed()]
    assert [each.get("tinker_recovery.parent") for each in known] == [root, None, None]
    assert [each.get("tinker_recovery.lineage") for each in known[:2]] == [stored.lineage] * 2
