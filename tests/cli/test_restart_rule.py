"""Whether a script that ended is started again: a pure decision."""

from __future__ import annotations

import signal

import pytest

from tinker_recovery.cli.restart_rule import Ending, Restart, RestartRule, Stop
from tinker_recovery.supervision import Backoff

RULE = RestartRule(3, Backoff(5.0, 60.0, jitter=0.0), 60.0)


def test_the_first_restart_is_at_once_and_each_further_one_waits_twice_as_long() -> None:
    crash = Ending(1, lived_s=1.0)
    answers = [RULE.after(crash, restarts) for restarts in range(4)]
    assert answers[:3] == [Restart(1, 0.0), Restart(2, 5.0), Restart(3, 10.0)]
    assert answers[3] == Stop("3 restarts in a row, and none ran for 60 s")


def test_after_a_healthy_run_restarts_are_counted_from_0_again() -> None:
    assert RULE.after(Ending(1, lived_s=60.0), 3) == Restart(1, 0.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_kill_or_a_crash_is_restarted(number: int) -> None:
    assert RULE.after(Ending(-number, lived_s=1.0), 0) == Restart(1, 0.0)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (Ending(0, 1.0), "done"),
        (Ending(2, 1.0), "refuses its arguments"),
        (Ending(-signal.SIGINT, 1.0), "a signal asked it to end"),
        (Ending(-signal.SIGTERM, 1.0), "a signal asked it to end"),
        (Ending(1, 1.0, asked_to_end=True), "a signal asked it to end"),
        (Ending(1, 1.0, finished_before=True), "nothing to train"),
    ],
)
def test_what_is_no_crash_is_not_restarted(ending: Ending, reason: str) -> None:
    answer = RULE.after(ending, 0)
    assert isinstance(answer, Stop)
    assert reason in answer.reason


def test_the_status_is_what_a_shell_would_say() -> None:
    assert (Ending(3, 1.0).status, Ending(-9, 1.0).status) == (3, 137)
    assert (str(Ending(3, 1.0)), str(Ending(-9, 1.0))) == (
        "ended with status 3",
        "died of SIGKILL",
    )


def test_restarts_can_be_turned_off() -> None:
    none = RestartRule(0, Backoff(5.0, 60.0), 60.0)
    assert none.after(Ending(1, 1.0), 0) == Stop("no restarts are allowed")
