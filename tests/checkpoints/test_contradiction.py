"""Checkpoints that say they are of one run, and cannot all be: a pure decision."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import LINEAGE, NOW

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.checkpoints.contradiction import OUT_OF_ORDER, contradiction
from tinker_recovery.checkpoints.naming import SaveName, lineage_by_mark, mark_of

RUN = "sft-42"
HOUR = timedelta(hours=1)


def _saved(
    step: int,
    attempt: int,
    time: datetime,
    *,
    parent: CheckpointRecord | None = None,
    name: str | None = None,
    lag: int = 0,
    again: int = 0,
) -> CheckpointRecord:
    """A save as the library makes it: by the schedule, or by the user under this name."""
    of, run_id = f"{attempt:08x}", f"session-{attempt}:train:0"
    own = SaveName(step, of, mark_of(RUN), mark_of(LINEAGE), lag, again=again)
    return CheckpointRecord(
        path=f"tinker://{run_id}/weights/{name or own}",
        run_id=run_id,
        step=step,
        lineage=LINEAGE,
        attempt=of,
        parent=None if parent is None else parent.path,
        saved_by="schedule" if name is None else "user",
        time=time,
        size_bytes=10,
        expires_at=None,
        public=False,
        run_name=RUN,
        sound_step=step - lag,
    )


@dataclass
class _Run:
    """A run of the library's own, and what of it the service lists by now."""

    draw: st.DataObject
    clock: datetime = NOW
    listed: dict[str, CheckpointRecord] = field(default_factory=dict)
    attempt: int = 0
    step: int = 0
    parent: CheckpointRecord | None = None
    dates_first: bool = False
    keeps: bool = True

    def save(self, **how: object) -> None:
        lag = self.draw.draw(st.integers(0, min(3, self.step)), label="lag")
        saved = _saved(self.step, self.attempt, self.clock, parent=self.parent, lag=lag, **how)  # type: ignore[arg-type]  # passed through by name
        # Stored a while after it was submitted, and perhaps behind the one after it.
        late = self.draw.draw(st.integers(0, int(OUT_OF_ORDER.total_seconds())), label="late")
        before = self.listed.get(saved.path)
        time = before.time if before and self.dates_first else saved.time + timedelta(seconds=late)
        saved = saved.model_copy(update={"time": time})
        if not self.keeps:
            # What is known by the name alone.
            if saved.saved_by == "user":
                return
            unknown = {"lineage": lineage_by_mark(mark_of(LINEAGE)), "parent": None}
            saved = saved.model_copy(update={**unknown, "run_name": None})
        self.listed[saved.path] = saved

    def move(self) -> None:
        self.clock += timedelta(seconds=self.draw.draw(st.integers(0, 900), label="later"))
        move = self.draw.draw(
            st.sampled_from(
                ["steps", "steps", "save", "save", "again", "mine", "latest", "recover", "restart",
                 "delete", "expire", "forget"]
            )
        )  # fmt: skip
        if move == "steps":
            self.step += self.draw.draw(st.integers(1, 5), label="steps")
        elif move == "save":
            self.save()
        elif move == "again":
            self.save(again=self.draw.draw(st.integers(1, 3)))
        elif move == "mine":
            self.save(name=f"epoch-{self.step}-{self.attempt}")
        elif move == "latest":
            self.save(name="latest")
        elif move in ("recover", "restart"):
            there = sorted(self.listed.values(), key=lambda each: each.path)
            over = move == "restart" or not there
            self.parent = None if over else self.draw.draw(st.sampled_from(there), label="from")
            self.step = 0 if self.parent is None else self.parent.step
            self.attempt += 1
        elif move == "delete" and self.listed:
            del self.listed[self.draw.draw(st.sampled_from(sorted(self.listed)), label="gone")]
        elif move == "expire":
            kept = self.clock - timedelta(seconds=self.draw.draw(st.integers(0, 3600)))
            self.listed = {path: each for path, each in self.listed.items() if each.time >= kept}
        elif move == "forget":
            self.keeps = not self.keeps


@given(data=st.data(), dates_first=st.booleans(), keeps=st.booleans())
def test_no_history_that_the_library_makes_is_a_contradiction(
    data: st.DataObject, *, dates_first: bool, keeps: bool
) -> None:
    run = _Run(data, dates_first=dates_first, keeps=keeps)
    for _ in range(data.draw(st.integers(1, 30), label="moves")):
        run.move()
    listed = data.draw(st.permutations(list(run.listed.values())))
    assert contradiction(listed) is None


