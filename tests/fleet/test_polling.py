"""What is asked of the service about many runs, and when: the decisions alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_recovery.detection.plan import (
    BRISK,
    FEW,
    RENEW_AFTER,
    SLACK,
    SOONER,
    SPREAD,
    SPREAD_REST,
    Census,
    Pace,
    Sweep,
    pages_worth_reading,
)

PAGE = 10


def read(sweep: Sweep, listed: list[str]) -> tuple[list[str], int]:
    """Read the pages it asks for; what it saw, and how many pages that took."""
    seen: list[str] = []
    pages = 0
    while (offset := sweep.next_offset()) is not None:
        pages += 1
        seen += sweep.note_page(offset, listed[offset : offset + PAGE], len(listed))
    return seen, pages


def test_a_few_runs_are_asked_for_one_by_one() -> None:
    sweep = Sweep(["a"] * FEW, None, page=PAGE)
    assert sweep.next_offset() is None
    assert sweep.missing() == ["a"]


def test_pages_end_once_everyone_has_been_seen() -> None:
    listed = [str(number) for number in range(1000)]
    sweep = Sweep(listed[:15], None, page=PAGE)
    seen, pages = read(sweep, listed)
    assert (sorted(seen), pages, sweep.missing()) == (sorted(listed[:15]), 2, [])


def test_old_runs_far_down_a_long_list_cost_their_pages_once() -> None:
    listed = [str(number) for number in range(10_000)]
    wanted = listed[5000:5020]
    first = Sweep(wanted, None, page=PAGE)
    seen, pages = read(first, listed)
    assert (seen, pages) == ([], 20)
    second = Sweep(wanted, first.census(), page=PAGE)
    assert read(second, listed) == ([], 0)
    assert second.missing() == wanted


def test_a_census_is_not_relied_on_for_ever_nor_after_the_runs_have_moved() -> None:
    listed = [str(number) for number in range(1000)]
    wanted = listed[:200]
    sweep = Sweep(wanted, None, page=PAGE)
    read(sweep, listed)
    census = sweep.census()
    for _ in range(RENEW_AFTER):
        assert census is not None
        sweep = Sweep(wanted, census, page=PAGE)
        _, pages = read(sweep, listed)
        assert pages == 20
        census = sweep.census()
    assert census is None
    moved = ["new"] * 500 + listed
    sweep = Sweep(wanted, Census([PAGE] * 20), page=PAGE)
    read(sweep, moved)
    assert sweep.missing() == wanted, "asked for by themselves this time"
    assert sweep.census() is None, "and looked for the next time"


@given(
    found=st.lists(st.integers(0, PAGE), max_size=60),
    unlisted=st.integers(0, 40),
    new=st.integers(0, 40),
)
def test_the_plan_is_never_dearer_than_one_question_each_nor_than_all_pages(
    found: list[int], unlisted: int, new: int
) -> None:
    wanted = sum(found) + unlisted + new
    pages = pages_worth_reading(wanted, Census(found, unlisted))
    seen = sum(found[:pages]) + (new if pages else 0)
    cost = pages + wanted - seen
    assert cost <= wanted
    if wanted > FEW:
        assert cost <= len(found) + unlisted + (new if not found else 0)


@st.composite
def services(draw: st.DrawFn) -> tuple[list[str], list[str], list[list[tuple[str, int]]]]:
    """A list of runs, the watched among them, and what happens to it before each page."""
    listed = [f"r{number}" for number in range(draw(st.integers(0, 120)))]
    wanted = draw(st.lists(st.sampled_from(listed), unique=True)) if listed else []
    wanted += [f"unlisted{number}" for number in range(draw(st.integers(0, 12)))]
    change = st.tuples(st.sampled_from(["new", "deleted"]), st.integers(0, 200))
    return listed, wanted, draw(st.lists(st.lists(change, max_size=12), max_size=30))


@settings(max_examples=50)
@given(services(), st.one_of(st.none(), st.builds(Census, st.lists(st.integers(0, PAGE)))))
def test_whoever_is_watched_is_seen_or_asked_for_however_the_pages_shift(
    service: tuple[list[str], list[str], list[list[tuple[str, int]]]], census: Census | None
) -> None:
    listed, wanted, changes = service
    sweep = Sweep(wanted, census, page=PAGE)
    seen: list[str] = []
    asked = 0
    while (offset := sweep.next_offset()) is not None:
        for kind, at in changes.pop(0) if changes else []:
            if kind == "new":
                listed.insert(0, f"new{len(listed)}")
            elif listed:
                del listed[at % len(listed)]
        asked += 1
        seen += sweep.note_page(offset, listed[offset : offset + PAGE], len(listed))
    missing = sweep.missing()
    assert sorted(seen + missing) == sorted(wanted), "each exactly once"
    assert asked + len(missing) <= 2 * len(wanted) + SLACK
    following = sweep.census()
    if following is not None and len(wanted) > FEW:
        assert pages_worth_reading(len(wanted), following) <= len(wanted)


@settings(max_examples=50)
@given(
    interval_s=st.floats(0.1, 3600),
    looks=st.lists(
        st.tuples(st.floats(0, 0.999), st.floats(0, 0.2), st.sets(st.integers(0, 9)), st.booleans())
    ),
)
def test_no_run_waits_longer_than_the_interval_for_its_next_look(
    interval_s: float, looks: list[tuple[float, float, set[int], bool]]
) -> None:
    """Where ``lasts`` is the share of the interval that a look takes."""
    pace = Pace(interval_s)
    now = full_at = 0.0
    for chance, lasts, runs, found in looks:
        wait_s = pace.wait_s(now, chance, out_of_reach=False)
        assert wait_s <= interval_s * (1 + 1e-9)
        now += wait_s
        watched = {str(run) for run in runs}
        only = pace.begin(now, watched)
        if only is None:
            late_s = now - full_at - interval_s
            assert late_s <= interval_s / SOONER * (1 + 1e-9), "the least pause between two looks"
            full_at = now
        else:
            assert only <= watched
        now += interval_s * lasts / BRISK
        pace.end(faults=int(found))


def test_new_runs_are_looked_at_sooner_and_everybody_in_time() -> None:
    pace = Pace(40.0)
    now, looks = 0.0, []
    for _ in range(7):
        now += pace.wait_s(now, 0.0, out_of_reach=False)
        only = pace.begin(now, ["a", "b"] if now > 40.0 else ["a"])
        looks.append((now, only))
        pace.end(faults=0)
    everybody = None
    assert looks == [
        (40.0, everybody),
        (50.0, {"a"}),
        (60.0, {"a"}),
        (70.0, {"a"}),
        (80.0, everybody),
        (90.0, {"b"}),
        (100.0, {"b"}),
    ]


def test_a_quiet_fleet_is_looked_at_once_in_an_interval_and_near_an_incident_four_times() -> None:
    pace = Pace(40.0)
    pace.begin(0.0, [])
    pace.end(faults=0)
    assert pace.wait_s(0.0, 0.0, out_of_reach=False) == 40.0
    assert pace.begin(40.0, []) is None
    pace.end(faults=1)
    assert pace.wait_s(40.0, 0.0, out_of_reach=False) == 10.0
    assert pace.begin(50.0, []) is None


def test_many_runs_are_looked_at_so_often_that_the_last_of_a_look_is_not_late_either() -> None:
    pace = Pace(30.0)
    pace.begin(30.0, [str(run) for run in range(100)])
    pace.end(faults=0)
    for _ in range(BRISK - 1):
        pace.begin(30.0, ["0"])
    wait_s = pace.wait_s(30.0, 0.0, out_of_reach=False)
    assert math.isclose(wait_s + 30.0 * (SPREAD + SPREAD_REST), 30.0)


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 30.0), (0.5, 28.5)])
def test_jitter_only_ever_shortens(chance: float, expected: float) -> None:
    assert math.isclose(Pace(30.0).wait_s(0.0, chance, out_of_reach=False), expected)
