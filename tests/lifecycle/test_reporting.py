"""What a loop may report: anything, and it never breaks the loop later."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from loops import ADAM, MODEL, SEED, batch, quick

from tinker_recovery import Attempt, CheckpointPolicy, Run, Supervisor
from tinker_recovery.checkpoints.metadata import JSON_LIMIT, fitting, number_of
from tinker_recovery.testing import LocalTinker


class _Tensor:
    """As torch's, with one element."""

    def item(self) -> float:
        return 0.5


class _Broken:
    def __float__(self) -> float:
        raise RuntimeError("on another device")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.array(0.5), 0.5),
        (np.array([[0.5]]), 0.5),
        (_Tensor(), 0.5),
        (math.inf, math.inf),
        (None, None),
        ("warmup", None),
        ("0.5", None),
        (np.array([1.0, 2.0]), None),
        ([0.5], None),
        (1j, None),
        (10**400, None),
        (_Broken(), None),
    ],
)
def test_a_number_of_any_kind_is_a_metric_and_nothing_else_is(
    value: object, number: float | None
) -> None:
    assert number_of(value) == number


def test_what_does_not_fit_is_left_out_but_never_the_metric_that_decides() -> None:
    metrics = {f"metric-{number:04}": 0.1 for number in range(2000)} | {"loss": 0.5}
    kept, left_out = fitting(metrics, "loss")
    assert kept["loss"] == 0.5
    assert [*kept][1:] + left_out == sorted(metrics.keys() - {"loss"})
    assert JSON_LIMIT - 30 <= sum(len(f'"{name}":0.1,') for name in kept) <= JSON_LIMIT
    assert fitting({"a": 1.0}, "loss") == ({"a": 1.0}, [])


async def _reporting(**metrics: object) -> Run:
    async def train(attempt: Attempt) -> None:
        for step in range(3):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await forward
            attempt.report(loss=float(step), **metrics)

    every = quick(checkpoints=CheckpointPolicy(save_every=1), guard_loss=True)
    async with Supervisor(every) as supervisor:
        await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED)
    return supervisor.runs[0]


@pytest.mark.usefixtures("local")
async def test_what_is_no_number_is_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        run = await _reporting(phase="warmup", score=np.array([0.5]))
    assert run.metrics == {"loss": 2.0, "score": 0.5}
    said = [each.message for each in caplog.records if "phase='warmup'" in each.message]
    assert len(said) == 1


async def test_more_metrics_than_a_checkpoint_holds_are_cut_there_with_one_warning(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    many = {f"metric_{number:04}": 0.5 for number in range(1500)}
    with caplog.at_level(logging.WARNING):
        run = await _reporting(**many)
    stored = local.checkpoints(run.segments[0].run_id)[-1]
    assert stored.user_metadata is not None
    assert '"loss":2.0' in stored.user_metadata["tinker_recovery.metrics"]
    assert len(run.metrics) == 1501
    assert len([each for each in caplog.records if "too many" in each.message]) == 1
