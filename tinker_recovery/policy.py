"""The user's decisions: when to save, when to recover, how often, and from what.

Frozen pydantic models. Durations are floats in seconds and named ``*_s``. A bad value is refused
at construction with a ``pydantic.ValidationError`` naming the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal, Self, assert_never

from pydantic import Field, InstanceOf, field_validator, model_validator
from tinker import types

from tinker_recovery.checkpoint_policy import CheckpointPolicy
from tinker_recovery.costs import PriceTable
from tinker_recovery.fields import Frozen, Number, Seconds, Switch, Whole

BackoffType = Literal["exponential", "linear", "constant"]
"""How a delay grows with each try."""

Callback = Callable[..., object]
"""A sync or async callable; what it returns is ignored, what it raises is logged."""

Retryable = type[BaseException] | Callable[[BaseException], bool]
"""An exception class, or a predicate over one exception."""

CREATE_TIMEOUT_S = 1200.0
"""How long a client is waited for without a word of the service, by default."""

STALL_S = (300.0, 1800.0)
"""The least and the most seconds of silence that are a fault where no number is given. Services
call up to 15 silent minutes normal, and a freeze of 20 has healed itself."""

STALL_FACTOR = 20.0
"""Silence is a fault after this many times as long as slow requests take, within those bounds."""

CANARY_TOKENS = 4096
"""The most tokens a canary may have: it is asked often, so it has to be cheap."""
_CHECKPOINT_STRATEGY = re.compile(r"latest|best|step:[0-9]+|tinker://[^/\s]+/weights/[^/\s]+")


class RecoveryPolicy(Frozen):
    """How a run is recovered from faults.

    Attributes:
        enabled: Whether to recover: entering a Supervisor is the wish to. False observes and
            reports, and recovers nothing.
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
            ``recovery.waiting``). A run that begins waits as long for what has to be read first.
        credential_grace_s: How long a run that has trained waits for a credential that is taken
            again, when the service refuses its own (401), as while keys are rotated. The factory
            given as ``service=``, or the SDK's own sources, are asked at once, then after each
            backoff, and last at its end; 0 asks once. Uses up one attempt in all. Two minutes by
            default: a mounted secret reaches a container within about 90 s, and a key that stays
            refused ends the run while somebody may still be looking. A run that begins does not
            wait.
        backoff_jitter: Each delay is lengthened by a random share of up to this much (0.1 is 10 %),
            never shortened, so that many runs of one incident do not retry at the same time.
        max_concurrent_recoveries: The most recoveries at once: two begin, and each that succeeds
            lets one more begin, until none is left. Those with the fewest attempts left go first,
            then those with the oldest fault; one in backoff takes no slot. In a mass incident one
            run is recovered first, and the others follow.
        retryable_errors: Exception classes, or predicates over an exception, to recover from as
            well, whoever raises them. They are checked before the fault table.
        poll_interval_s: Seconds between two reads of a run's status.
        stall_after_s: Submitted work without progress for this long is a fault. A capacity pause
            that the service reports, and time in which nothing is submitted, do not count. None,
            the default, for twenty times as long as the slow ones of the run's own requests take,
            but at least 300 s, and at most 1800 s, which is also the limit until the first step of
            an attempt is done. A number is obeyed: choose more than your longest step takes.
            ``"off"`` for no such fault.
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
            runs again; ``checkpoint`` is None when the run starts over. Not called where a run only
            goes on after an orderly stop.
        on_failure: Called as ``on_failure(run_id, error)`` when a run is given up.
        checkpoints: When to save, and what to keep.
        create_timeout_s: How long a recovery waits for a new client (and again for the canary's
            answer on it) without a word of the service that it is at work on it; while it says so
            ("try again", a capacity pause), waiting continues, for up to ``max_wait_s``. A deadline
            that is missed uses up no attempt, and is twice as long at the next try of the incident,
            up to eight times. The first client of a run is waited for without a limit, as without
            supervision.
        standby: What is kept ready for the next recovery, beside the runs. ``"session"``: one open
            session for all runs, which costs a heartbeat every 10 s, and saves half of the round
            trips. Given up, with a word, where it is in the way of the service's limit on sessions.
            ``"loaded"``: for each run a client as well, loaded from each new checkpoint: the loop
            is back within a few round trips, for one load for each save and one more training
            client at the service. It is used if the canary answers on it as on what was saved.
            ``"none"``: nothing.
        status_timeout_s: Deadline for one read of a run's status or checkpoints.
        max_reply_bytes: The largest reply to one of those reads, unpacked: 32 MiB by default, which
            is the listing of a run with about 30,000 checkpoints. More is refused, and not kept.
        max_listed: The most entries of a listing over all its pages.
        listing_timeout_s: Deadline for a listing over all its pages.
        max_export_bytes: The largest export that is downloaded to look at its bytes, where the
            service does not say how large it is: 64 GiB by default. Where it does, a tenth more
            than that is the most.
        close_timeout_s: Deadline for closing a client, for a loop to leave its body after a fault,
            and for an async callback.
        recall_bytes: Most bytes of what ``attempt.recall`` keeps of a run, in files beside the
            journal: beyond it, what was kept first is dropped. 0 keeps nothing.
        prices: What tokens cost, for the report, ``show`` and the metrics: by base model
            :class:`~tinker_recovery.costs.Prices` in USD for a million tokens, ``"*"`` for every
            other model; or the path of a TOML file with them, as ``tinker-recovery prices`` writes
            it. Without it tokens are counted all the same.
        telemetry_run_label: Put the run's name on every metric, and not only on those of its steps,
            tokens, checkpoints and goodput. Each name is a series of its own for the collector.
        quiet: Whether to leave out the lines about the start and the end of a run that are printed
            to stderr where the program has configured no logging; configured, they are INFO.
    """

    enabled: Switch = True
    max_attempts: Annotated[Whole, Field(ge=1)] = 3
    backoff_s: Annotated[Number, Field(ge=0)] = 5.0
    max_backoff_s: Annotated[Number, Field(ge=0)] = 60.0
    backoff_type: BackoffType = "exponential"
    max_wait_s: Seconds = 86_400.0
    credential_grace_s: Annotated[Number, Field(ge=0)] = 120.0
    backoff_jitter: Annotated[Number, Field(ge=0, le=1)] = 0.1
    max_concurrent_recoveries: Annotated[Whole, Field(ge=1)] = 8
    retryable_errors: tuple[Retryable, ...] = ()
    poll_interval_s: Seconds = 30.0
    stall_after_s: Seconds | Literal["off"] | None = None
    stall_warn_after_s: Seconds | None = None
    guard_loss: Switch = False
    on_repeated_fault: Literal["retry", "skip_step"] = "retry"
    on_skip: Callback | None = None
    canary: tuple[InstanceOf[types.Datum], ...] | Literal["auto"] | None = Field(
        default="auto", repr=False
    )
    canary_tolerance: Annotated[Number, Field(ge=0)] = 1e-4
    on_outage: Literal["recover", "warn"] = "recover"
    checkpoint_strategy: str = "latest"
    restore_optimizer: Switch = True
    verify_optimizer: Switch = False
    on_recovery: Callback | None = None
    on_failure: Callback | None = None
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    create_timeout_s: Seconds = CREATE_TIMEOUT_S
    standby: Literal["none", "session", "loaded"] = "session"
    status_timeout_s: Seconds = 10.0
    max_reply_bytes: Annotated[Whole, Field(ge=2**16)] = 2**25
    max_listed: Annotated[Whole, Field(ge=1)] = 1_000_000
    listing_timeout_s: Seconds = 600.0
    max_export_bytes: Annotated[Whole, Field(ge=1)] = 2**36
    close_timeout_s: Seconds = 10.0
    recall_bytes: Annotated[Whole, Field(ge=0)] = 512 * 2**20
    prices: PriceTable | None = None
    telemetry_run_label: Switch = False
    quiet: Switch = False

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
        if warn is not None and isinstance(stall, float) and warn > stall:
            raise ValueError(
                f"stall_warn_after_s={warn:g} is above stall_after_s={stall:g}: the warning has to "
                "come first"
            )
        return self

    def stall_limit_s(self, slow_s: float | None) -> float | None:
        """Seconds without progress that are a fault; None for never.

        Args:
            slow_s: Seconds that the slow ones of the run's requests take; None as long as that is
                not known.
        """
        if self.stall_after_s is not None:
            return None if self.stall_after_s == "off" else self.stall_after_s
        least_s, most_s = STALL_S
        return most_s if slow_s is None else min(most_s, max(least_s, STALL_FACTOR * slow_s))

    def stall_warning_s(self, limit_s: float | None) -> float | None:
        """Seconds without progress before the warning: as set, or a third; the limit at most."""
        if limit_s is None:
            return self.stall_warn_after_s
        return (
            limit_s / 3
            if self.stall_warn_after_s is None
            else min(limit_s, self.stall_warn_after_s)
        )

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
        growth = backoff_growth(self.backoff_type, attempt)
        return min(self.max_backoff_s, self.backoff_s * growth) * (
            1.0 + self.backoff_jitter * random
        )


def backoff_growth(kind: BackoffType, number: int) -> float:
    """How many first delays to wait before a try; 0 before the first, which is number 1."""
    if number <= 1:
        return 0.0
    match kind:
        case "exponential":
            # Bounded so that a large number cannot overflow a float.
            return 2.0 ** min(number - 2, 64)
        case "linear":
            return number - 1.0
        case "constant":
            return 1.0
    assert_never(kind)
