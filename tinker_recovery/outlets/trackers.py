"""Experiment trackers: each shows the branch of a run that counts, also after a recovery.

A recovery goes back to an earlier step, and what was reported from there on is reported again. Each
kind of tracker is used in the way in which that replaces what was abandoned:

=============== =================================================================================
TensorBoard     is sent its own mark of a restart, which hides what comes after that step; not
                where several runs are written to it, whose steps it would hide as well
wandb           refuses a step that goes back, so none is passed: the step is a metric, and the
                axis of the others (``define_metric``)
mlflow, trackio keep every value of a step, newest last
log_metrics     gets ``(metrics, step)``, and the step goes back
=============== =================================================================================

Of these only TensorBoard can forget what it was given. :class:`WhenSaved` gives a tracker each
point once a checkpoint behind it is stored, so that it never gets one that is abandoned.

Each point has the number of its attempt, so that points of an abandoned branch can be left out
where a tracker keeps them: of two points of a step, the one with the larger number counts.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

from tinker_recovery.errors import UsageError
from tinker_recovery.outlets.worker import Worker
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

STEP: Final = "tinker_recovery/step"
ATTEMPT: Final = "tinker_recovery/attempt"
RECOVERIES: Final = "tinker_recovery/recoveries"

_WAITING: Final = 10_000
"""How many points may wait for a tracker."""

_MLFLOW_BATCH: Final = 1000
"""How many metrics a call of mlflow's may have."""


class MetricsLogger(Protocol):
    """Anything with ``log_metrics``, such as the loggers of the tinker-cookbook."""

    def log_metrics(self, metrics: dict[str, Any], step: int) -> object:
        """Log the metrics of a step."""
        ...


@dataclass(frozen=True, slots=True)
class Point:
    """What the loop reported of one step.

    Attributes:
        run: The name of its run.
        step: The step, from 0.
        metrics: What was reported.
        attempt: The number of the attempt, from 1.
        start_step: Where that attempt began.
        recoveries: How often the run was recovered so far.
    """

    run: str
    step: int
    metrics: Mapping[str, float]
    attempt: int
    start_step: int
    recoveries: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is stored.

    Attributes:
        run: The name of its run.
        step: How many steps it holds.
    """

    run: str
    step: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A run is over.

    Attributes:
        run: Its name.
    """

    run: str


Item = Point | Saved | Ended


class WhenSaved:
    """A tracker that gets each point once a checkpoint behind it is stored, or the run is over.

    For ``Supervisor(trackers=[WhenSaved(wandb.init())])``: for trackers that cannot forget, such as
    wandb and MLflow. What a fault makes the run do again they get once, and the curve is the branch
    that counts alone. It is late by the time between two checkpoints.

    Args:
        tracker: As in ``trackers=``.
    """

    def __init__(self, tracker: object) -> None:
        self.tracker = tracker


class _Held:
    """The points that no checkpoint is behind yet."""

    def __init__(self) -> None:
        self._points: dict[str, deque[Point]] = defaultdict(deque)
        self._saved: dict[str, int] = {}
        self._attempts: dict[str, int] = {}

    def due(self, item: Item) -> Iterable[Point]:
        """The points to be written now that this is known."""
        points = self._points[item.run]
        if isinstance(item, Point):
            if item.attempt != self._attempts.get(item.run, item.attempt):
                while points and points[-1].step >= item.start_step:
                    points.pop()  # abandoned
                self._saved[item.run] = item.start_step
            self._attempts[item.run] = item.attempt
            points.append(item)
        elif isinstance(item, Saved):
            self._saved[item.run] = max(item.step, self._saved.get(item.run, 0))
        saved = math.inf if isinstance(item, Ended) else self._saved.get(item.run, 0)
        while points and (points[0].step < saved or len(points) > _WAITING):
            yield points.popleft()
        if isinstance(item, Ended):
            for kept in (self._points, self._saved, self._attempts):
                kept.pop(item.run, None)

    def rest(self) -> Iterable[Point]:
        """All that are left."""
        for points in self._points.values():
            while points:
                yield points.popleft()


