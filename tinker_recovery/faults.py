"""Faults: what was seen, and the one table that judges it.

A verdict is reached from the exception's type and what it carries, walking ``__cause__``: the SDK
hides the real error of a poll behind a bare ValueError. Where it was seen matters too: a 404 from
a request of the loop means the model is gone, while one from the creation of a run means it was
asked for by a wrong name. Whatever no rule matches is not ours to judge and reaches the user
untouched.

The facts behind the rules were measured against tinker 0.38; what it raises, and when, is in each
rule's reason. ``tinker-recovery faults`` prints the table.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    PROCESS_LOST = "process_lost"
    LEASE_LOST = "lease_lost"


class Verdict(StrEnum):
    """What to do about it."""

    RECOVER = "recover"
    """Go back to a checkpoint, at once."""
    WAIT = "wait"
    """The service asks for patience: a backoff first, and no attempt is spent."""
    GIVE_UP = "give_up"
    """Trying again cannot help: the error goes to the user unchanged."""


class DetectedBy(StrEnum):
    """How it was noticed."""

    CALL = "call"
    """A request of the loop failed."""
    POLL = "poll"
    """The service's status says so."""
    START = "start"
    """The run's first client could not be created."""
    SILENCE = "silence"
    """Submitted work made no progress within the policy's deadline."""
    CANARY = "canary"
    """The canary's answer is not the one these weights gave before."""
    JOURNAL = "journal"
    """The journal says so: of a process before this one, or of another one beside it."""


class SeenIn(StrEnum):
    """Where an exception was seen."""

    CALL = "call"
    """A request of the loop ended in it."""
    BODY = "body"
    """It left the body of an attempt, and may be the user's own."""
    CREATE = "create"
    """A client was being created or restored with it."""