def _history(shape: list[tuple[int, int]]) -> list[CheckpointRecord]:
    """Attempts that each save a few times, an hour apart, each from one of the one before."""
    records: list[CheckpointRecord] = []
    parent: CheckpointRecord | None = None
    hours = itertools.count()
    for attempt, (saves, back) in enumerate(shape):
        start = 0 if parent is None else parent.step
        own = [
            _saved(start + 5 * n, attempt, NOW + next(hours) * HOUR, parent=parent)
            for n in range(1, saves + 1)
        ]
        records += own
        parent = own[back % len(own)]
    return records


SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=5)


def _elsewhere(record: CheckpointRecord, **changes: object) -> CheckpointRecord:
    """A copy of it under a Tinker run of another's."""
    name = record.path.rpartition("/")[2]
    run_id = "session-theirs:train:0"
    path = f"tinker://{run_id}/weights/{name}"
    return record.model_copy(update={"path": path, "run_id": run_id, **changes})


@given(data=st.data(), shape=SHAPES)
def test_metadata_that_another_tinker_run_passes_on_is_refused_and_both_are_named(
    data: st.DataObject, shape: list[tuple[int, int]]
) -> None:
    records = _history(shape)
    original = data.draw(st.sampled_from(records))
    raised = original.step + data.draw(st.integers(-original.step, 50))
    theirs = _elsewhere(
        original,
        step=raised,
        saved_by=data.draw(st.sampled_from(["schedule", "user"])),
        time=original.time + data.draw(st.integers(-99, 99)) * HOUR,
    )
    found = contradiction([*records, theirs])
    assert found is not None
    assert theirs.path in found.paths
    (other,) = set(found.paths) - {theirs.path}
    assert {each.attempt for each in records if each.path == other} == {original.attempt}
    assert "one Tinker run" in found.reason


@given(data=st.data(), shape=SHAPES, change=st.integers(-5, 50).filter(bool))
def test_a_step_that_is_not_the_one_in_its_name_is_refused(
    data: st.DataObject, shape: list[tuple[int, int]], change: int
) -> None:
    records = _history(shape)
    at = data.draw(st.integers(0, len(records) - 1))
    step = records[at].step + change
    records[at] = records[at].model_copy(update={"step": step, "sound_step": min(step, 5)})
    assert contradiction(records) is not None


@given(data=st.data(), shape=SHAPES)
def test_a_later_save_with_fewer_steps_is_refused_and_both_are_named(
    data: st.DataObject, shape: list[tuple[int, int]]
) -> None:
    records = _history(shape)
    original = data.draw(st.sampled_from(records))
    theirs = original.model_copy(
        update={
            "path": f"tinker://{original.run_id}/weights/mine",
            "saved_by": "user",
            "step": original.step - 1,
            "sound_step": None,
            "time": original.time + OUT_OF_ORDER + timedelta(seconds=1),
        }
    )
    found = contradiction([*records, theirs])
    assert found is not None
    assert theirs.path in found.paths
    if found.paths[0] == original.path:
        assert "saved later by the same attempt" in found.reason


def test_saves_a_minute_apart_may_be_dated_in_either_order() -> None:
    first = _saved(10, 0, NOW)
    second = _saved(7, 0, NOW + timedelta(seconds=60), name="mine")
    assert contradiction([first, second]) is None
    later = second.model_copy(update={"time": second.time + timedelta(seconds=1)})
    found = contradiction([later, first])
    assert found is not None
    assert found.paths == (first.path, later.path)


def test_a_path_that_is_written_again_may_be_dated_by_its_first_save() -> None:
    latest = _saved(30, 0, NOW, name="latest")
    assert contradiction([latest, _saved(10, 0, NOW + HOUR)]) is None


def test_fewer_steps_than_the_checkpoint_it_began_from_are_refused_and_both_are_named() -> None:
    parent = _saved(10, 0, NOW)
    child = _saved(9, 1, NOW + HOUR, parent=parent)
    found = contradiction([child, parent])
    assert found is not None
    assert found.paths == (parent.path, child.path)
    assert "at step 10, and the second has step 9" in found.reason
    assert contradiction([_saved(10, 1, NOW + HOUR, parent=parent), parent]) is None
    # A path of the user's may have been written again since, and a parent may be gone.
    mine = _saved(10, 0, NOW, name="latest")
    assert contradiction([_saved(9, 1, NOW + HOUR, parent=mine), mine]) is None
    assert contradiction([child]) is None


