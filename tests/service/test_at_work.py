"""Whether the SDK lets us notice that the service is at work, and what is said if it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.clock import LONGEST_INTERVAL_S, Reminder
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service import at_work
from tinker_recovery.service.sdk_workarounds import OFF


@pytest.fixture
def applied_anew() -> Iterator[None]:
    """As in a process that has made no client yet."""
    at_work.apply.cache_clear()
    yield
    at_work.apply.cache_clear()


def test_the_installed_sdk_has_what_is_wrapped() -> None:
    assert at_work.is_possible(), "the SDK has changed: see tinker_recovery/service/at_work.py"


@pytest.mark.usefixtures("applied_anew")
def test_where_nothing_can_be_noticed_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(OFF, "0")
    at_work.apply()
    at_work.apply()
    assert caplog.text.count("set create_timeout_s above the longest load") == 1


def test_a_missed_deadline_is_doubled_up_to_eight_times() -> None:
    policy = RecoveryPolicy(create_timeout_s=10.0)
    deadlines = [policy.create_deadline_s(missed) for missed in range(6)]
    assert deadlines == [10.0, 20.0, 40.0, 80.0, 80.0, 80.0]


def test_by_default_a_client_has_twenty_minutes_and_an_incident_a_day() -> None:
    policy = RecoveryPolicy()
    assert (policy.create_timeout_s, policy.max_wait_s) == (20 * 60.0, 24 * 3600.0)


@given(st.lists(st.floats(0.0, 90_000.0), max_size=60), st.floats(0.1, 600.0))
def test_what_lasts_is_reported_ever_less_often_and_at_least_every_hour(
    looks: list[float], first_s: float
) -> None:
    reminder, reported = Reminder(first_s), [0.0]
    for lasted_s in sorted(looks):
        if reminder.is_due(lasted_s):
            reported.append(lasted_s)
        assert lasted_s - reported[-1] < LONGEST_INTERVAL_S
    assert len(reported) - 1 <= 90_000.0 / first_s


def test_reports_of_what_lasts_come_after_1_3_7_15_minutes() -> None:
    reminder = Reminder()
    assert [m for m in range(16) if reminder.is_due(m * 60.0)] == [1, 3, 7, 15]
    assert Reminder(at_once=True).is_due(0.0)
