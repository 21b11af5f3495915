"""A short, fixed piece of the chaos that ``benchmarks/chaos.py`` plays at length."""

from __future__ import annotations

import anyio
import pytest
from _chaos import Outage, Outcome, Schedule, cases, play
from hypothesis import HealthCheck, Phase, given, seed, settings
from sweeps import sweep

from tinker_recovery.testing import FaultRule


def _kept(outcome: Outcome) -> None:
    assert not outcome.violation, f"{outcome.violation}\nto replay: play({outcome.schedule!r})"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set by each play, and put back after it.
    for name in ("TINKER_BASE_URL", "TINKER_API_KEY"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("part", sweep([1, 2], 1))
@pytest.mark.timeout(120)
def test_whatever_goes_wrong_the_weights_are_right_or_the_error_says_why_not(part: int) -> None:
    @seed(part)
    @settings(
        max_examples=6,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def one(schedule: Schedule) -> None:
        _kept(anyio.run(play, schedule))

    one()


FOUND = [
    # A forward pass that fails alone, and the save queued behind it.
    Schedule(1, blocking=False, faults=(FaultRule("fail", 7, "forward_backward"),)),
    Schedule(2, blocking=True, faults=(FaultRule("fail", 3, "optim_step"),)),
    # An outage that comes back at the last checkpoint, and a run over before anyone looked.
    Schedule(0, blocking=False, faults=(), outage=Outage(3, rollback=True, status=503)),
    Schedule(2, blocking=True, faults=(), outage=Outage(9, rollback=True, status=None)),
    # Silent from the canary's first question on, and then other weights restored for those saved.
    Schedule(
        3,
        blocking=False,
        faults=(
            FaultRule("hang", 0, "forward_backward", for_s=0.02),
            FaultRule("wrong_restore", 0, "load_weights", for_s=0.02),
        ),
    ),
    # Faults that strike the canary, in one attempt after the other, before weights are lost.
    Schedule(
        0,
        blocking=True,
        faults=(
            FaultRule("fail_session", 8, "forward_backward", times=3),
            FaultRule("fail", 8, "optim_step", times=3, after_s=0.02),
        ),
        outage=Outage(9, rollback=True, status=503),
        dialect="rolls_back",
    ),
    # Where the run starts over the canary's answers are no numbers, and nothing to compare with.
    Schedule(
        2,
        blocking=True,
        faults=(
            FaultRule("poison", 0, "create_model", for_s=0.02, after_s=0.02),
            FaultRule("nan_loss", 0, "forward_backward", for_s=0.02, after_s=0.02, loss="inf"),
        ),
        outage=Outage(5, rollback=False, status=503),
    ),
    # The answers of the canary as the run begins are NaN, and then the first loss.
    Schedule(0, blocking=False, faults=(FaultRule("nan_loss", 0, "forward_backward", times=5),)),
]


@pytest.mark.parametrize("schedule", FOUND, ids=range(len(FOUND)))
def test_a_schedule_that_once_broke_a_promise_keeps_it_now(schedule: Schedule) -> None:
    outcome = anyio.run(play, schedule)
    _kept(outcome)
    assert outcome.recoveries >= 1