def test_an_attempt_that_began_from_two_checkpoints_or_in_its_own_tinker_run_is_refused() -> None:
    first, second = _saved(5, 0, NOW), _saved(10, 0, NOW + HOUR)
    one = _saved(15, 1, NOW + 2 * HOUR, parent=first)
    other = _saved(20, 1, NOW + 3 * HOUR, parent=second)
    found = contradiction([first, second, one, other])
    assert found is not None
    assert found.paths == (one.path, other.path)
    inside = second.model_copy(update={"parent": first.path})
    found = contradiction([first, inside])
    assert found is not None
    assert found.paths == (first.path, inside.path)
    assert "the same Tinker run" in found.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "tinker://session-0:train:0/weights/mine"}, "which gives no such name"),
        ({"step": 11}, "its step is 10, and by its metadata 11"),
        ({"attempt": "ffffffff"}, "its attempt is 00000000, and by its metadata ffffffff"),
        ({"lineage": "another"}, "its lineage is .*, and by its metadata"),
        (
            {"path": "tinker://session-0:train:0/weights/step-00000009-00000000"},
            "its step is 9, and by its metadata 10",
        ),
        ({"sound_step": 11}, "step 10, and 11 steps that succeeded"),
    ],
)
def test_what_the_schedule_never_writes_is_refused_with_what_is_said_twice(
    changes: dict[str, object], said: str
) -> None:
    saved = _saved(10, 0, NOW)
    assert contradiction([saved]) is None
    found = contradiction([saved.model_copy(update=changes)])
    assert found is not None
    assert len(found.paths) == 1
    assert re.search(said, found.reason)


def test_the_names_of_earlier_versions_are_known() -> None:
    saved = _saved(10, 0, NOW)
    for name in ("step-00000010-00000000", "step-00000010-00000000-1"):
        path = f"tinker://{saved.run_id}/weights/{name}"
        assert contradiction([saved.model_copy(update={"path": path})]) is None


def test_with_which_of_two_it_begins_does_not_depend_on_the_order_of_the_listing() -> None:
    early, late = _saved(9, 0, NOW), _elsewhere(_saved(7, 0, NOW + HOUR))
    more, fewer = _saved(9, 0, NOW), _elsewhere(_saved(7, 0, NOW))
    same, again = _saved(7, 0, NOW), _elsewhere(_saved(7, 0, NOW))
    for first, second in ((early, late), (fewer, more), (same, again)):
        for listed in ([first, second], [second, first]):
            found = contradiction(listed)
            assert found is not None
            assert found.paths == (first.path, second.path)
            assert "one Tinker run" in found.reason


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_a_later_save_with_fewer_steps_than_any_before_it_is_refused(
    order: tuple[int, ...],
) -> None:
    earlier = [_saved(3, 0, NOW), _saved(10, 0, NOW + HOUR), _saved(10, 0, NOW + 2 * HOUR, again=1)]

    def among(step: int) -> tuple[str, ...]:
        later = _saved(step, 0, NOW + 3 * HOUR, name="mine")
        records = [*earlier, later]
        found = contradiction([records[index] for index in order])
        assert found is None or later.path == found.paths[1]
        return () if found is None else found.paths

    assert among(10) == (), "the same step may be saved once more"
    assert among(9)[0] == earlier[1].path
    assert among(2)[0] == earlier[1].path


def test_what_another_save_overtook_by_an_hour_is_refused_though_more_were_saved_since() -> None:
    records = [
        _saved(10, 0, NOW),
        _saved(7, 0, NOW + HOUR, name="mine"),
        _saved(20, 0, NOW + 2 * HOUR),
    ]
    found = contradiction(reversed(records))
    assert found is not None
    assert found.paths == (records[0].path, records[1].path)


def test_a_checkpoint_is_not_its_own_parent() -> None:
    saved = _saved(10, 0, NOW)
    found = contradiction([saved.model_copy(update={"parent": saved.path})])
    assert found is not None
    assert (found.paths, found.reason) == ((saved.path,), "it names itself as its parent")
