"""Trackers, through the real libraries where they are installed: each shows the branch that counts.

``pip install wandb mlflow-skinny trackio tensorboard tensorboardX`` for all of them.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from _tracked_by import STEPS, points
from loops import ADAM, MODEL, batch, quick, until

from tinker_recovery import Attempt, RecoveryPolicy, Supervisor, UsageError, WhenSaved
from tinker_recovery.outlets import outlets, trackers
from tinker_recovery.outlets.trackers import (
    ATTEMPT,
    RECOVERIES,
    STEP,
    Ended,
    Point,
    Saved,
    trackers_by,
)
from tinker_recovery.testing import LocalTinker

SCRIPT = Path(__file__).parent / "_tracked_by.py"
BRANCH = {step: (float(step) if step >= 5 else 100.0 + step) for step in range(STEPS)}
"""The branch of it that counts."""
ATTEMPTS = {step: 2.0 if step >= 5 else 1.0 for step in range(STEPS)}


class Plain:
    """As the loggers of the cookbook."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.seen.append((step, metrics))

    def branch(self, name: str = "loss") -> dict[int, float]:
        """The newest value of each step."""
        return {step: metrics[name] for step, metrics in self.seen if name in metrics}


# A whole run


async def _reporting(attempt: Attempt) -> None:
    for step in range(attempt.start_step, STEPS):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        await forward
        attempt.report(loss=attempt.number * 100.0 + step, lr=0.5)
        await update


async def test_what_the_loop_reports_is_logged_with_its_step_attempt_and_recoveries(
    local: LocalTinker,
) -> None:
    local.poison(at_step=7)
    plain = Plain()
    async with Supervisor(quick(), trackers=[plain]) as supervisor:
        await supervisor.run(_reporting, base_model=MODEL, name="sft")
        await supervisor.run(_reporting, base_model=MODEL, name="other")
    assert plain.branch() == {step: (200.0 if step >= 5 else 100.0) + step for step in range(STEPS)}
    assert plain.branch(ATTEMPT) == ATTEMPTS
    assert plain.branch(RECOVERIES) == {step: float(step >= 5) for step in range(STEPS)}
    assert plain.branch("lr")[8] == 0.5
    # A second run of the Supervisor does not write into the curve of the first.
    assert plain.branch("other/loss") == {step: 100.0 + step for step in range(STEPS)}


async def test_a_tracker_that_waits_for_checkpoints_gets_no_step_twice_however_the_run_goes_back(
    local: LocalTinker,
) -> None:
    local.poison(at_step=7)
    held, live = Plain(), Plain()
    seen: list[int] = []

    async def loop(attempt: Attempt) -> None:
        await _reporting(attempt)
        seen.extend(step for step, _ in held.seen)

    async with Supervisor(quick(), trackers=[WhenSaved(held), live]) as supervisor:
        await supervisor.run(loop, base_model=MODEL, name="sft")
    assert [step for step, _ in held.seen] == list(range(STEPS))
    assert held.branch() == live.branch()
    assert [step for step, _ in live.seen] == [*range(7), *range(5, STEPS)]
    assert seen == list(range(5)), "those behind the newest checkpoint come at the end"


async def test_a_tracker_keeps_nothing_of_a_run_that_is_over() -> None:
    tracker = trackers._Tracker(Plain(), when_saved=True)
    tracker.take([*points(), Ended("sft")])
    held = tracker._held
    assert held is not None
    assert (held._points, held._saved, held._attempts, tracker._attempts) == ({}, {}, {}, {})


async def test_points_that_wait_are_written_when_the_run_or_the_supervisor_ends() -> None:
    for last in (Ended("sft"), None):
        plain = Plain()
        (worker,) = trackers_by([WhenSaved(plain)])
        for point in points()[:7]:
            worker.put(point)
        worker.put(Saved("sft", 3))
        if last is not None:
            worker.put(last)
        await worker.finish(30.0)
        assert [step for step, _ in plain.seen] == list(range(7))


