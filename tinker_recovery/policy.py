"""The user's decisions: when to save, when to recover, how often, and from what.

Frozen pydantic models. Durations are floats in seconds and named ``*_s``. A bad value is refused
at construction with a ``pydantic.ValidationError`` naming the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    field_validator,
    model_validator,
)
from tinker import types

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A duration in seconds: finite and above zero."""

Callback = Callable[..., object]
"""A sync or async callable; what it returns is ignored, what it raises is logged."""

Retryable = type[BaseException] | Callable[[BaseException], bool]
"""An exception class, or a predicate over one exception."""

CREATE_TIMEOUT_S = 1200.0
"""How long a client is waited for without a word of the service, by default."""

CANARY_TOKENS = 4096
"""The most tokens a canary may have: it is asked often, so it has to be cheap."""

_CHECKPOINT_STRATEGY = re.compile(r"latest|best|step:[0-9]+|tinker://[^/\s]+/weights/[^/\s]+")


class _Frozen(BaseModel):
    # Defaults are validated too, so that one that breaks its own rule is found in tests.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class CheckpointPolicy(_Frozen):
    """When a supervised run saves checkpoints (weights and optimizer), and which it keeps.

    A save is queued between the optimizer step it contains and the next training request, so the
    step number stored with a checkpoint is exact at any pipeline depth, and the loop is never
    blocked.

    While the run trains, saves of this schedule that no rule keeps are deleted, and no others.
    Never deleted, whatever the rules say, are the newest valid one, the one recovered from, those
    not yet known to be sound, pinned and published ones, and anything not known to be ours.

    Attributes:
        strategy: ``"steps"``: save every ``save_every`` optimizer steps. ``"epoch"``: every
            ``save_every`` epochs, as the loop reports them. ``"best"``: whenever ``best_metric``
            is better than in every save so far. ``"last"``: as ``"steps"``, and keep only the
            newest, whatever ``keep_last`` is (and the best, with ``save_best``). ``"all"``: as
            ``"steps"``, and delete nothing. ``"auto"``: at the interval that wastes the least time
            given the measured cost of saves and rate of failures (Young 1974, Daly 2006). Until an
            epoch has ended or the metric was reported, ``"epoch"`` and ``"best"`` save as
            ``"steps"``, every 100 and every ``save_every`` steps, and say so once.
        save_every: Optimizer steps (or epochs) between two checkpoints, counted from the run's
            step 0. With ``"epoch"`` the default is 1.
        save_every_s: Also save when this many seconds have passed since the last save, or None.
        save_at_steps: Also save at these steps.
        save_at_start: Also save before the loop's first request: starting over then means going
            back to that, which is exact where the service does not honour the seed. It is also how
            a service that refuses metadata is found out before any step is lost.
        save_at_end: Also save the last step of the loop.
        save_on_stop_s: On Ctrl-C or SIGTERM, save the last step before stopping, for at most this
            many seconds; None to stop at once. A second signal stops at once, too.
        on_save_failure: What to do if saving keeps failing. ``"continue"``: train on, try again at
            each step, and say at growing intervals what is at stake. ``"stop"``: end the run with
            the error of the third failed save in a row.
        keep_last: How many of the newest checkpoints to keep. 0 requires another rule that keeps.
        keep_best: How many of the best to keep, with ``save_best``.
        keep_every: Keep checkpoints at a multiple of this many steps for ever, or None.
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
        format: The service stores safetensors, and nothing else.
        push_to_hub: The service has no such call, so only False is allowed.
    """

    strategy: Literal["steps", "epoch", "best", "last", "all", "auto"] = "steps"
    save_every: Annotated[int, Field(ge=1)] = 100
    save_every_s: Seconds | None = None
    save_at_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    save_at_start: bool = True
    save_at_end: bool = True
    save_on_stop_s: Seconds | None = 30.0
    on_save_failure: Literal["continue", "stop"] = "continue"
    keep_last: Annotated[int, Field(ge=0)] = 5
    keep_best: Annotated[int, Field(ge=1)] = 1
    keep_every: Annotated[int, Field(ge=1)] | None = None
    keep_if: Callable[[Any], bool] | None = None
    save_best: bool = True
    best_metric: Annotated[str, Field(min_length=1)] = "loss"
    best_mode: Literal["min", "max"] = "min"
    ttl_s: Annotated[float, Field(ge=3600, le=10 * 365 * 86_400)] | None = None
    verify_deep: bool = False
    delete_user_saves: bool = False
    max_deletes_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    auto_mtbf_s: Seconds = 12 * 3600.0
    auto_min_steps: Annotated[int, Field(ge=1)] = 1
    auto_max_steps: Annotated[int, Field(ge=1)] = 10_000
    format: Literal["safetensors"] = "safetensors"
    push_to_hub: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _epochs_are_saved_one_by_one(cls, given: object) -> object:
        # A hundred steps is a sensible default, a hundred epochs is not.
        if isinstance(given, dict) and given.get("strategy") == "epoch":
            return {"save_every": 1, **given}
        return given

    @model_validator(mode="after")
    def _something_is_kept(self) -> Self:
        others = (self.keep_every, self.keep_if)
        if self.keep_last == 0 and not self.save_best and others == (None, None):
            raise ValueError(
                "keep_last=0 with save_best=False and no keep_every or keep_if would keep nothing: "
                "set one of them"
            )
        if self.keep_last == 0 and self.strategy == "last":
            raise ValueError(
                "keep_last=0 contradicts strategy='last', which keeps the newest: omit it, or use "
                "strategy='steps'"
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


class RecoveryPolicy(_Frozen):
    """How a run is recovered from faults.

    Attributes:
        enabled: False observes and reports, and recovers nothing.
        max_attempts: Recoveries to try before giving up. The count restarts once a checkpoint newer
            than the one recovered from has been saved.
        backoff_s: Seconds before the second attempt; grows with each further one. The first
            attempt of an incident starts at once.
        max_backoff_s: Upper limit of that delay, before jitter. At least ``backoff_s``.
        backoff_type: How the delay grows: ``"exponential"`` doubles it, ``"linear"`` adds
            ``backoff_s``, ``"constant"`` leaves it.
        max_wait_s: How long one incident may wait for a service that asks for patience (429, no
            capacity), or is at work on a client, before the run is given up: a day by default.
            Such waits use up no attempt, and are reported at growing intervals (the event
            ``recovery.waiting``).
        backoff_jitter: Each delay is lengthened by a random share of up to this much (0.1 is 10 %),
            never shortened, so that many runs of one incident do not retry at the same time.
        max_concurrent_recoveries: The most recoveries at once. Those with the fewest attempts left
            go first, then those with the oldest fault; one in backoff takes no slot. In a mass
            incident one run is recovered first, and the others follow.
        retryable_errors: Exception classes, or predicates over an exception, to recover from as
            well, whoever raises them. They are checked before the fault table.
        poll_interval_s: Seconds between two reads of a run's status.
        stall_after_s: Submitted work without progress for this long is a fault. A capacity pause
            that the service reports, and time in which nothing is submitted, do not count. Choose
            more than your longest step takes; None for no such fault.
        stall_warn_after_s: Log a warning after this long without progress. At most
            ``stall_after_s``; None for a third of that.
        guard_loss: Whether a loss that becomes NaN or infinite is a fault. Checkpoints saved since
            then are not recovered from.
        on_repeated_fault: What to do when a step faults again right after its recovery:
            ``"retry"`` until the attempts are used up, or ``"skip_step"``: ``attempt.skip(step)``
            returns True for that step, once, so that the loop can leave it out.
        on_skip: Called as ``on_skip(step, error)`` when a step is about to be skipped.
        canary: A small fixed batch, whose logprobs tell which weights the service has. They are
            recorded with each checkpoint, and compared after each restore and each outage: a wrong
            restore is not used, and weights that the service lost in an outage are detected.
            ``"auto"`` takes up to 64 tokens of the loop's own first batch, and no canary where that
            has images; None has none. Costs one forward pass per checkpoint and check, and three
            at the beginning: by how much the answers for the same weights differ is the service's
            noise, and what that may explain is no reason to reject anything.
        canary_tolerance: The largest difference of a logprob that counts as equal, whatever the
            noise.
        on_outage: What to do after an outage if nothing can tell whether the service has kept the
            weights: there is no canary, its answer lies within the noise, or requests were under
            way. ``"recover"``: where the service may have been restarted, go back to the newest
            checkpoint from before the outage, which is exact and costs the steps since then.
            ``"warn"``: carry on, with the event ``recovery.weights_unknown``. What counts as a
            possible restart is in ``docs/canary.md``.
        checkpoint_strategy: What to recover from. ``"latest"``: the checkpoint with the most steps.
            ``"best"``: the best by ``checkpoints.best_metric``. ``"step:N"``: the one with N
            optimizer steps. Or a ``tinker://RUN/weights/NAME`` path. With the first two, a bad
            checkpoint is rejected for good, and the next in order is used.
        restore_optimizer: True restores the optimizer's moments with the weights, which makes a
            recovery exact. False restarts the optimizer from zero.
        verify_optimizer: Whether to find out, once for each service and in the background of the
            first run with a ``base_model``, if its restore with optimizer is real (see
            ``tinker-recovery doctor``), and to warn if it is not: in the log, and with the event
            ``recovery.optimizer_not_restored``. Costs four sessions and a few hundred tokens;
            training does not wait for it.
        on_recovery: Called as ``on_recovery(old_client, new_client, checkpoint)`` before the loop
            runs again; ``checkpoint`` is None when the run starts over.
        on_failure: Called as ``on_failure(run_id, error)`` when a run is given up.
        checkpoints: When to save, and what to keep.
        create_timeout_s: How long a recovery waits for a new client (and again for the canary's
            answer on it) without a word of the service that it is at work on it; while it says so
            ("try again", a capacity pause), waiting continues, for up to ``max_wait_s``. A deadline
            that is missed uses up no attempt, and is twice as long at the next try of the incident,
            up to eight times. The first client of a run is waited for without a limit, as without
            supervision.
        standby_session: Keep one session open for the next recovery, beside those of the runs: it
            saves opening one on a service in trouble. One per Supervisor; costs a heartbeat every
            10 s. If the service has forgotten it, a new one is opened as usual.
        status_timeout_s: Deadline for one read of a run's status or checkpoints.
        close_timeout_s: Deadline for closing a client, for a loop to leave its body after a fault,
            and for an async callback.
        recall_bytes: Most bytes of what ``attempt.recall`` keeps of a run, in files beside the
            journal: beyond it, what was kept first is dropped. 0 keeps nothing.
    """

    enabled: bool = False
    max_attempts: Annotated[int, Field(ge=1)] = 3
    backoff_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    max_backoff_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    backoff_type: Literal["exponential", "linear", "constant"] = "exponential"
    max_wait_s: Seconds = 86_400.0
    backoff_jitter: Annotated[float, Field(ge=0, le=1)] = 0.1
    max_concurrent_recoveries: Annotated[int, Field(ge=1)] = 8
    retryable_errors: tuple[Retryable, ...] = ()
    poll_interval_s: Seconds = 30.0
    stall_after_s: Seconds | None = 900.0
    stall_warn_after_s: Seconds | None = None
    guard_loss: bool = False
    on_repeated_fault: Literal["retry", "skip_step"] = "retry"
    on_skip: Callback | None = None
    canary: tuple[InstanceOf[types.Datum], ...] | Literal["auto"] | None = Field(
        default="auto", repr=False
    )
    canary_tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    on_outage: Literal["recover", "warn"] = "recover"
    checkpoint_strategy: str = "latest"
    restore_optimizer: bool = True
    verify_optimizer: bool = False
    on_recovery: Callback | None = None
    on_failure: Callback | None = None
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    create_timeout_s: Seconds = CREATE_TIMEOUT_S
    standby_session: bool = False
    status_timeout_s: Seconds = 10.0
    close_timeout_s: Seconds = 10.0
    recall_bytes: Annotated[int, Field(ge=0)] = 512 * 2**20

    @field_validator("checkpoint_strategy")
    @classmethod
    def _strategy_is_known(cls, value: str) -> str:
        if _CHECKPOINT_STRATEGY.fullmatch(value):
            return value
        raise ValueError(
            f"checkpoint_strategy={value!r} is not known: use 'latest', 'best', 'step:N' with a "
            "number of optimizer steps, or a checkpoint's path, 'tinker://RUN/weights/NAME'"
        )

    @model_validator(mode="after")
    def _backoff_is_ordered(self) -> Self:
        if self.max_backoff_s < self.backoff_s:
            raise ValueError(
                f"max_backoff_s={self.max_backoff_s:g} is below backoff_s={self.backoff_s:g}: it "
                "has to be at least as large"
            )
        return self

    @field_validator("retryable_errors", mode="before")
    @classmethod
    def _retryable_is_a_test(cls, value: object) -> object:
        given = value if isinstance(value, (tuple, list, set, frozenset)) else (value,)
        for named in given:
            a_class = isinstance(named, type)
            if not callable(named) or (a_class and not issubclass(named, BaseException)):
                raise ValueError(f"{named!r} is not allowed: use an exception class or a predicate")
            if a_class and not issubclass(named, Exception):
                raise ValueError(
                    f"{named!r} is not allowed: it ends programs, and is never recovered from"
                )
        return value if isinstance(value, (tuple, list)) else (value,)

    @field_validator("canary")
    @classmethod
    def _canary_is_small(
        cls, value: tuple[types.Datum, ...] | Literal["auto"] | None
    ) -> tuple[types.Datum, ...] | Literal["auto"] | None:
        if value is not None and value != "auto":
            if any(
                not isinstance(chunk, types.EncodedTextChunk)
                for datum in value
                for chunk in datum.model_input.chunks
            ):
                raise ValueError(
                    "canary has images: services answer the same image differently each time, so "
                    "use text alone, canary='auto', or None"
                )
            tokens = sum(datum.model_input.length for datum in value)
            if not 0 < tokens <= CANARY_TOKENS:
                raise ValueError(
                    f"canary has {tokens} tokens: between 1 and {CANARY_TOKENS} are allowed"
                )
        return value

    @model_validator(mode="after")
    def _stall_is_ordered(self) -> Self:
        warn, stall = self.stall_warn_after_s, self.stall_after_s
        if warn is not None and stall is not None and warn > stall:
            raise ValueError(
                f"stall_warn_after_s={warn:g} is above stall_after_s={stall:g}: the warning has to "
                "come first"
            )
        return self

    @property
    def stall_warning_s(self) -> float | None:
        """Seconds without progress before the warning: as set, or a third of ``stall_after_s``."""
        if self.stall_warn_after_s is not None or self.stall_after_s is None:
            return self.stall_warn_after_s
        return self.stall_after_s / 3

    def create_deadline_s(self, missed: int) -> float:
        """Seconds to wait for a client without a word of the service.

        Args:
            missed: How often this incident has missed such a deadline.
        """
        return self.create_timeout_s * 2.0 ** min(missed, 3)

    def backoff_before(self, attempt: int, random: float) -> float:
        """Seconds to wait before an attempt: growing, capped, lengthened by jitter.

        Args:
            attempt: 1 for the first attempt of an incident, which does not wait.
            random: A number in [0, 1) that decides the jitter.
        """
        if attempt <= 1:
            return 0.0
        match self.backoff_type:
            case "exponential":
                # Bounded so that a large attempt number cannot overflow a float.
                growth = 2.0 ** min(attempt - 2, 64)
            case "linear":
                growth = attempt - 1.0
            case "constant":
                growth = 1.0
        delay = min(self.max_backoff_s, self.backoff_s * growth)
        return delay * (1.0 + self.backoff_jitter * random)
