"""Faults: the table that judges what went wrong.

An exception is judged by its type and contents, and those of its ``__cause__``s: the SDK raises a
bare ValueError for a failed poll, and the real error is its cause. Where it was seen matters too: a
404 from a request of the loop means that the model is gone, one from the creation of a run that its
name is wrong. An exception that no rule matches is not a fault, and reaches the user unchanged.

Each rule says what tinker 0.38 raises, and when. ``tinker-recovery faults`` prints the table.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import tinker
from tinker.lib.retryable_exception import RetryableException
from tinker.types import RequestErrorCategory

from tinker_recovery.errors import (
    CorruptedRun,
    DeadlineExceeded,
    FaultError,
    NonFiniteLoss,
    StatusError,
    StatusUnavailable,
    causes,
)
from tinker_recovery.policy import Retryable

logger = logging.getLogger("tinker_recovery")


class Kind(StrEnum):
    """What went wrong."""

    RETRYABLE = "retryable"
    CORRUPTED = "corrupted"
    SESSION_FAILED = "session_failed"
    SILENCE = "silence"
    SAMPLING_SILENCE = "sampling_silence"
    SAMPLING_FAILED = "sampling_failed"
    ROLLED_BACK = "rolled_back"
    LOSS_NOT_FINITE = "loss_not_finite"
    MODEL_MISSING = "model_missing"
    REQUEST_FAILED = "request_failed"
    GONE = "gone"
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    UNPAID = "unpaid"
    FORBIDDEN = "forbidden"
    INVALID_REQUEST = "invalid_request"
    USER_ERROR = "user_error"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    STATUS_UNREAD = "status_unread"
    CLIENT_POISONED = "client_poisoned"
    CLIENT_CLOSED = "client_closed"
    CANCELLED = "cancelled"
    REQUEST_BROKE = "request_broke"
    METADATA_REFUSED = "metadata_refused"
    SAVE_REFUSED = "save_refused"
    PROCESS_LOST = "process_lost"
    STOPPED = "stopped"
    LEASE_LOST = "lease_lost"
    SAVES_FAIL = "saves_fail"
    GROUP_REWOUND = "group_rewound"


class Verdict(StrEnum):
    """What to do about it."""

    RECOVER = "recover"
    """Go back to a checkpoint, at once."""
    WAIT = "wait"
    """Back off first: the service asks for it. Uses up no attempt."""
    GIVE_UP = "give_up"
    """Trying again cannot help: the error goes to the user unchanged."""


class DetectedBy(StrEnum):
    """How a fault was detected."""

    CALL = "call"
    """A request of the loop failed."""
    POLL = "poll"
    """The service's status reports it."""
    START = "start"
    """The run's first client could not be created."""
    SILENCE = "silence"
    """Submitted work made no progress within the policy's deadline."""
    CANARY = "canary"
    """The canary's answer differs from the one these weights gave before."""
    JOURNAL = "journal"
    """The journal shows it: an earlier process ended, or another one took the run over."""
    CLAIM = "claim"
    """The service has ended the run's claim."""
    GROUP = "group"
    """Another run of its group goes back."""


class SeenIn(StrEnum):
    """Where an exception was seen."""

    CALL = "call"
    """It ended a request of the loop."""
    BODY = "body"
    """It left the body of an attempt, and may be the user's own."""
    CREATE = "create"
    """It ended the creation or restore of a client."""


_ANYWHERE = frozenset(SeenIn)
_UNREACHED = (tinker.APIConnectionError, tinker.InternalServerError)


@dataclass(frozen=True, slots=True)
class VerdictRule:
    """One line of the fault table.

    Attributes:
        kind: The fault.
        verdict: What to do about it.
        reason: Why, for people.
        seen_as: What it looks like from outside, for people.
        matches: Whether an exception is this fault; None for states that are observed, not raised.
        where: Where an exception has to be seen to be this fault.
        in_call: What to do where it ended a request of the loop, if that is something else.
        breaks_client: Whether the SDK's client is unusable after it: a request that was never sent
            leaves a gap that blocks every later one; a request the service refused does not.
    """

    kind: Kind
    verdict: Verdict
    reason: str
    seen_as: str
    matches: Callable[[BaseException], bool] | None = None
    where: frozenset[SeenIn] = _ANYWHERE
    in_call: Verdict | None = None
    breaks_client: bool = True


