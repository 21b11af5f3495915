"""What to ask the service about many runs, and when: the decisions."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_recovery import RecoveryPolicy
from tinker_recovery.detection.plan import (
    FEW,
    QUICK_FACTOR,
    RENEW_AFTER,
    RETRY_FACTOR,
    SLACK,
    SPREAD_PAGES,
    SPREAD_SINGLE,
    PageCounts,
    PagePoll,
    PollSchedule,
    UrgentPolls,
    pages_worth_reading,
)

PAGE = 10


def read(poll: PagePoll, listed: list[str]) -> tuple[list[str], int]:
    """Read the pages it asks for; what it saw, and how many pages that took."""
    seen: list[str] = []
    pages = 0
    while (offset := poll.next_offset()) is not None:
        pages += 1
        seen += poll.note_page(offset, listed[offset : offset + PAGE], len(listed))
    return seen, pages


def test_a_few_runs_are_asked_for_one_by_one() -> None:
    poll = PagePoll(["a"] * FEW, None, page=PAGE)
    assert poll.next_offset() is None
    assert poll.missing() == ["a"]


def test_a_poll_of_a_few_leaves_what_is_known_of_the_pages_as_it_is() -> None:
    known = PageCounts([3], 0)
    few = list(map(str, range(FEW)))
    assert PagePoll(few, known, page=PAGE).counts() is known
    assert PagePoll(few, None, page=PAGE).counts() is None
    assert PagePoll([*few, "more"], None, page=PAGE).counts() == PageCounts([], FEW + 1)


def test_pages_end_once_every_run_has_been_seen() -> None:
    listed = [str(number) for number in range(1000)]
    poll = PagePoll(listed[:15], None, page=PAGE)
    seen, pages = read(poll, listed)
    assert (sorted(seen), pages, poll.missing()) == (sorted(listed[:15]), 2, [])


def test_old_runs_far_down_a_long_list_cost_their_pages_once() -> None:
    listed = [str(number) for number in range(10_000)]
    wanted = listed[5000:5020]
    first = PagePoll(wanted, None, page=PAGE)
    seen, pages = read(first, listed)
    assert (seen, pages) == ([], 20)
    second = PagePoll(wanted, first.counts(), page=PAGE)
    assert read(second, listed) == ([], 0)
    assert second.missing() == wanted


def test_page_counts_are_not_relied_on_forever_nor_after_the_runs_have_moved() -> None:
    listed = [str(number) for number in range(1000)]
    wanted = listed[:200]
    poll = PagePoll(wanted, None, page=PAGE)
    read(poll, listed)
    counts = poll.counts()
    for _ in range(RENEW_AFTER):
        assert counts is not None
        poll = PagePoll(wanted, counts, page=PAGE)
        _, pages = read(poll, listed)
        assert pages == 20
        counts = poll.counts()
    assert counts is None
    moved = ["new"] * 500 + listed
    poll = PagePoll(wanted, PageCounts([PAGE] * 20, 0), page=PAGE)
    read(poll, moved)
    assert poll.missing() == wanted, "asked for one by one this time"
    assert poll.counts() is None, "and counted afresh the next time"


@given(
    found=st.lists(st.integers(0, PAGE), max_size=60),
    unlisted=st.integers(0, 40),
    new=st.integers(0, 40),
)
def test_the_plan_never_costs_more_than_one_request_each_nor_than_all_pages(
    found: list[int], unlisted: int, new: int
) -> None:
    wanted = sum(found) + unlisted + new
    pages = pages_worth_reading(wanted, PageCounts(found, unlisted))
    seen = sum(found[:pages]) + (new if pages else 0)
    cost = pages + wanted - seen
    assert cost <= wanted
    if wanted > FEW:
        assert cost <= len(found) + unlisted + (new if not found else 0)


def test_pages_that_have_as_many_as_they_cost_are_not_read() -> None:
    assert pages_worth_reading(10, PageCounts([1] * 10, 0)) == 0
    assert pages_worth_reading(11, PageCounts([1] * 10, 0)) == 1, "one is new, on the first"
    assert pages_worth_reading(11, PageCounts([1] * 10, 1)) == 0, "it was on none"
    assert pages_worth_reading(12, PageCounts([1, 1, 10], 0)) == 3


def test_it_says_how_many_requests_it_takes_as_far_as_is_known() -> None:
    assert PagePoll(map(str, range(FEW)), None, page=PAGE).planned == FEW
    poll = PagePoll(map(str, range(20)), None, page=PAGE)
    assert poll.planned == 20, "it is not known yet how long the list is"
    poll.note_page(0, ["x"] * PAGE, 21)
    assert poll.planned == 3
    gone = PagePoll(map(str, range(20)), None, page=PAGE)
    gone.note_page(0, [], 0)
    assert gone.planned == 20
    assert PagePoll([], None, page=PAGE).planned == 1


def test_an_empty_page_ends_the_list_whatever_its_length_is_said_to_be() -> None:
    poll = PagePoll(map(str, range(20)), None, page=PAGE)
    assert poll.next_offset() == 0
    poll.note_page(0, ["x"] * PAGE, 1000)
    assert poll.next_offset() == PAGE
    poll.note_page(PAGE, [], 1000)
    assert poll.next_offset() is None
    assert poll.planned == 1


@st.composite
def services(draw: st.DrawFn) -> tuple[list[str], list[str], list[list[tuple[str, int]]]]:
    """A list of runs, the watched among them, and what happens to it before each page."""
    listed = [f"r{number}" for number in range(draw(st.integers(0, 120)))]
    wanted = draw(st.lists(st.sampled_from(listed), unique=True)) if listed else []
    wanted += [f"unlisted{number}" for number in range(draw(st.integers(0, 12)))]
    change = st.tuples(st.sampled_from(["new", "deleted"]), st.integers(0, 200))
    return listed, wanted, draw(st.lists(st.lists(change, max_size=12), max_size=30))


@settings(max_examples=50)
@given(
    services(),
    st.none() | st.builds(PageCounts, st.lists(st.integers(0, PAGE)), st.integers(0, 12)),
)
def test_every_watched_run_is_seen_or_asked_for_however_the_pages_shift(
    service: tuple[list[str], list[str], list[list[tuple[str, int]]]], counts: PageCounts | None
) -> None:
    listed, wanted, changes = service
    poll = PagePoll(wanted, counts, page=PAGE)
    seen: list[str] = []
    asked = 0
    while (offset := poll.next_offset()) is not None:
        for kind, at in changes.pop(0) if changes else []:
            if kind == "new":
                listed.insert(0, f"new{len(listed)}")
            elif listed:
                del listed[at % len(listed)]
        asked += 1
        seen += poll.note_page(offset, listed[offset : offset + PAGE], len(listed))
    missing = poll.missing()
    assert sorted(seen + missing) == sorted(wanted), "each exactly once"
    assert asked + len(missing) <= 2 * len(wanted) + SLACK
    following = poll.counts()
    if following is not None and len(wanted) > FEW:
        assert pages_worth_reading(len(wanted), following) <= len(wanted)


@settings(max_examples=50)
@given(
    interval_s=st.floats(0.1, 3600),
    polls=st.lists(
        st.tuples(st.floats(0, 0.999), st.floats(0, 0.2), st.sets(st.integers(0, 9)), st.booleans())
    ),
)
def test_no_run_waits_longer_than_the_interval_for_its_next_poll(
    interval_s: float, polls: list[tuple[float, float, set[int], bool]]
) -> None:
    """Where ``lasts`` is the share of the interval that a poll takes."""
    schedule = PollSchedule(interval_s)
    now = full_at = 0.0
    for chance, lasts, runs, found in polls:
        wait_s = schedule.wait_s(now, chance, out_of_reach=False)
        assert wait_s <= interval_s * (1 + 1e-9)
        now += wait_s
        watched = {str(run) for run in runs}
        only = schedule.begin(now, watched)
        if only is None:
            late_s = now - full_at - interval_s
            assert late_s <= interval_s / RETRY_FACTOR * (1 + 1e-9), (
                "the shortest pause between two polls"
            )
            full_at = now
        else:
            assert only <= watched
        now += interval_s * lasts / QUICK_FACTOR
        schedule.end(faults=int(found))


def test_new_runs_are_polled_sooner_and_every_run_in_time() -> None:
    schedule = PollSchedule(40.0)
    now, polls = 0.0, []
    for _ in range(7):
        now += schedule.wait_s(now, 0.0, out_of_reach=False)
        only = schedule.begin(now, ["a", "b"] if now > 40.0 else ["a"])
        polls.append((now, only))
        schedule.end(faults=0)
    every_run = None
    assert polls == [
        (40.0, every_run),
        (50.0, {"a"}),
        (60.0, {"a"}),
        (70.0, {"a"}),
        (80.0, every_run),
        (90.0, {"b"}),
        (100.0, {"b"}),
    ]


def test_a_quiet_fleet_is_polled_once_in_an_interval_and_in_an_incident_four_times() -> None:
    schedule = PollSchedule(40.0)
    schedule.begin(0.0, [])
    schedule.end(faults=0)
    assert schedule.wait_s(0.0, 0.0, out_of_reach=False) == 40.0
    assert schedule.begin(40.0, []) is None
    schedule.end(faults=1)
    assert schedule.wait_s(40.0, 0.0, out_of_reach=False) == 10.0
    assert schedule.begin(50.0, []) is None


def test_many_runs_are_polled_so_often_that_the_last_run_of_a_poll_is_not_late_either() -> None:
    schedule = PollSchedule(30.0)
    schedule.begin(30.0, [str(run) for run in range(100)])
    schedule.end(faults=0)
    for _ in range(QUICK_FACTOR - 1):
        schedule.begin(30.0, ["0"])
    wait_s = schedule.wait_s(30.0, 0.0, out_of_reach=False)
    assert math.isclose(wait_s + 30.0 * (SPREAD_PAGES + SPREAD_SINGLE), 30.0)


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 30.0), (0.5, 28.5)])
def test_jitter_only_ever_shortens(chance: float, expected: float) -> None:
    assert math.isclose(PollSchedule(30.0).wait_s(0.0, chance, out_of_reach=False), expected)


@given(
    interval_s=st.floats(0.05, 600),
    looks=st.lists(st.booleans(), min_size=1, max_size=200),
)
def test_a_run_that_cannot_wait_is_asked_for_at_once_and_then_less_and_less_often(
    interval_s: float, looks: list[bool]
) -> None:
    """Looked at every half second; True where its work is still overdue."""
    polls = UrgentPolls(interval_s)
    asked: list[float] = []
    before = False
    for number, urgent in enumerate(looks):
        now = number * 0.5
        due = polls.due(now, ["run"] if urgent else [])
        if urgent and not before:
            assert due == ["run"]
            asked.clear()
        if not urgent:
            assert due == []
        if due:
            asked.append(now)
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        wanted = [min(2.0**place, interval_s) for place in range(len(gaps))]
        # As soon as a look finds it due, so up to one look late.
        assert all(0 <= gap - want < 0.5 for gap, want in zip(gaps, wanted, strict=True))
        before = urgent


def _poll_times(
    schedule: PollSchedule, runs: list[str], polls: int, faults: dict[int, int] | None = None
) -> list[tuple[float, set[str] | None]]:
    """When each poll began, and of which runs; a poll takes no time."""
    now, times = 0.0, []
    for number in range(polls):
        now += schedule.wait_s(now, 0.0, out_of_reach=False)
        times.append((round(now, 9), schedule.begin(now, runs)))
        schedule.end(faults=(faults or {}).get(number, 0))
    return times


def test_many_new_runs_are_polled_quickly_three_times_and_then_in_the_shorter_interval() -> None:
    runs = [str(number) for number in range(FEW + 1)]
    # The first poll cannot know that they are many; then 40 s less the spread of 0.3.
    assert _poll_times(PollSchedule(40.0), runs, 6) == [
        (40.0, None),
        (47.0, set(runs)),
        (54.0, set(runs)),
        (61.0, set(runs)),
        (68.0, None),
        (96.0, None),
    ]


def test_just_a_few_runs_are_polled_in_the_full_interval() -> None:
    runs = [str(number) for number in range(FEW)]
    assert _poll_times(PollSchedule(40.0), runs, 6)[-2:] == [(80.0, None), (120.0, None)]


def test_an_incident_polls_every_run_quickly_until_a_poll_finds_nothing() -> None:
    assert _poll_times(PollSchedule(40.0), ["a"], 6, {1: 2, 2: 1}) == [
        (40.0, None),
        (50.0, {"a"}),
        (pytest.approx(40 + 10 + 4 / 3), None),  # the shortest pause between two polls
        (pytest.approx(50 + 10 + 4 / 3), None),
        (pytest.approx(90 + 10 + 4 / 3), None),
        (pytest.approx(130 + 10 + 4 / 3), None),
    ]


@pytest.mark.parametrize("incident", [False, True])
def test_a_service_out_of_reach_is_asked_thirty_times_sooner_whatever_was_planned(
    incident: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    schedule = PollSchedule(60.0)
    assert schedule.wait_s(0.0, 0.9, out_of_reach=True) == 2.0
    schedule.begin(0.0, ["a"])
    schedule.end(faults=int(incident))
    assert schedule.wait_s(0.0, 0.9, out_of_reach=True) == 2.0


def test_once_the_quick_polls_are_over_one_that_comes_early_is_of_every_run() -> None:
    """As it does where the service is out of reach."""
    schedule = PollSchedule(40.0)
    assert schedule.begin(0.0, ["a"]) is None
    for now in (10.0, 20.0, 30.0):
        assert schedule.begin(now, ["a", "b"]) == {"a"}
    assert schedule.begin(31.0, ["a", "b"]) is None


def test_a_quick_poll_leaves_out_new_runs_that_have_ended_and_needs_one_that_has_not() -> None:
    schedule = PollSchedule(40.0)
    assert schedule.begin(0.0, ["a", "b"]) is None
    assert schedule.begin(10.0, ["b", "c"]) == {"b"}
    assert schedule.begin(20.0, ["c"]) is None, "no new run is left: a full poll instead"


def test_a_quick_poll_that_would_make_a_full_one_late_becomes_a_full_one() -> None:
    schedule = PollSchedule(40.0)
    assert schedule.begin(0.0, ["a"]) is None
    assert schedule.begin(35.9, ["a"]) == {"a"}
    assert schedule.begin(36.0, ["a"]) is None, "40 s less the largest jitter"


def test_a_poll_that_began_late_does_not_make_the_next_one_wait_less_than_a_moment() -> None:
    schedule = PollSchedule(30.0)
    schedule.begin(0.0, ["a"])
    schedule.end(faults=0)
    assert schedule.wait_s(500.0, 0.0, out_of_reach=False) == 1.0


def test_what_a_full_read_found_on_each_page_is_kept_for_the_next_poll() -> None:
    listed = [str(number) for number in range(40)]
    poll = PagePoll([*listed[:9], *listed[25:27], "gone"], None, page=PAGE)
    assert poll.planned == 12, "no more pages than runs"
    seen, pages = read(poll, listed)
    assert (len(seen), pages, poll.missing()) == (11, 4, ["gone"])
    assert poll.planned == 4
    assert poll.counts() == PageCounts([9, 0, 2, 0], unlisted=1)


def test_where_the_runs_were_decides_how_many_pages_are_read() -> None:
    assert pages_worth_reading(FEW, None) == 0
    assert pages_worth_reading(FEW + 1, None) == FEW + 1
    assert pages_worth_reading(12, PageCounts([10, 0, 2], 0)) == 1, (
        "two runs are worth two requests"
    )
    assert pages_worth_reading(14, PageCounts([10, 0, 4], 0)) == 3
    assert pages_worth_reading(12, PageCounts([0, 0], unlisted=2)) == 1, "ten new ones: page one"
    assert pages_worth_reading(12, PageCounts([], unlisted=12)) == 0
    assert pages_worth_reading(12, PageCounts([], unlisted=2)) == 1


def test_a_few_pages_beyond_the_plan_are_read_where_runs_are_missing_and_no_more() -> None:
    wanted = [str(number) for number in range(10)]
    listed = ["new"] * 100 + wanted
    poll = PagePoll(wanted, PageCounts([10], 0), page=PAGE)
    assert poll.planned == 1
    assert read(poll, listed)[1] == 1 + SLACK == 3
    limited = PagePoll(wanted, PageCounts([10], 0), page=PAGE, at_most=2)
    assert read(limited, listed)[1] == 2


@pytest.mark.parametrize(("missing", "kept"), [(7, True), (8, False)])
def test_counts_are_dropped_once_a_poll_costs_more_than_half_and_eight_beyond_the_plan(
    missing: int, *, kept: bool
) -> None:
    """Planned are two pages; four pages and seven runs one by one are eleven requests."""
    wanted = [str(number) for number in range(20)]
    poll = PagePoll(wanted, PageCounts([10, 10], 0), page=PAGE)
    read(poll, wanted[missing:] + ["new"] * 100)
    assert len(poll.missing()) == missing
    assert (poll.counts() is not None) == kept


def test_runs_that_have_come_up_the_list_are_read_by_the_page_again_after_ten_minutes() -> None:
    """Pages cost less than a request each, and only counting afresh shows that they would do."""
    assert RENEW_AFTER * RecoveryPolicy().poll_interval_s == 600.0


def test_page_counts_grow_older_with_each_poll_until_they_are_dropped() -> None:
    counts: PageCounts | None = PageCounts([9], unlisted=1)
    ages = []
    while counts is not None:
        ages.append(counts.age)
        assert (counts.found, counts.unlisted) == ([9], 1)
        counts = counts.older()
    assert ages == list(range(RENEW_AFTER))


def test_a_poll_of_a_few_runs_says_nothing_of_the_pages() -> None:
    known = PageCounts([3], 0, age=4)
    assert PagePoll(["a"], known, page=PAGE).counts() is known
    assert PagePoll(["a"], None, page=PAGE).counts() is None


def test_a_list_that_grows_while_it_is_read_is_read_to_its_end() -> None:
    wanted = [str(number) for number in range(9)]
    poll = PagePoll(wanted, None, page=PAGE)
    assert poll.next_offset() == 0
    assert poll.note_page(0, wanted[:3] * 2, 10) == wanted[:3]
    assert poll.next_offset() is None, "10 entries are one page"
    poll.note_page(0, [], 10)
    grown = PagePoll(wanted, None, page=PAGE)
    assert grown.next_offset() == 0
    grown.note_page(0, wanted[:3], 11)
    assert grown.next_offset() == 10
    assert grown.note_page(10, wanted[3:5], 10) == wanted[3:5]
    assert grown.next_offset() is None
    assert grown.missing() == wanted[5:]


def test_a_service_out_of_reach_is_asked_again_thirty_times_in_an_interval() -> None:
    schedule = PollSchedule(60.0)
    assert schedule.wait_s(0.0, 0.9, out_of_reach=True) == 2.0
    schedule.begin(0.0, ["a"])
    assert schedule.wait_s(0.0, 0.9, out_of_reach=True) == 2.0


def test_with_many_runs_new_ones_are_polled_three_times_between_two_full_polls() -> None:
    schedule, old = PollSchedule(100.0), [f"old-{number}" for number in range(FEW)]
    now, polls = 0.0, []
    for _ in range(10):
        now += schedule.wait_s(now, 0.0, out_of_reach=False)
        watched = [*old, "new"] if now > 150.0 else old
        only = schedule.begin(now, watched)
        polls.append((round(now, 6), "all" if only is None else len(only)))
        schedule.end(faults=0)
    assert polls == [
        (100.0, "all"),
        (125.0, FEW),
        (150.0, FEW),
        (175.0, FEW),
        (200.0, "all"),
        # Nine are many: an interval is 70 s, and a quick poll is due after a fourth of it.
        (217.5, 1),
        (235.0, 1),
        (252.5, 1),
        (270.0, "all"),
        (340.0, "all"),
    ]


def test_after_a_poll_that_found_faults_every_run_is_polled_four_times_as_often() -> None:
    schedule, runs = PollSchedule(100.0), [str(number) for number in range(FEW + 1)]
    now, polls = 0.0, []
    for faults in (2, 1, 0, 0):
        now += schedule.wait_s(now, 0.0, out_of_reach=False)
        polls.append((round(now, 6), schedule.begin(now, runs)))
        schedule.end(faults=faults)
    assert [when for when, _ in polls][:3] == [100.0, 117.5, 135.0]
    assert [only for _, only in polls[:3]] == [None, None, None]
