"""The metrics, through the real OpenTelemetry SDK."""

from __future__ import annotations

import functools
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from inspection import event_sink, meter_provider, provider_of_instruments, set_meter_provider
from loops import MODEL, InstantClock, batch, policy, train
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryExhausted, Supervisor
from tinker_recovery.costs import Prices
from tinker_recovery.telemetry import metrics, names
from tinker_recovery.telemetry.figures import RunFigures
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


class _Meter:
    """Reads the current value of every metric."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def metrics(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == names.SCOPE
            for metric in scope.metrics
        }

    def points(self, name: str, **by: object) -> list[Any]:
        """The data points of a metric, filtered by attributes."""
        metric = self.metrics().get(name)
        every = [] if metric is None else list(metric.data.data_points)
        return [point for point in every if by.items() <= _attributes(point).items()]


def _attributes(point: Any) -> dict[str, Any]:
    """A point's attributes, without our prefix."""
    return {
        key.removeprefix("tinker_recovery.").replace(".", "_"): value
        for key, value in point.attributes.items()
    }


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Meter]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    set_meter_provider(monkeypatch, provider)
    yield _Meter(reader)
    provider.shutdown()


async def test_a_run_with_a_recovery_in_numbers(local: LocalTinker, meter: _Meter) -> None:
    local.poison(at_step=7)
    given = policy(
        checkpoints=CheckpointPolicy(save_at_start=False, save_every=5, keep_last=1),
        prices={MODEL: Prices(trained=1e6)},
    )
    active: list[int] = []

    async def loop(attempt: Attempt) -> None:
        active.extend(point.value for point in meter.points(metrics.RUN_ACTIVE))
        await train(attempt, steps=STEPS)

    async with Supervisor(given) as supervisor:
        await supervisor.run(loop, base_model=MODEL, name="in-numbers")
    named = {"run_name": "in-numbers"}
    (used,) = meter.points(metrics.USAGE, **named)
    assert _attributes(used) == {**named, "token_kind": "trained", "base_model": MODEL}
    (again,) = meter.points(metrics.USAGE_REPLAYED, **named)
    assert used.value - again.value == STEPS * sum(each.model_input.length for each in batch(0))
    (cost,) = meter.points(metrics.RUN_COST, **named)
    assert cost.value == pytest.approx(used.value)
    (duration,) = meter.points(metrics.RECOVERY_DURATION)
    assert _attributes(duration) == {"fault_kind": "request_failed", "outcome": "recovered"}
    (recovery,) = supervisor.runs[0].recoveries
    assert duration.count == 1
    assert 0 < duration.sum < 60
    (tried,) = meter.points(metrics.RECOVERY_ATTEMPT)
    assert (tried.value, _attributes(tried)) == (1, {"outcome": "recovered"})
    (lag,) = meter.points(metrics.DETECTION_LAG)
    assert _attributes(lag) == {"fault_kind": "request_failed", "fault_detected_by": "call"}
    assert lag.sum < 1.0
    (done,) = meter.points(metrics.STEP_DONE, run_name="in-numbers")
    (replayed,) = meter.points(metrics.STEP_REPLAYED, run_name="in-numbers")
    assert done.value == STEPS + replayed.value
    # The poisoned step was submitted and never completed.
    assert replayed.value == recovery.replayed_steps - 1
    (share,) = meter.points(metrics.RUN_GOODPUT, run_name="in-numbers")
    assert 0.0 < share.value < 1.0
    (save,) = meter.points(metrics.SAVE_DURATION)
    assert save.count == 3
    (kept,) = meter.points(metrics.CHECKPOINT_KEPT)
    (deleted,) = meter.points(metrics.CHECKPOINT_DELETED)
    assert kept.value + deleted.value == 3
    assert deleted.value >= 1
    assert _attributes(kept) == _attributes(deleted) == {"run_name": "in-numbers"}
    (ended,) = meter.points(metrics.RUN_ENDED)
    assert (ended.value, _attributes(ended)) == (1, {"outcome": "completed"})
    assert active == [1, 1]
    assert [point.value for point in meter.points(metrics.RUN_ACTIVE)] == [0]