def _failed(*among: RequestErrorCategory) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, tinker.RequestFailedError) and error.category in among


def _status(*codes: int) -> Callable[[BaseException], bool]:
    return lambda error: (
        isinstance(error, (tinker.APIStatusError, StatusError))
        and getattr(error, "status_code", None) in codes
    )


def _says(*words: str) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, RuntimeError) and any(map(str(error).count, words))


def _model_missing(error: BaseException) -> bool:
    # Some services answer 400 or fail the request, with these words, instead of 404.
    return isinstance(error, tinker.NotFoundError) or (
        isinstance(error, (tinker.BadRequestError, tinker.RequestFailedError))
        and "not loaded" in str(error).lower()
    )


def _is(*kinds: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kinds)


TABLE: tuple[VerdictRule, ...] = (
    VerdictRule(
        Kind.RETRYABLE,
        Verdict.RECOVER,
        "the policy's retryable_errors names it; that is checked before every other rule",
        "any exception that retryable_errors names",
    ),
    VerdictRule(
        Kind.CORRUPTED,
        Verdict.RECOVER,
        "the service reports the run as corrupted, so its weights can no longer be trusted",
        "training_run.corrupted is true",
    ),
    VerdictRule(
        Kind.SESSION_FAILED,
        Verdict.RECOVER,
        "the service has failed the run's session and will execute none of its requests",
        "the session's status is failed, for an internal reason",
    ),
    VerdictRule(
        Kind.SILENCE,
        Verdict.RECOVER,
        "submitted work made no progress within stall_after_s, and the service gave no reason to "
        "wait; most backend failures look like this and do not end by themselves",
        "requests open, none finished, no capacity pause reported",
    ),
    VerdictRule(
        Kind.SAMPLING_SILENCE,
        Verdict.RECOVER,
        "a sample, asked for twice, or a future of attempt.watch() made no progress: stall_after_s",
        "samples open, none finished, no pause reported",
        breaks_client=False,
    ),
    VerdictRule(
        Kind.SAMPLING_FAILED,
        Verdict.RECOVER,
        "a sample failed, at a fresh sampler too, and the loop did not catch it",
        "an error of a sampling request that is recovered from, leaving the body",
        breaks_client=False,
    ),
    VerdictRule(
        Kind.ROLLED_BACK,
        Verdict.RECOVER,
        "after an outage the weights are those of an earlier step, or nothing can tell whether "
        "they are",
        "after an outage the canary answers as at an older checkpoint, or requests were open then",
    ),
    VerdictRule(
        Kind.LOSS_NOT_FINITE,
        Verdict.RECOVER,
        "the loss became NaN or infinite, so the weights may be ruined (guard_loss is on)",
        "a result, or attempt.report(loss=...), that is not finite",
        _is(NonFiniteLoss),
    ),
    VerdictRule(
        Kind.METADATA_REFUSED,
        Verdict.RECOVER,
        "the service refuses the metadata of a save, and the SDK's client cannot be used after "
        "that, so another is made from the newest checkpoint; from now on saves carry none",
        "HTTP 422 or 400 to a save, until one with metadata was listed with it",
    ),
    VerdictRule(
        Kind.SAVE_REFUSED,
        Verdict.RECOVER,
        "the service refuses a save, and the SDK's client cannot be used after that, so another is "
        "made from the newest checkpoint",
        "HTTP 4xx to a save of ours, but for 401, 402, 408, 409, 410 and 429",
    ),
    VerdictRule(
        Kind.PROCESS_LOST,
        Verdict.RECOVER,
        "the process that trained the run ended before the run did",
        "an unfinished run of this name in the journal",
    ),
    VerdictRule(
        Kind.STOPPED,
        Verdict.RECOVER,
        "the run was stopped, and its last steps are in no checkpoint that can be used",
        "a run of this name in the journal that was stopped, or had finished (extend=True)",
    ),
    VerdictRule(
        Kind.GROUP_REWOUND,
        Verdict.RECOVER,
        "another run of its group is recovered, and all go back to the newest step that each has",
        "a fault of another run of one supervisor.group()",
    ),
    VerdictRule(
        Kind.LEASE_LOST,
        Verdict.GIVE_UP,
        "another process has taken the run over, and only one may train it",
        "another process holds the run's lease in the journal, or the service has ended the claim",
    ),
    VerdictRule(
        Kind.SAVES_FAIL,
        Verdict.GIVE_UP,
        "saving keeps failing, and the policy says to stop then",
        "three saves in a row fail, with on_save_failure='stop'",
    ),
    VerdictRule(
        Kind.MODEL_MISSING,
        Verdict.RECOVER,
        "the service no longer has the run's model",
        "404, or 400 'not loaded', from a request of the loop",
        _model_missing,
        # Elsewhere a 404 is about something else: a sampler, a checkpoint, a missing route.
        frozenset({SeenIn.CALL}),
    ),
    VerdictRule(
        Kind.REQUEST_FAILED,
        Verdict.RECOVER,
        "a request failed inside the service, and the SDK's client cannot be used after that",
        "RequestFailedError, category server or unknown",
        _failed(RequestErrorCategory.Server, RequestErrorCategory.Unknown),
    ),
    VerdictRule(
        Kind.GONE,
        Verdict.RECOVER,
        "the service no longer knows the request, so its effect is unknown",
        "RetryableException, or HTTP 410",
        lambda error: isinstance(error, RetryableException) or _status(410)(error),
    ),
    VerdictRule(
        Kind.RATE_LIMITED,
        Verdict.WAIT,
        "the service asks for fewer requests, and the SDK's own wait was not long enough",
        "HTTP 429, after the SDK's own 300 s",
        _status(429),
    ),
    VerdictRule(
        Kind.UNAUTHORIZED,
        Verdict.GIVE_UP,
        "the API key is refused (training waits credential_grace_s): set TINKER_API_KEY anew",
        "HTTP 401",
        _status(401),
        in_call=Verdict.RECOVER,
    ),
    VerdictRule(
        Kind.UNPAID,
        Verdict.GIVE_UP,
        "the account is out of credit, and the SDK has waited an hour: add credit and run again",
        "HTTP 402, after the SDK's own pause",
        _status(402),
    ),
    VerdictRule(
        Kind.FORBIDDEN,
        Verdict.GIVE_UP,
        "the API key is not allowed to do this: check its permissions",
        "HTTP 403",
        _status(403),
    ),
    VerdictRule(
        Kind.USER_ERROR,
        Verdict.GIVE_UP,
        "the service rejects what is in the request, and would again, unless the run is corrupted",
        "RequestFailedError, category user",
        _failed(RequestErrorCategory.User),
        breaks_client=False,
    ),
    VerdictRule(
        Kind.CONFLICT,
        Verdict.RECOVER,
        "a name is taken, most likely by the first try of a save whose reply was lost",
        "HTTP 409, after the SDK's own 300 s",
        _status(409),
        frozenset({SeenIn.CALL, SeenIn.BODY}),
    ),
    VerdictRule(
        Kind.UNAVAILABLE,
        Verdict.RECOVER,
        "the service could not be reached for as long as the SDK retries",
        "connection errors, HTTP 408 and 5xx, after the SDK's own retries",
        lambda error: isinstance(error, _UNREACHED) or _status(408)(error),
    ),
    VerdictRule(
        Kind.INVALID_REQUEST,
        Verdict.GIVE_UP,
        "the service rejects the request, and would again: change it",
        "HTTP 422, 400 and other 4xx",
        lambda error: isinstance(error, tinker.APIStatusError),
    ),
    VerdictRule(
        Kind.DEADLINE,
        Verdict.WAIT,
        "the service said nothing of a client for create_timeout_s; it may be short of capacity",
        "a client that is not created in time",
        _is(DeadlineExceeded),
        frozenset({SeenIn.CREATE}),
    ),
    VerdictRule(
        Kind.STATUS_UNREAD,
        Verdict.WAIT,
        "the service's status could not be read, so the run's state is unknown",
        "connection errors, HTTP 429 and 5xx of status reads; 404 right after creation",
        _is(StatusUnavailable),
        frozenset({SeenIn.CREATE}),
    ),
    VerdictRule(
        Kind.CLIENT_POISONED,
        Verdict.RECOVER,
        "the SDK's client refuses every call after a failed request",
        "RuntimeError '... poisoned ...' from a TrainingClient",
        _says("TrainingClient is poisoned"),
    ),
    VerdictRule(
        Kind.CLIENT_CLOSED,
        Verdict.RECOVER,
        "the SDK's client was closed while the loop used it",
        "RuntimeError 'ServiceClient is closed' and the like",
        _says(
            "ServiceClient is closed",
            "Internal client holder is closed",
            "Client connection pool is closed",
        ),
    ),
    VerdictRule(
        Kind.CANCELLED,
        Verdict.RECOVER,
        "a request was cancelled, by a timeout around it or by the SDK: later ones wait for it",
        "CancelledError, though the loop was not cancelled",
        _is(asyncio.CancelledError, concurrent.futures.CancelledError),
        frozenset({SeenIn.CALL}),
    ),
    VerdictRule(
        Kind.REQUEST_BROKE,
        Verdict.RECOVER,
        "a request ended in an unknown error, such as a result that cannot be decoded",
        "any other exception of a request",
        _is(Exception),
        frozenset({SeenIn.CALL}),
    ),
)
"""The fault table: the first rule that matches wins."""