class _Tracker:
    """Writes points to one tracker; used by one thread.

    Args:
        to: The tracker.
        when_saved: See :class:`WhenSaved`.
    """

    def __init__(self, to: Any, *, when_saved: bool = False) -> None:
        self._to = to
        self._held = _Held() if when_saved else None
        self._only_run: str | None = None
        self._several = False
        self._attempts: dict[str, int] = {}

    def take(self, things: Sequence[Item]) -> None:
        """Write the points that are due, oldest first."""
        try:
            self._write(point for item in things for point in self._due(item))
        finally:
            for item in things:
                if isinstance(item, Ended):
                    self._attempts.pop(item.run, None)

    def _due(self, item: Item) -> Iterable[Point]:
        if self._held is not None:
            return self._held.due(item)
        return [item] if isinstance(item, Point) else []

    def _write(self, points: Iterable[Point]) -> None:
        """Write points. One that fails keeps none behind it from being written."""
        failed: BaseException | None = None
        for point in points:
            prefix = self._prefix(point.run)
            before = self._attempts.get(point.run, 1)
            self._attempts[point.run] = point.attempt
            own = {ATTEMPT: float(point.attempt), RECOVERIES: float(point.recoveries)}
            metrics = {f"{prefix}{name}": each for name, each in {**point.metrics, **own}.items()}
            calls = [functools.partial(self.log, metrics, point.step, prefix)]
            if point.attempt != before:
                calls.insert(0, functools.partial(self.rewind, point.start_step, prefix))
            for call in calls:
                try:
                    call()
                except BaseException as error:  # noqa: BLE001 - raised below, when the others are written
                    failed = error
        self.flush()
        if failed is not None:
            raise failed

    def _prefix(self, run: str) -> str:
        """The first run's metrics are named as they were reported, those of others by their run."""
        self._only_run = self._only_run or run
        self._several |= run != self._only_run
        return "" if run == self._only_run else f"{run}/"

    def rewind(self, step: int, prefix: str) -> None:
        """What was written of this step and later ones, under this prefix, does not count."""

    def log(self, metrics: Mapping[str, float], step: int, prefix: str) -> None:
        """Write the metrics of a step."""
        del prefix
        self._to.log_metrics(dict(metrics), step=step)

    def flush(self) -> None:
        """Have what was gathered written."""

    def close(self) -> None:
        """Nothing more is to come from us. The tracker is the user's, and stays open."""
        if self._held is not None:
            self._write(self._held.rest())


class _Wandb(_Tracker):
    """A run of Weights & Biases."""

    def __init__(self, to: Any, *, when_saved: bool = False) -> None:
        super().__init__(to, when_saved=when_saved)
        self._defined: set[str] = set()

    def log(self, metrics: Mapping[str, float], step: int, prefix: str) -> None:
        axis = f"{prefix}{STEP}"
        for name in (axis, *metrics):
            if name not in self._defined:
                self._defined.add(name)
                # One by one: a pattern would change the axis of what the user logs as well.
                self._to.define_metric(
                    name, **({"hidden": True} if name == axis else {"step_metric": axis})
                )
        self._to.log({**metrics, axis: step})


class _Trackio(_Tracker):
    """A run of trackio."""

    def log(self, metrics: Mapping[str, float], step: int, prefix: str) -> None:
        del prefix
        self._to.log(dict(metrics), step=step)


class _Mlflow(_Tracker):
    """A run of mlflow, written by its id: which run is active is a matter of each thread."""

    def __init__(self, to: Any, *, when_saved: bool = False) -> None:
        super().__init__(to, when_saved=when_saved)
        mlflow = importlib.import_module("mlflow")
        self._client = mlflow.MlflowClient()
        self._metric = importlib.import_module("mlflow.entities").Metric
        self._gathered: list[Any] = []
        self._now_ms = 0

    def log(self, metrics: Mapping[str, float], step: int, prefix: str) -> None:
        del prefix
        # Of the values of a step, the one with the latest time is the newest.
        now = self._now_ms = max(self._now_ms + 1, int(time.time() * 1000))
        self._gathered += [self._metric(name, value, now, step) for name, value in metrics.items()]

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        for at in range(0, len(gathered), _MLFLOW_BATCH):
            self._client.log_batch(self._to.info.run_id, gathered[at : at + _MLFLOW_BATCH])


