"""The pure decisions, checked against plain statements of what they mean."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual import caught

from tinker_recovery.supervision import Backoff, SpecError
from tinker_recovery.supervision.intensity import RestartLedger, healthy_after
from tinker_recovery.supervision.strategies import (
    affected,
    is_a_crash,
    is_restarted,
    is_shutdown_due,
)

seconds = st.floats(0, 100, allow_nan=False)
backoffs = st.builds(
    lambda initial, more, factor, jitter: Backoff(initial, initial + more, factor, jitter),
    seconds,
    seconds,
    st.floats(1, 10),
    st.floats(0, 1),
)


@given(backoffs, st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_jitter_only_lengthens_and_the_cap_holds(
    backoff: Backoff, failures: int, chance: float
) -> None:
    shortest = backoff.delay_s(failures)
    assert shortest <= backoff.max_s
    assert shortest >= min(backoff.initial_s, backoff.max_s)
    assert shortest <= backoff.delay_s(failures, chance) <= shortest * (1 + backoff.jitter)


@given(backoffs, st.integers(0, 100))
def test_delays_never_shrink_while_failures_continue(backoff: Backoff, failures: int) -> None:
    assert backoff.delay_s(failures) <= backoff.delay_s(failures + 1)


@given(backoffs, st.integers(0, 200))
def test_the_longest_wait_is_the_sum_of_the_delays(backoff: Backoff, restarts: int) -> None:
    total = sum(backoff.delay_s(failures) for failures in range(restarts)) * (1 + backoff.jitter)
    assert backoff.longest_s(restarts) == pytest.approx(total, abs=1e-9)


def test_the_longest_wait_of_a_million_restarts_is_found_without_counting_them() -> None:
    backoff = Backoff(initial_s=1, max_s=8, factor=2, jitter=0)
    assert backoff.longest_s(10**9) == 1 + 2 + 4 + 8.0 * (10**9 - 3)


def test_no_backoff_never_waits() -> None:
    assert Backoff.none().delay_s(10_000, 0.9) == 0
    assert Backoff.none().longest_s(10**9) == 0


@given(st.integers(0, 6), st.integers(1, 20), st.lists(st.integers(0, 8).map(float), max_size=40))
def test_the_ledger_allows_at_most_the_limit_within_any_window(
    max_restarts: int, max_seconds: int, gaps: list[float]
) -> None:
    ledger = RestartLedger(max_restarts, max_seconds)
    now, allowed = 0.0, list[float]()
    for gap in gaps:
        now += gap
        recent = [moment for moment in allowed if now - moment <= max_seconds]
        fits = len(recent) < max_restarts
        assert ledger.spend(now) is fits
        if fits:
            allowed.append(now)
        assert ledger.within(now) == len(recent) + fits


@given(
    st.integers(1, 20),
    st.floats(1, 600),
    backoffs,
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=20, max_size=20),
)
def test_no_child_that_is_never_healthy_for_long_escapes_the_limit(
    max_restarts: int, max_seconds: float, backoff: Backoff, chance: float, shares: list[float]
) -> None:
    """Whatever its lives, up to and a hair past healthy: the limit is exceeded."""
    try:
        healthy_s = healthy_after(
            None, max_restarts=max_restarts, max_seconds=max_seconds, backoff=backoff
        )
    except SpecError:
        return
    ledger, now, failures = RestartLedger(max_restarts, max_seconds), 0.0, 0
    for share in shares[: max_restarts + 1]:
        life = healthy_s * share * 1.001
        now += life
        failures = 0 if life >= healthy_s else failures
        if not ledger.spend(now):
            return
        now += backoff.delay_s(failures, chance)
        failures += 1
    assert max_restarts >= len(shares)  # more lives than were drawn


def test_healthy_is_refused_where_a_crash_loop_would_escape() -> None:
    window = {"max_restarts": 10, "max_seconds": 60.0, "backoff": Backoff.none()}
    assert healthy_after(5.9, **window) == 5.9  # type: ignore[arg-type]  # a dict of mixed values
    error = caught(lambda: healthy_after(6.0, **window))  # type: ignore[arg-type]  # as above
    assert "healthy_after_s=6.0 is not possible: from 0 to less than 6 s" in str(error)


ORDER = list("abcde")


@given(st.sets(st.sampled_from(ORDER), min_size=1))
def test_who_is_affected_follows_from_the_strategy(crashed: set[str]) -> None:
    assert affected("one_for_one", ORDER, crashed) == sorted(crashed)
    assert affected("one_for_all", ORDER, crashed) == ORDER
    assert affected("rest_for_one", ORDER, crashed) == ORDER[ORDER.index(min(crashed)) :]


def test_none_is_affected_by_the_crash_of_a_child_that_is_gone() -> None:
    assert affected("rest_for_one", ORDER, {"z"}) == []


def test_restart_types() -> None:
    assert [
        is_restarted(kind, normal=False) for kind in ("permanent", "transient", "temporary")
    ] == [
        True,
        True,
        False,
    ]
    assert [
        is_restarted(kind, normal=True) for kind in ("permanent", "transient", "temporary")
    ] == [
        True,
        False,
        False,
    ]


def test_when_the_end_of_significant_children_ends_a_supervisor() -> None:
    assert not is_shutdown_due("never", significant_left=[])
    assert is_shutdown_due("any_significant", significant_left=[True])
    assert not is_shutdown_due("all_significant", significant_left=[False, True])
    assert is_shutdown_due("all_significant", significant_left=[False, False])


@pytest.mark.parametrize(
    ("error", "crash"),
    [
        (ValueError(), True),
        (asyncio.CancelledError(), True),
        (KeyboardInterrupt(), False),
        (SystemExit(), False),
        (GeneratorExit(), False),
        (ExceptionGroup("two", [ValueError(), OSError()]), True),
        (BaseExceptionGroup("two", [ValueError(), KeyboardInterrupt()]), False),
        (BaseExceptionGroup("in", [BaseExceptionGroup("deep", [SystemExit()])]), False),
        (BaseExceptionGroup("two", [asyncio.CancelledError(), OSError()]), True),
    ],
)
def test_only_what_a_restart_can_answer_is_a_crash(error: BaseException, *, crash: bool) -> None:
    assert is_a_crash(error) is crash