RULES: dict[Kind, VerdictRule] = {rule.kind: rule for rule in TABLE}


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """A fault of one attempt of a run.

    Attributes:
        run: The run's name.
        attempt: Number of the attempt, from 1; 0 if none had started.
        run_id: The Tinker run id; empty if there was none yet.
        rule: The rule that judged it.
        detected_by: How it was detected.
        step: Optimizer steps submitted by then.
        error: The exception, if there was one.
        failed_step: The loop's step whose request failed; None if unknown.
        detected_at: Monotonic seconds.
        detected_ns: Nanoseconds since the epoch, for spans.
        silent_s: Seconds since the last progress, for which it may have gone undetected.
        orderly: Whether it is none: the run goes on after a stop, and no step is done again.
    """

    run: str
    attempt: int
    run_id: str
    rule: VerdictRule
    detected_by: DetectedBy
    step: int
    error: BaseException | None = None
    failed_step: int | None = None
    detected_at: float = field(default_factory=time.monotonic)
    detected_ns: int = field(default_factory=time.time_ns)
    silent_s: float = 0.0
    orderly: bool = False

    @property
    def kind(self) -> Kind:
        """What went wrong."""
        return self.rule.kind

    @property
    def verdict(self) -> Verdict:
        """What to do about it."""
        return self.rule.verdict

    def as_error(self) -> BaseException:
        """The exception of the fault, or one that describes what was observed."""
        if self.error is not None:
            return self.error
        if self.kind is Kind.CORRUPTED:
            return CorruptedRun(self.run_id)
        return FaultError(f"Tinker run {self.run_id}: {self.rule.reason}", kind=self.kind.value)


