"""What time it is at the service, whatever our own clock says."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import MODEL, SEED, quick, train

from tinker_recovery import CheckpointPolicy, Clock, Supervisor
from tinker_recovery.service.service_clock import ServiceClock
from tinker_recovery.testing import FaultRule

EPOCH_S = 1_800_000_000.0


@given(
    ahead_s=st.floats(-86_400.0, 86_400.0),
    replies=st.lists(
        st.tuples(st.floats(0.0, 60.0), st.floats(0.0, 5.0), st.floats(0.0, 1.0)), min_size=1
    ),
)
def test_the_service_is_never_taken_to_be_later_than_it_is_nor_much_earlier(
    ahead_s: float, replies: list[tuple[float, float, float]]
) -> None:
    """Each reply: after a pause, with a latency, dated at some part of it."""
    now = [EPOCH_S]
    clock = ServiceClock(lambda: now[0])
    for pause_s, latency_s, dated_after in replies:
        now[0] += pause_s
        sent_s = now[0]
        dated_s = sent_s + latency_s * dated_after + ahead_s
        now[0] += latency_s
        clock.note_reply(formatdate(dated_s, usegmt=True), sent_s=sent_s)
    slowest_s = max(latency_s for _, latency_s, _ in replies)
    assert ahead_s - 1.001 - slowest_s <= clock.ahead_s
    # Zero as long as that cannot be excluded; else the earliest that is possible.
    assert clock.ahead_s <= ahead_s + 0.001 or abs(ahead_s) <= 1.0 + slowest_s


def test_our_clock_or_the_services_may_be_set_while_we_run() -> None:
    now = [EPOCH_S]
    clock = ServiceClock(lambda: now[0])
    for ahead_s in (0.0, 500.0, -500.0, 0.0):
        clock.note_reply(formatdate(now[0] + ahead_s, usegmt=True), sent_s=now[0])
        assert clock.ahead_s == pytest.approx(ahead_s, abs=1.0)


@pytest.mark.parametrize("date", [None, "", "yesterday", "0"])
def test_without_a_date_the_newest_time_listed_says_that_the_service_is_not_behind_it(
    date: str | None,
) -> None:
    clock = ServiceClock(lambda: EPOCH_S)
    clock.note_reply(date, sent_s=EPOCH_S)
    clock.note_listed(EPOCH_S - 50.0)
    assert clock.now() == EPOCH_S
    clock.note_listed(EPOCH_S + 50.0)
    assert clock.now() == EPOCH_S + 50.0


def test_close_clocks_are_told_apart_after_a_few_replies() -> None:
    now = [EPOCH_S]
    clock = ServiceClock(lambda: now[0])
    for tenth in range(10):
        now[0] = EPOCH_S + tenth * 1.1
        clock.note_reply(formatdate(now[0] - 0.55, usegmt=True), sent_s=now[0])
    assert clock.ahead_s == pytest.approx(-0.55, abs=0.11)


@pytest.mark.parametrize("ours_is_ahead_s", [3600.0, -3600.0, 86_400.0])
async def test_a_run_recovers_from_its_newest_checkpoint_whatever_our_clock_says(
    serving: Callable[..., Any], ours_is_ahead_s: float
) -> None:
    saving = CheckpointPolicy(save_every=5, ttl_s=3600)
    clock = Clock(wall=lambda: time.time() + ours_is_ahead_s)
    async with serving() as local:
        local.inject(FaultRule("poison", 12, "optim_step"))
        async with Supervisor(quick(checkpoints=saving), clock=clock) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=14), base_model=MODEL, rank=8, seed=SEED
            )
    (recovery,) = supervisor.runs[0].recoveries
    assert recovery.checkpoint is not None
    assert recovery.checkpoint.step == 10