class _TensorBoard(_Tracker):
    """A SummaryWriter, of torch or of tensorboardX."""

    def rewind(self, step: int, prefix: str) -> None:
        if prefix or self._several:
            return  # the mark would hide the steps of the other runs as well
        home = _home_of(self._to)
        proto = "tensorboardX.proto" if home == "tensorboardX" else "tensorboard.compat.proto"
        events = importlib.import_module(f"{proto}.event_pb2")
        # What `SummaryWriter(purge_step=...)` writes, which takes it only for a new file.
        writer = self._to._get_file_writer()  # noqa: SLF001 - there is no other way to add an event
        started = events.SessionLog(status=events.SessionLog.START)
        writer.add_event(events.Event(step=step, session_log=started))

    def log(self, metrics: Mapping[str, float], step: int, prefix: str) -> None:
        del prefix
        for name, value in metrics.items():
            self._to.add_scalar(name, value, step)

    def close(self) -> None:
        super().close()
        self._to.flush()


def trackers_by(given: Iterable[object]) -> Sequence[Worker[Item]]:
    """What writes to each of ``trackers=``.

    Raises:
        UsageError: One of them is not of a kind that is known.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UsageError(f"trackers={given!r} is not allowed: a list of trackers")
    workers = []
    for at, each in enumerate(given):
        when_saved = isinstance(each, WhenSaved)
        inner = each.tracker if isinstance(each, WhenSaved) else each
        for kind, one in _trackers_of(f"trackers[{at}]", inner):
            tracker = kind(one, when_saved=when_saved)
            what = f"trackers[{at}] ({type(one).__qualname__})"
            workers.append(Worker(what, tracker.take, most=_WAITING, at_end=tracker.close))
    return workers


def _trackers_of(name: str, given: object) -> Iterable[tuple[type[_Tracker], Any]]:
    """The trackers behind what was given, each with how it is written to."""
    if isinstance(given, ModuleType):
        given = _active_run(name, given)
    home = _home_of(given)
    if home == "wandb" and hasattr(given, "define_metric"):
        yield _Wandb, given
    elif home == "mlflow" and hasattr(given, "info"):
        yield _Mlflow, given
    elif home == "trackio" and hasattr(given, "log"):
        yield _Trackio, given
    elif hasattr(given, "add_scalar") and hasattr(given, "_get_file_writer"):
        yield _TensorBoard, given
    elif callable(getattr(given, "log_metrics", None)):
        inner = getattr(given, "loggers", None)
        run = getattr(given, "run", None)
        if isinstance(inner, list) and inner:  # the cookbook's MultiplexLogger
            for one in inner:
                yield from _trackers_of(name, one)
        elif _home_of(run) == "wandb" and hasattr(run, "define_metric"):
            yield _Wandb, run  # its WandbLogger passes the step
        else:
            yield _Tracker, given
    else:
        raise UsageError(
            f"{name}, a {type(given).__qualname__}, is not allowed: an object with "
            "log_metrics(metrics, step), a run of wandb, mlflow or trackio, or a SummaryWriter"
        )


def _active_run(name: str, module: ModuleType) -> object:
    """The run under way of a tracker's module."""
    run = None
    if module.__name__ == "wandb":
        run = module.run
    elif module.__name__ == "mlflow":
        run = module.active_run()
    if run is None:
        raise UsageError(
            f"{name}={module.__name__} is not allowed, a module without a run under way: give the "
            "run itself, as wandb.init(), mlflow.start_run() or trackio.init() returns it"
        )
    return run


def _home_of(given: object) -> str:
    """The library that an object's class, or one that it derives from, is of."""
    known = {"wandb", "mlflow", "trackio", "tensorboardX", "torch"}
    homes = [each.__module__.partition(".")[0] for each in type(given).__mro__]
    return next((home for home in homes if home in known), "")