def judge(
    error: BaseException, place: SeenIn = SeenIn.BODY, retryable: Sequence[Retryable] = ()
) -> VerdictRule | None:
    """The rule for an exception; None if it is not a fault, but the user's own.

    A group is a fault only if all in it are. KeyboardInterrupt and SystemExit never are.

    Args:
        error: The exception.
        place: Where it was seen.
        retryable: The policy's ``retryable_errors``.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return None
    if isinstance(error, BaseExceptionGroup):
        rules = [judge(inner, place, retryable) for inner in error.exceptions]
        return rules[0] if all(rules) else None
    chain = list(causes(error))
    if any(_is_named(each, named) for each in chain for named in retryable):
        return RULES[Kind.RETRYABLE]
    for rule in TABLE:
        if rule.matches is not None and place in rule.where and any(map(rule.matches, chain)):
            if place is SeenIn.CALL and rule.in_call is not None:
                return replace(rule, verdict=rule.in_call)
            return rule
    return None


def _is_named(error: BaseException, named: Retryable) -> bool:
    if isinstance(named, type):
        return isinstance(error, named)
    try:
        return bool(named(error))
    except Exception:
        # `lambda e: e.status_code == 418` is the natural thing to write.
        logger.exception("a predicate of retryable_errors raised; it counts as False")
        return False
