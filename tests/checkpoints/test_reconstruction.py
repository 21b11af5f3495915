"""A lineage made again from nothing but what its checkpoints say."""

from __future__ import annotations

import itertools
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from made import NOW, path, record

from tinker_recovery.checkpoints import CheckpointRecord, Segment, on_branch, segments_of


def _history(shape: list[tuple[int, int]]) -> tuple[list[Segment], list[CheckpointRecord]]:
    """Attempts that each save a few times, and go back to one of the saves of the one before."""
    segments: list[Segment] = []
    records: list[CheckpointRecord] = []
    clock = itertools.count()
    start, parent = 0, None
    for number, (saves, back) in enumerate(shape):
        run = f"r{number}"
        segments.append(Segment(run, run, start, parent))
        own = [
            record(start + 1 + n, run, parent=parent, time=NOW + timedelta(seconds=next(clock)))
            for n in range(saves)
        ]
        records += own
        chosen = own[back % len(own)]
        start, parent = chosen.step, chosen.path
    return segments, records


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_where_every_attempt_has_saved_it_is_the_history_itself(
    shape: list[tuple[int, int]], random: object
) -> None:
    segments, records = _history(shape)
    getattr(random, "shuffle")(records)  # noqa: B009 - hypothesis types it as object
    assert segments_of(records) == segments
    assert on_branch(segments_of(records)) == on_branch(segments)


def test_where_the_parent_is_gone_its_name_says_how_far_it_had_come() -> None:
    gone = "tinker://a/weights/step-00000005-abc"
    (segment,) = segments_of([record(9, "b", parent=gone), record(7, "b", parent=gone)])
    assert (segment.start_step, segment.parent) == (5, gone)


def test_where_nothing_says_where_it_began_it_is_the_first_step_it_saved() -> None:
    (segment,) = segments_of([record(9, "b", parent=path("a", 0) + "x")])
    assert segment.start_step == 9
