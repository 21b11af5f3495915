"""The user's decisions about checkpoints: when to save, and what to keep.

Frozen pydantic models. Durations are floats in seconds and named ``*_s``. A bad value is refused
at construction with a ``pydantic.ValidationError`` naming the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol, Self, runtime_checkable

from pydantic import (
    Field,
    InstanceOf,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from tinker_recovery.fields import Frozen, Number, Seconds, Switch, Whole


@runtime_checkable
class Decides(Protocol):
    """What decides when to save: :class:`~tinker_recovery.checkpoints.Schedule`."""

    def decide(self, moment: Any, /) -> Any:
        """A :class:`~tinker_recovery.checkpoints.Decision`."""
        ...


@runtime_checkable
class Keeps(Protocol):
    """What decides what to keep: :class:`~tinker_recovery.checkpoints.Retention`."""

    def keep(self, newest_first: Any, /) -> Any:
        """The paths to keep, each with its reason."""
        ...


Format = Literal["safetensors", "pytorch", "gguf"]
Publish = Literal["end", "best", "each"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

Strategy = Literal["steps", "epoch", "best", "last", "all", "auto"]
_DELETING: tuple[Strategy, ...] = ("steps", "epoch", "best", "last", "auto")
_USED_BY: dict[str, tuple[Strategy, ...]] = {
    "save_every": ("steps", "epoch", "last", "all"),
    "keep_last": ("steps", "epoch", "best", "auto"),
    "keep_best": _DELETING,
    "keep_every": _DELETING,
    "keep_if": _DELETING,
    "save_best": _DELETING,
    "delete_user_saves": _DELETING,
    "max_deletes_per_s": _DELETING,
    "auto_mtbf_s": ("auto",),
    "auto_min_steps": ("auto",),
    "auto_max_steps": ("auto",),
    "auto_max_s": ("auto",),
}
"""The strategies that use a setting; what is not named here is used by all of them."""


class CheckpointPolicy(Frozen):
    """When a supervised run saves checkpoints (weights and optimizer), and which it keeps.

    A save is queued between the optimizer step it contains and the next training request, so the
    step number stored with a checkpoint is exact at any pipeline depth, and the loop is never
    blocked.

    While the run trains, saves of this schedule that no rule keeps are deleted, and no others.
    Never deleted, whatever the rules say, are the newest valid one, the one recovered from, those
    not yet known to be sound, pinned and published ones, and anything not known to be ours.

    Attributes:
        strategy: ``"auto"``, the default: at the interval that wastes the least time given the
            measured cost of saves and rate of failures (Young 1974, Daly 2006). ``"steps"``: save
            every ``save_every`` optimizer steps; the default where ``save_every`` is set.
            ``"epoch"``: every ``save_every`` epochs, as the loop reports them. ``"best"``: whenever
            ``best_metric`` is better than in every save so far. ``"last"``: as ``"steps"``, and
            keep only the newest (and the best, with ``save_best``). ``"all"``: as ``"steps"``, and
            delete nothing. Until an epoch has ended or the metric was reported, ``"epoch"`` and
            ``"best"`` save every 100 steps, and say so once. What a strategy does not use is
            refused if it is set.
        schedule: Instead of the strategy's interval: any object with ``decide(moment)``, such as
            ``AnyOf(EverySteps(20), EveryEpochs(1))`` of :mod:`tinker_recovery.checkpoints`; see
            :class:`~tinker_recovery.checkpoints.Schedule`. Asked behind each optimizer step, in the
            thread that submits it, so it has to be quick. Where it fails, a warning says so once,
            and every 100 steps are saved.
        save_every: Optimizer steps (or epochs) between two checkpoints, counted from the run's
            step 0. 100 by default, and 1 with ``"epoch"``. Not with ``"best"`` or ``"auto"``.
        save_every_s: Also save when this many seconds have passed since the last save, or None.
        save_at_steps: Also save at these steps.
        save_at_start: Also save before the loop's first request: starting over then means going
            back to that, which is exact where the service does not honour the seed. It is also how
            a service that refuses metadata is found out before any step is lost.
        save_at_end: Also save the last step of the loop.
        save_on_stop_s: On Ctrl-C, SIGTERM or ``Supervisor.stop()``, save the last step before
            stopping, for at most this many seconds; None to stop at once. A second signal stops at
            once, too.
        max_saves_in_flight: The most saves at once. The service carries them out one behind the
            other; what is due while so many are under way is left out, and a warning says so.
        on_save_failure: What to do if saving keeps failing. ``"continue"``: train on, try again at
            each step, and say at growing intervals what is at stake. ``"stop"``: end the run with
            the error of the third failed save in a row. A save that the service refuses (HTTP
            403, 413, ...) or leaves unanswered while it answers all else costs a client, so after
            two in a row none is asked for any more, or the run is ended.
        retention: Instead of the rules below: any object with ``keep(newest_first)``, such as
            ``KeepAny(KeepLast(3), KeepEvery(1000))``; see
            :class:`~tinker_recovery.checkpoints.Retention`. While it fails, nothing is deleted.
        keep_last: How many of the newest checkpoints to keep. 0 requires another rule that keeps.
        keep_best: How many of the best to keep, with ``save_best``.
        keep_every: Keep the first checkpoint at or after each multiple of this many steps for ever,
            or None.
        keep_if: Also keep those for which this function of a
            :class:`~tinker_recovery.CheckpointRecord` is true. While it raises, nothing is deleted.
        save_best: Whether to keep the best of the saved checkpoints. It causes no additional save:
            that is ``strategy="best"``.
        best_metric: The metric that ``save_best`` and ``"best"`` compare.
        best_mode: Whether a smaller (``"min"``) or larger (``"max"``) metric is better.
        ttl_s: Lifetime of each checkpoint in seconds, an hour to ten years; None for no expiry. The
            checkpoint that a recovery would use is renewed in time.
        verify_deep: Whether a checkpoint's bytes have to be found whole before others are deleted
            because it exists. Costs a session and a download for each such checkpoint. Without it
            a checkpoint is trusted if it is listed, has its first size and does not expire soon.
        delete_user_saves: Whether saves that the loop itself made may be deleted, too.
        max_deletes_per_s: Most deletions per second.
        auto_mtbf_s: With ``"auto"``: mean seconds between two failures, assumed at first. Weighs as
            much as half an observed failure.
        auto_min_steps: With ``"auto"``: least steps between two saves.
        auto_max_steps: With ``"auto"``: most steps between two saves.
        auto_max_s: With ``"auto"``: most seconds between two saves, whatever was measured.
        format: What is exported, here and by ``tinker-recovery export``: an adapter in the layout
            of PEFT, as ``"safetensors"`` or ``"pytorch"``, or one for llama.cpp, ``"gguf"``. A
            recovery always uses the service's own state.
        push_to_hub: Whether checkpoints are published on a hub while the run trains, in the
            background: in the repository ``"owner/name"``, or, with True, in one of the run's name
            of whom HF_TOKEN belongs to. It is made private. HF_ENDPOINT names another hub.
        publish: Which, with ``push_to_hub``: ``"end"``, the last one when the run has ended;
            ``"best"``, each that is the best so far by ``best_metric``; ``"each"``, all of them.
        publish_timeout_s: How long leaving the Supervisor waits, at most, for what is still to be
            published. What is not done then is gone on with by the next process on this journal.
    """

    strategy: Strategy = "auto"
    schedule: InstanceOf[Decides] | None = None
    save_every: Annotated[Whole, Field(ge=1)] = 100
    save_every_s: Seconds | None = None
    save_at_steps: tuple[Annotated[Whole, Field(ge=1)], ...] = ()
    save_at_start: Switch = True
    save_at_end: Switch = True
    save_on_stop_s: Seconds | None = 30.0
    max_saves_in_flight: Annotated[Whole, Field(ge=1)] = 2
    on_save_failure: Literal["continue", "stop"] = "continue"
    retention: InstanceOf[Keeps] | None = None
    keep_last: Annotated[Whole, Field(ge=0)] = 5
    keep_best: Annotated[Whole, Field(ge=1)] = 1
    keep_every: Annotated[Whole, Field(ge=1)] | None = None
    keep_if: Callable[[Any], bool] | None = None
    save_best: Switch = True
    best_metric: Annotated[str, Field(min_length=1)] = "loss"
    best_mode: Literal["min", "max"] = "min"
    ttl_s: Annotated[Number, Field(ge=3600, le=10 * 365 * 86_400)] | None = None
    verify_deep: Switch = False
    delete_user_saves: Switch = False
    max_deletes_per_s: Annotated[Number, Field(gt=0)] = 2.0
    auto_mtbf_s: Seconds = 12 * 3600.0
    auto_min_steps: Annotated[Whole, Field(ge=1)] = 1
    auto_max_steps: Annotated[Whole, Field(ge=1)] = 10_000
    auto_max_s: Seconds = 1800.0
    format: Format = "safetensors"
    push_to_hub: Switch | Annotated[str, Field(strict=True)] = False
    publish: Publish = "end"
    publish_timeout_s: Seconds = 1800.0

    @model_validator(mode="before")
    @classmethod
    def _strategy_and_interval_go_together(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        if given.get("strategy") == "epoch":
            # A hundred steps is a sensible default, a hundred epochs is not.
            return {"save_every": 1, **given}
        if "save_every" in given and given.get("schedule") is None:
            return {"strategy": "steps", **given}
        return given

    @property
    def _unused(self) -> dict[str, str]:
        """The settings that have no effect, each with what to do instead of setting it."""
        unused = {
            name: f"with strategy={self.strategy!r}: omit it, or use strategy="
            + " or ".join(map(repr, strategies))
            for name, strategies in _USED_BY.items()
            if self.strategy not in strategies
        }
        if self.schedule is not None:
            for name in ("save_every", *(each for each in _USED_BY if each.startswith("auto_"))):
                unused[name] = "with schedule=: omit one of the two"
        if self.retention is not None:
            for name in ("keep_last", "keep_best", "keep_every", "keep_if", "save_best"):
                unused[name] = "with retention=: omit one of the two"
        if self.schedule is not None and self.strategy not in ("last", "all"):
            unused["strategy"] = "with schedule=: omit one of the two"
        elif self.retention is not None and self.strategy in ("last", "all"):
            unused["strategy"] = "with retention=: omit one of the two"
        if self.push_to_hub is False:
            for name in ("publish", "publish_timeout_s"):
                unused[name] = "with push_to_hub=False: set that, too"
        if not self.save_best:
            unused.setdefault("keep_best", "with save_best=False: omit one of the two")
        return unused

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, instead in self._unused.items():
            if name in self.model_fields_set:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect {instead}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is written can be read back: there, everything counts as set.
        return {name: value for name, value in write(self).items() if name not in self._unused}

    @field_validator("push_to_hub", mode="before")
    @classmethod
    def _is_a_repository(cls, value: object) -> object:
        if isinstance(value, bool) or (isinstance(value, str) and _REPOSITORY.fullmatch(value)):
            return value
        raise ValueError(
            f"push_to_hub={value!r} is not allowed: True, False, or a repository as 'owner/name'"
        )

    @field_validator("schedule", "retention", mode="before")
    @classmethod
    def _decides_or_keeps(cls, value: object, info: ValidationInfo) -> object:
        method, given = {
            "schedule": ("decide", "moment"),
            "retention": ("keep", "newest_first"),
        }[str(info.field_name)]
        if isinstance(value, type) and hasattr(value, method):
            raise ValueError(f"{info.field_name}={value!r} is a class: make one of it")
        if value is not None and not callable(getattr(value, method, None)):
            raise ValueError(
                f"{info.field_name}={value!r} is not allowed: an object with {method}({given})"
            )
        return value

    @model_validator(mode="after")
    def _something_is_kept(self) -> Self:
        others = (self.keep_every, self.keep_if)
        if self.keep_last == 0 and not self.save_best and others == (None, None):
            raise ValueError(
                "keep_last=0 with save_best=False and no keep_every or keep_if would keep nothing: "
                "set one of them"
            )
        return self

    @model_validator(mode="after")
    def _auto_is_ordered(self) -> Self:
        if self.auto_max_steps < self.auto_min_steps:
            raise ValueError(
                f"auto_max_steps={self.auto_max_steps} is below auto_min_steps="
                f"{self.auto_min_steps}: it has to be at least as large"
            )
        return self