async def test_a_tracker_that_raises_is_warned_of_once_and_the_run_goes_on(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(Plain):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            super().log_metrics(metrics, step)
            raise RuntimeError("the disk is full")

    raises, other = Raises(), Plain()
    async with Supervisor(quick(), trackers=[raises, other]) as supervisor:
        await supervisor.run(_reporting, base_model=MODEL)
    assert len(raises.seen) == len(other.seen) == STEPS
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    (warning,) = [each.getMessage() for each in warnings if "trackers" in each.getMessage()]
    assert warning.startswith("trackers[0] (")
    assert "RuntimeError: the disk is full" in warning
    assert local.runs()


async def test_a_tracker_that_hangs_delays_neither_the_run_nor_for_long_the_exit(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outlets, "EXIT_S", 0.1)
    local.poison(at_step=7)
    go_on = threading.Event()

    class Hangs(Plain):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            del metrics, step
            go_on.wait(30.0)

    other = Plain()
    try:
        async with Supervisor(quick(), trackers=[Hangs(), other]) as supervisor:
            await supervisor.run(_reporting, base_model=MODEL)
            await until(lambda: other.branch().keys() == set(range(STEPS)))
        assert "has not taken what was last sent within 0.1 s" in caplog.text
    finally:
        go_on.set()


async def test_of_very_many_points_the_newest_are_kept_for_a_tracker_that_is_slow() -> None:
    go_on = threading.Event()

    class Slow(Plain):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            go_on.wait(30.0)
            super().log_metrics(metrics, step)

    slow = Slow()
    (worker,) = trackers_by([slow])
    worker.put(Point("sft", 0, {}, 1, 0, 0))
    for step in range(1, 25_000):
        worker.put(Point("sft", step, {}, 1, 0, 0))
    go_on.set()
    await worker.finish(30.0)
    assert len(slow.seen) <= 20_001
    assert slow.seen[-1][0] == 24_999


@pytest.mark.parametrize("given", [[7], [object()], ["x"], "x", 7, [SimpleNamespace(log=1)]])
def test_what_is_no_tracker_is_refused_with_what_is_allowed(given: Any) -> None:
    with pytest.raises(UsageError, match=r"trackers.* is not allowed"):
        Supervisor(RecoveryPolicy(), trackers=given)


# The real libraries


@pytest.mark.parametrize(
    ("library", "needs"),
    [
        ("wandb", "wandb"),
        ("mlflow", "mlflow, sqlalchemy"),
        ("trackio", "trackio"),
        ("tensorboardX", "tensorboardX, tensorboard"),
        ("torch", "torch, tensorboard"),
    ],
)
def test_the_newest_value_of_each_step_is_of_the_branch_that_counts(
    library: str, needs: str, tmp_path: Path
) -> None:
    for name in needs.split(", "):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install {name}")
    run = f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    code = f"import runpy, sys; sys.argv = ['', {library!r}, {str(tmp_path)!r}]; {run}"
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    assert {step: loss for step, loss, _ in rows} == BRANCH
    assert {step: attempt for step, _, attempt in rows} == ATTEMPTS
    steps = [step for step, _, _ in rows]
    if library in {"tensorboardX", "torch"}:
        assert steps == list(range(STEPS)), "the abandoned steps are hidden"
    else:
        assert steps == [*range(7), *range(5, STEPS)], "none is refused"


async def test_the_cookbooks_loggers_are_taken_apart() -> None:
    class FakeWandb:
        """Of wandb by its module alone: the real one is tried above."""

        def __init__(self) -> None:
            self.rows: list[Mapping[str, float]] = []

        def define_metric(self, name: str, **_: object) -> None:
            del name

        def log(self, row: Mapping[str, float]) -> None:
            self.rows.append(row)

    FakeWandb.__module__ = "wandb.sdk.wandb_run"

    class WandbLogger(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.run = FakeWandb()

    plain, wandb = Plain(), WandbLogger()
    both = SimpleNamespace(loggers=[plain, wandb], log_metrics=lambda *_: None)
    for worker in trackers_by([both]):
        for point in points():
            worker.put(point)
        await worker.finish(30.0)
    assert plain.branch() == BRANCH
    assert wandb.seen == [], "it would pass on the step, and wandb would drop the row"
    assert {row[STEP]: row["loss"] for row in wandb.run.rows} == BRANCH


def test_a_module_stands_for_its_run_under_way_and_needs_one() -> None:
    module = ModuleType("mlflow")
    module.log_metrics = module.active_run = lambda *_: None  # type: ignore[attr-defined]  # made up
    with pytest.raises(UsageError, match="a module without a run under way: give the run itself"):
        trackers_by([module])


async def test_a_tracker_that_cannot_rewind_gets_all_points_all_the_same() -> None:
    class Writer:
        def __init__(self) -> None:
            self.written: dict[tuple[str, int], float] = {}

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.written[name, step] = value

        def _get_file_writer(self) -> object:
            raise AttributeError

        def flush(self) -> None:
            """Nothing."""

    writer = Writer()
    (worker,) = trackers_by([writer])
    for point in points():
        worker.put(point)
    await worker.finish(30.0)
    assert {step: writer.written["loss", step] for step in range(STEPS)} == BRANCH


async def test_a_run_that_goes_back_hides_no_steps_of_another_in_the_same_tensorboard() -> None:
    pytest.importorskip("tensorboardX")

    class Writer:
        """Of tensorboardX by its module alone."""

        def __init__(self) -> None:
            self.hidden_from: list[int] = []

        def add_scalar(self, *_: object) -> None:
            """Written."""

        def _get_file_writer(self) -> object:
            return SimpleNamespace(add_event=lambda event: self.hidden_from.append(event.step))

        def flush(self) -> None:
            """Nothing."""

    Writer.__module__ = "tensorboardX.writer"
    alone, shared = Writer(), Writer()
    other = [Point("other", step, {"loss": 0.0}, 1, 0, 0) for step in range(STEPS)]
    for writer, given in ((alone, points()), (shared, [*points()[:7], *other, *points()[7:]])):
        (worker,) = trackers_by([writer])
        for point in given:
            worker.put(point)
        await worker.finish(30.0)
    assert alone.hidden_from == [5]
    assert shared.hidden_from == [], "TensorBoard hides what comes after a step of all its curves"


async def test_where_no_thread_can_be_started_the_tracker_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    plain = Plain()
    (worker,) = trackers_by([plain])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        for point in points():
            worker.put(point)
    await worker.finish(30.0)
    assert plain.seen == []
    (warning,) = caplog.records
    assert "is left out: no further thread can be started" in warning.getMessage()


async def test_a_run_of_trackio_is_known_by_its_class_and_other_things_that_log_are_not() -> None:
    class Logs:
        def __init__(self) -> None:
            self.rows: list[tuple[int, dict[str, float]]] = []

        def log(self, metrics: dict[str, float], step: int) -> None:
            self.rows.append((step, metrics))

        define_metric = add_scalar = log

    with pytest.raises(UsageError, match=r"trackers\[0\], a .*Logs, is not allowed"):
        trackers_by([Logs()])
    Logs.__module__ = "trackio.run"
    run = Logs()
    (worker,) = trackers_by([run])
    for point in points():
        worker.put(point)
    await worker.finish(30.0)
    assert {step: metrics["loss"] for step, metrics in run.rows} == BRANCH