_ANYWHERE = frozenset(SeenIn)


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One line of the table.

    Attributes:
        kind: The fault this is.
        verdict: What to do about it.
        reason: Why, in words for a person.
        seen_as: What it looks like from outside, in words for a person.
        matches: Whether one exception of a chain is of this kind; None for states that are read
            or observed and never raised.
        where: Where such an exception counts as this.
        breaks_client: Whether the SDK's client is unusable after it. A request that was never
            sent leaves a gap no later one gets past; one the service refused on reading does not.
    """

    kind: Kind
    verdict: Verdict
    reason: str
    seen_as: str
    matches: Callable[[BaseException], bool] | None = None
    where: frozenset[SeenIn] = _ANYWHERE
    breaks_client: bool = True


def _failed(*categories: RequestErrorCategory) -> Callable[[BaseException], bool]:
    def matches(error: BaseException) -> bool:
        return isinstance(error, tinker.RequestFailedError) and error.category in categories

    return matches


def _status(*codes: int) -> Callable[[BaseException], bool]:
    def matches(error: BaseException) -> bool:
        return getattr(error, "status_code", None) in codes and isinstance(
            error, (tinker.APIStatusError, StatusError)
        )

    return matches


def _says(*words: str) -> Callable[[BaseException], bool]:
    def matches(error: BaseException) -> bool:
        return isinstance(error, RuntimeError) and any(word in str(error) for word in words)

    return matches


def _model_missing(error: BaseException) -> bool:
    if isinstance(error, tinker.NotFoundError):
        return True
    # Some services answer 400, or fail the request, with these words instead.
    return (
        isinstance(error, (tinker.BadRequestError, tinker.RequestFailedError))
        and "not loaded" in str(error).lower()
    )


def _is(*kinds: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kinds)


def _unavailable(error: BaseException) -> bool:
    if isinstance(error, (tinker.APIConnectionError, tinker.InternalServerError)):
        return True
    return _status(408)(error)


TABLE: tuple[FaultRule, ...] = (
    FaultRule(
        Kind.RETRYABLE,
        Verdict.RECOVER,
        "the policy's retryable_errors names it; asked before every other rule",
        "an exception of anyone's that the user named",
    ),
    FaultRule(
        Kind.CORRUPTED,
        Verdict.RECOVER,
        "the service reports the run as corrupted, so its weights can no longer be trusted",
        "training_run.corrupted is true",
    ),
    FaultRule(
        Kind.SESSION_FAILED,
        Verdict.RECOVER,
        "the service has failed the session of the run, and nothing of it will be executed",
        "the session's status is failed, for an internal reason",
    ),
    FaultRule(
        Kind.SILENCE,
        Verdict.RECOVER,
        "submitted work made no progress within stall_after_s, and the service gave no reason to "
        "wait; most bad states of a backend look like this, and would for ever",
        "requests open, none finished, no capacity pause reported",
    ),
    FaultRule(
        Kind.ROLLED_BACK,
        Verdict.RECOVER,
        "the weights are those of an earlier checkpoint, though steps have been applied since: the "
        "service lost them and did not say so",
        "after an outage the canary answers as at an older checkpoint, or work was under way",
    ),
    FaultRule(
        Kind.LOSS_NOT_FINITE,
        Verdict.RECOVER,
        "the loss became NaN or infinite, so the weights may be ruined (guard_loss is on)",
        "a result, or attempt.report(loss=...), that is not finite",
        _is(NonFiniteLoss),
    ),
    FaultRule(
        Kind.PROCESS_LOST,
        Verdict.RECOVER,
        "the process that trained the run ended before the run did; what it did since its last "
        "checkpoint is repeated",
        "a run of this name in the journal that has not come to its end",
    ),
    FaultRule(
        Kind.LEASE_LOST,
        Verdict.GIVE_UP,
        "another process has taken the run over, and two must not train it",
        "the run's lease in the journal is another's",
    ),
    FaultRule(
        Kind.MODEL_MISSING,
        Verdict.RECOVER,
        "the service does not know the run's model any more",
        "404, or 400 'not loaded', from a request of the loop",
        _model_missing,
        frozenset({SeenIn.CALL, SeenIn.BODY}),
    ),
    FaultRule(
        Kind.REQUEST_FAILED,
        Verdict.RECOVER,
        "a request failed inside the service (category server or unknown), and a client with one "
        "failed request cannot be used again",
        "RequestFailedError, category server or unknown",
        _failed(RequestErrorCategory.Server, RequestErrorCategory.Unknown),
    ),
    FaultRule(
        Kind.GONE,
        Verdict.RECOVER,
        "the service no longer knows the request (HTTP 410), so its effect is unknown",
        "RetryableException, or HTTP 410",
        lambda error: isinstance(error, RetryableException) or _status(410)(error),
    ),
    FaultRule(
        Kind.RATE_LIMITED,
        Verdict.WAIT,
        "the service asks for fewer requests, and the SDK has waited for as long as it does",
        "HTTP 429, after the SDK's own 300 s",
        _status(429),
    ),
    FaultRule(
        Kind.UNAUTHORIZED,
        Verdict.GIVE_UP,
        "the API key is refused: set TINKER_API_KEY to a valid one",
        "HTTP 401",
        _status(401),
    ),
    FaultRule(
        Kind.UNPAID,
        Verdict.GIVE_UP,
        "the account has run out of credit, and the SDK has waited an hour for that to change",
        "HTTP 402, after the SDK's own pause",
        _status(402),
    ),
    FaultRule(
        Kind.FORBIDDEN,
        Verdict.GIVE_UP,
        "the API key may not do this",
        "HTTP 403",
        _status(403),
    ),
    FaultRule(
        Kind.USER_ERROR,
        Verdict.GIVE_UP,
        "the service says the request itself is at fault (category user), and would say so again; "
        "if its status calls the run corrupted, that counts instead",
        "RequestFailedError, category user",
        _failed(RequestErrorCategory.User),
        breaks_client=False,
    ),
    FaultRule(
        Kind.CONFLICT,
        Verdict.RECOVER,
        "a name is taken, most likely by the first try of a save whose reply was lost; the client "
        "has a gap in its requests now",
        "HTTP 409, after the SDK's own 300 s",
        _status(409),
        frozenset({SeenIn.CALL, SeenIn.BODY}),
    ),
    FaultRule(
        Kind.UNAVAILABLE,
        Verdict.RECOVER,
        "the service could not be reached for as long as the SDK tries, and the client has a gap "
        "in its requests now",
        "connection errors, HTTP 408 and 5xx, after the SDK's own retries",
        _unavailable,
    ),
    FaultRule(
        Kind.INVALID_REQUEST,
        Verdict.GIVE_UP,
        "the service refuses the request as it stands, and would again",
        "HTTP 422, 400 and other 4xx",
        lambda error: isinstance(error, tinker.APIStatusError),
    ),
    FaultRule(
        Kind.DEADLINE,
        Verdict.WAIT,
        "the service did not finish within create_timeout_s; it may be short of capacity",
        "a client that is not created in time",
        _is(DeadlineExceeded),
        frozenset({SeenIn.CREATE}),
    ),
    FaultRule(
        Kind.STATUS_UNREAD,
        Verdict.WAIT,
        "the service's status could not be read, which says nothing about the run",
        "connection errors, HTTP 429 and 5xx of status reads; 404 right after creation",
        _is(StatusUnavailable),
        frozenset({SeenIn.CREATE}),
    ),
    FaultRule(
        Kind.CLIENT_POISONED,
        Verdict.RECOVER,
        "the SDK's client refuses every call after one failed request",
        "RuntimeError '... poisoned ...' from a TrainingClient",
        _says("TrainingClient is poisoned"),
    ),
    FaultRule(
        Kind.CLIENT_CLOSED,
        Verdict.RECOVER,
        "the SDK's client was closed under the loop",
        "RuntimeError 'ServiceClient is closed' and the like",
        _says(
            "ServiceClient is closed",
            "Internal client holder is closed",
            "Client connection pool is closed",
        ),
    ),
    FaultRule(
        Kind.CANCELLED,
        Verdict.RECOVER,
        "a request was cancelled, by a timeout around it or by the SDK; the client waits for it "
        "for ever, and so would every later request",
        "CancelledError that nobody outside asked for",
        _is(asyncio.CancelledError, concurrent.futures.CancelledError),
        frozenset({SeenIn.CALL}),
    ),
    FaultRule(
        Kind.REQUEST_BROKE,
        Verdict.RECOVER,
        "a request ended in an error of no known kind, a result that cannot be decoded for "
        "example; the client cannot be used again",
        "any other exception of a request",
        _is(Exception),
        frozenset({SeenIn.CALL}),
    ),
)
"""The rules; the first that matches wins. States that are never raised have no ``matches``."""

RULES: dict[Kind, FaultRule] = {rule.kind: rule for rule in TABLE}


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One thing that went wrong with one attempt of a run.

    Attributes:
        run: The run's name.
        attempt: Number of the attempt it struck, from 1; 0 if none had started.
        run_id: The Tinker run id; empty if none had been given out.
        rule: The rule of the table that judged it.
        detected_by: How it was noticed.
        step: Optimizer steps submitted by then.
        failed_step: The loop's step whose request it was; None if that is not known.
        error: The exception, where there was one.
        detected_at: Monotonic seconds.
        detected_ns: Nanoseconds since the epoch, for spans.
        silent_s: Seconds since anything of the attempt had last made progress: as long as the
            fault can have gone unseen.
    """

    run: str
    attempt: int
    run_id: str
    rule: FaultRule
    detected_by: DetectedBy
    step: int
    error: BaseException | None = None
    failed_step: int | None = None
    detected_at: float = field(default_factory=time.monotonic)
    detected_ns: int = field(default_factory=time.time_ns)
    silent_s: float = 0.0

    @property
    def kind(self) -> Kind:
        """What went wrong."""
        return self.rule.kind

    @property
    def verdict(self) -> Verdict:
        """What to do about it."""
        return self.rule.verdict

    def as_error(self) -> BaseException:
        """The exception behind the fault, or one that says what was observed."""
        if self.error is not None:
            return self.error
        if self.kind is Kind.CORRUPTED:
            return CorruptedRun(self.run_id)
        return FaultError(f"Tinker run {self.run_id}: {self.rule.reason}", kind=self.kind.value)


