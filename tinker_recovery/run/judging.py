"""What an error of a request means, or one that leaves the body of an attempt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tinker_recovery.errors import causes
from tinker_recovery.faults import RULES, Kind, SeenIn, Verdict, VerdictRule, judge
from tinker_recovery.policy import Retryable
from tinker_recovery.service.backend import is_open
from tinker_recovery.service.client import CANARY, CUSTOM_LOSS, SAVE

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

MODEL_CALLS = frozenset({CANARY, "forward", "forward_backward", "optim_step", "save_state"})
"""Requests that are about the run's model, so that a 404 means that the model is gone."""


def judge_request(
    operation: str, error: BaseException, retryable: Sequence[Retryable] = ()
) -> tuple[VerdictRule | None, bool]:
    """The rule for a request's error, and whether it is a 404 about something else than the model.

    A custom loss is the user's code, which runs inside the request: what it raises is judged as
    from the body. So is a 404 about something else.
    """
    rule = judge(error, SeenIn.BODY if operation == CUSTOM_LOSS else SeenIn.CALL, retryable)
    if rule is RULES[Kind.UNAUTHORIZED]:
        # The request inside a custom loss meets a rotated key like any other.
        rule = judge(error, SeenIn.CALL, retryable)
    if rule is RULES[Kind.MODEL_MISSING] and operation not in MODEL_CALLS:
        return judge(error, SeenIn.BODY, retryable), True
    return rule, False


_UNKNOWN = frozenset({Kind.REQUEST_BROKE, Kind.RETRYABLE})


def judge_leaving(scope: AttemptScope, error: BaseException) -> VerdictRule | None:
    """The rule for what leaves the body of an attempt; None if it is the user's own.

    It may be part of a group, or raised from the error of a request.
    """
    if isinstance(error, BaseExceptionGroup):
        rules = [judge_leaving(scope, each) for each in error.exceptions]
        return rules[0] if all(rules) else None
    chain = list(causes(error))

    def is_of(failures: Iterable[BaseException | None]) -> bool:
        return any(each is failure for failure in failures for each in chain)

    if is_of([scope.refusal.error]):
        return scope.refusal.rule
    if scope.fault is not None and is_of([scope.fault.error]):
        return scope.fault.rule  # that of a custom loss is judged where its request has failed
    retryable = scope.run.policy.retryable_errors
    saves = ((SAVE, failed_save) for failed_save in scope.client.failed_saves)
    for operation, failure in [*scope.client.failed, *saves]:
        if is_of([failure]):
            return judge_request(operation, failure, retryable)[0]
    rule = judge(error, SeenIn.BODY, retryable)
    if (
        rule is RULES[Kind.CLIENT_CLOSED]
        and scope.connection is not None
        and is_open(scope.connection)
    ):
        error.add_note(
            "This is not the client of this attempt, which is open: it may be that of an earlier "
            "one. Take attempt.client, and make sampling clients by it, in each attempt"
        )
        return None
    return _judge_sample(error, retryable) or rule if is_of(list(scope.sampling.failed)) else rule


def _judge_sample(error: BaseException, retryable: Sequence[Retryable]) -> VerdictRule | None:
    """The rule for a sampling request that has failed, at a fresh sampler too."""
    rule = judge(error, SeenIn.CALL, retryable)
    # An unknown error may as well be the request's own, such as an option that the service does
    # not know.
    if rule is None or rule.verdict is not Verdict.RECOVER or rule.kind in _UNKNOWN:
        return None
    return rule if rule.kind is Kind.UNAUTHORIZED else RULES[Kind.SAMPLING_FAILED]