async def test_a_run_given_up_and_failed_polls_have_the_type_of_their_error(
    local: LocalTinker, meter: _Meter
) -> None:
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", times=3))
    clock = InstantClock(poll_interval_s=30.0)
    with pytest.raises(RecoveryExhausted):
        async with Supervisor(policy(), clock=clock.clock) as supervisor:
            event_sink(supervisor).emit(
                names.EVENT_POLL_ERROR, "sft", "", {names.ERROR_TYPE: "StatusUnavailable"}
            )
            event_sink(supervisor).emit(
                names.EVENT_CHECKPOINT_SAVE_FAILED, "sft", "", {names.ERROR_TYPE: "ConflictError"}
            )
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    (duration,) = meter.points(metrics.RECOVERY_DURATION)
    assert _attributes(duration)["outcome"] == "exhausted"
    assert duration.attributes["error.type"] == "RecoveryExhausted"
    (tried,) = meter.points(metrics.RECOVERY_ATTEMPT)
    assert tried.value == 3
    assert dict(tried.attributes) == {
        names.OUTCOME: "failed",
        "error.type": "RequestFailedError",
    }
    (poll,) = meter.points(metrics.POLL_ERROR)
    assert (poll.value, dict(poll.attributes)) == (1, {"error.type": "StatusUnavailable"})
    (save,) = meter.points(metrics.SAVE_ERROR)
    assert (save.value, dict(save.attributes)) == (1, {"error.type": "ConflictError"})
    (ended,) = meter.points(metrics.RUN_ENDED)
    assert ended.value == 1
    assert dict(ended.attributes) == {names.OUTCOME: "failed", "error.type": "RecoveryExhausted"}
    assert local.api_key not in str(meter.metrics())


async def test_every_metric_has_the_runs_name_where_the_policy_says_so(
    local: LocalTinker, meter: _Meter
) -> None:
    local.poison(at_step=7)
    given = policy(telemetry_run_label=True)
    async with Supervisor(given) as supervisor:
        event_sink(supervisor).emit(names.EVENT_POLL_ERROR, "labelled", "")
        event_sink(supervisor).lasts(names.EVENT_POLL_ERROR, "labelled", "", {})
        event_sink(supervisor).emit(names.EVENT_POLL_ERROR, "", "of all runs")
        event_sink(supervisor).emit(names.EVENT_CHECKPOINT_SAVE_FAILED, "labelled", "")
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, name="labelled"
        )
    rare = {
        metrics.RECOVERY_DURATION,
        metrics.RECOVERY_ATTEMPT,
        metrics.DETECTION_LAG,
        metrics.SAVE_DURATION,
        metrics.SAVE_ERROR,
        metrics.RUN_ENDED,
    }
    for name in rare:
        (point,) = meter.points(name)
        assert point.attributes[names.RUN] == "labelled", name
    assert len(meter.points(metrics.POLL_ERROR)) == 2
    (of_run,) = meter.points(metrics.POLL_ERROR, run_name="labelled")
    assert of_run.value == 2, "those of an outage that lasts as well"


def test_a_forked_child_such_as_a_loader_of_data_does_not_report_the_runs_of_its_parent(
    meter: _Meter,
) -> None:
    run = RunFigures(lambda: 0.0)
    run.segment_began(0, lambda: 5)
    metrics.RUNS.add("forking", run)
    try:
        with metrics.RUNS._lock:  # as by a thread that reads them at that moment
            child = os.fork()
            if not child:
                signal.alarm(10)
                seen = meter.points(metrics.STEP_DONE, run_name="forking")
                os._exit(len(seen) + metrics.RUNS.active())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (point,) = meter.points(metrics.STEP_DONE, run_name="forking")
        assert point.value == 5
    finally:
        metrics.RUNS.end("forking", run)


async def test_two_runs_of_one_name_are_one_series_that_never_goes_down(
    local: LocalTinker, meter: _Meter
) -> None:
    counts = []
    for _ in range(2):
        async with Supervisor(policy(), journal=None) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=2), base_model=MODEL, name="same-name"
            )
        (done,) = meter.points(metrics.STEP_DONE, run_name="same-name")
        counts.append(done.value)
    assert counts == [2, 4]
    assert local.runs()


async def test_the_names_and_units_follow_the_conventions(meter: _Meter) -> None:
    metrics.kept("sft", 3)
    metrics.recovered(kind="poisoned", outcome="recovered", duration_s=1.0, error=None)
    assert provider_of_instruments() is meter_provider()
    for name, metric in meter.metrics().items():
        assert re.fullmatch(r"tinker_recovery(\.[a-z_]+)+", name)
        assert not name.endswith("s")
        assert metric.unit in {"s", "1"} or re.fullmatch(r"\{[a-z]+[^s]\}", metric.unit)
        assert metric.description.endswith(".")