def judge(
    error: BaseException, place: SeenIn = SeenIn.BODY, retryable: Sequence[Retryable] = ()
) -> FaultRule | None:
    """The table's rule for an exception, or None if it is not ours to judge.

    An exception group is judged only if every exception in it is: one error of the user's own among
    them is the user's to see. KeyboardInterrupt and SystemExit never are.

    Args:
        error: What was seen.
        place: Where it was seen.
        retryable: The policy's ``retryable_errors``.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return None
    if isinstance(error, BaseExceptionGroup):
        rules = [judge(inner, place, retryable) for inner in error.exceptions]
        return rules[0] if all(rules) else None
    chain = list(causes(error))
    if any(_named(each, retryable) for each in chain):
        return RULES[Kind.RETRYABLE]
    for rule in TABLE:
        if rule.matches is not None and place in rule.where and any(map(rule.matches, chain)):
            return rule
    return None


def _named(error: BaseException, retryable: Sequence[Retryable]) -> bool:
    for named in retryable:
        if isinstance(named, type):
            if isinstance(error, named):
                return True
        elif _holds(named, error):
            return True
    return False


def _holds(predicate: Callable[[BaseException], bool], error: BaseException) -> bool:
    try:
        return bool(predicate(error))
    except Exception:
        # `lambda e: e.status_code == 418` is the natural thing to write.
        logger.exception("a predicate of retryable_errors raised; it counts as False")
        return False
