"""When a job is tried again: the policy, and the decision, which is pure.

A try is one pass of a Supervisor over the job's run, which recovers from faults by itself as its
``RecoveryPolicy`` says. What ends a try is an exception that came out of that pass.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Annotated, Self

import tinker
from pydantic import Field, field_validator, model_validator

from tinker_recovery.errors import (
    FaultError,
    LeaseLost,
    RunFinished,
    StatusError,
    UsageError,
    causes,
)
from tinker_recovery.faults import Kind, SeenIn, judge
from tinker_recovery.fields import Frozen, Whole
from tinker_recovery.policy import BackoffType, backoff_growth

TIMEOUT = "timeout"
"""Stands for a deadline that passed: any ``TimeoutError``, and silence."""

BACKEND_UNAVAILABLE = "backend_unavailable"
"""Stands for every fault of the service, as against one of the request or the code."""

JITTER = 0.1
"""Each delay is lengthened by a random share of up to this much."""

_TIMEOUTS = frozenset({Kind.DEADLINE, Kind.SILENCE, Kind.SAMPLING_SILENCE})

_UNAVAILABLE = frozenset(
    {
        Kind.CORRUPTED,
        Kind.SESSION_FAILED,
        Kind.SAMPLING_FAILED,
        Kind.ROLLED_BACK,
        Kind.MODEL_MISSING,
        Kind.REQUEST_FAILED,
        Kind.GONE,
        Kind.RATE_LIMITED,
        Kind.UNAVAILABLE,
        Kind.STATUS_UNREAD,
        Kind.CLIENT_POISONED,
        Kind.CLIENT_CLOSED,
        Kind.REQUEST_BROKE,
        Kind.SAVES_FAIL,
    }
)

_NEVER = (LeaseLost, RunFinished, UsageError)
_REFUSALS = frozenset({401, 403, 422})


def _class_named(path: str) -> type[BaseException]:
    module, _, name = path.partition(":")
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise TypeError(f"{path!r} is not a class of exceptions")
    return found


class RetryPolicy(Frozen):
    """When a job that failed is tried again. Can be written as JSON, and read back.

    A retry is a new pass of a Supervisor over the same run: it resumes from the newest trusted
    checkpoint. Inside each pass the ``RecoveryPolicy`` recovers from faults; this one decides what
    happens when the pass itself has failed. A worker that dies uses up no attempt: another resumes
    the try. Never tried again, whatever is named: ``LeaseLost``, ``RunFinished``, ``UsageError``,
    and the service's answers 401, 403 and 422.

    Attributes:
        max_attempts: The most tries of a job, the first included; 1 never retries.
        backoff_type: How the delay grows: ``"exponential"`` doubles it, ``"linear"`` adds
            ``initial_delay_ms``, ``"constant"`` leaves it.
        initial_delay_ms: Milliseconds before the first retry.
        max_delay_ms: Upper limit of the delay, before it is lengthened by a random share of up to
            10 %. At least ``initial_delay_ms``.
        retryable_errors: What is tried again: ``"timeout"``, ``"backend_unavailable"``, names of
            fault kinds (``tinker-recovery faults`` lists them), and classes of exceptions, given as
            such or as ``"module:Name"``.
    """

    max_attempts: Annotated[Whole, Field(ge=1)] = 3
    backoff_type: BackoffType = "exponential"
    initial_delay_ms: Annotated[Whole, Field(ge=0)] = 1000
    max_delay_ms: Annotated[Whole, Field(ge=0)] = 60_000
    retryable_errors: tuple[str, ...] = (TIMEOUT, BACKEND_UNAVAILABLE)

    @field_validator("retryable_errors", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        given = value if isinstance(value, (tuple, list, set, frozenset)) else (value,)
        return tuple(_named(each) for each in given)

    @model_validator(mode="after")
    def _delay_is_ordered(self) -> Self:
        if self.max_delay_ms < self.initial_delay_ms:
            raise ValueError(
                f"max_delay_ms={self.max_delay_ms} is below initial_delay_ms="
                f"{self.initial_delay_ms}: it has to be at least as large"
            )
        return self

    def delay_ms_before(self, number: int, random: float) -> float:
        """Milliseconds to wait before a try: growing, capped, lengthened by jitter.

        Args:
            number: 1 for the first try, which does not wait.
            random: A number in [0, 1) that decides the jitter.
        """
        growth = backoff_growth(self.backoff_type, number)
        delay = min(float(self.max_delay_ms), self.initial_delay_ms * growth)
        return delay * (1.0 + JITTER * random)

    def retries(self, error: BaseException, *, tried: int) -> bool:
        """Whether a job is tried again after this error; ``tried`` counts the tries so far."""
        return tried < self.max_attempts and self.names(error)

    def names(self, error: BaseException) -> bool:
        """Whether this error is one of ``retryable_errors``, and none that never is.

        What an error was raised from counts as well. An exception group is named only if every
        exception in it is.
        """
        if isinstance(error, BaseExceptionGroup):
            return all(self.names(each) for each in error.exceptions)
        chain = list(causes(error))
        if not isinstance(error, Exception) or any(map(_is_final, chain)):
            return False
        marks = set(_marks(error, chain))
        return any(
            name in marks or (":" in name and any(_is_a(each, name) for each in chain))
            for name in self.retryable_errors
        )


def _named(value: object) -> str:
    if isinstance(value, type) and issubclass(value, Exception):
        path = f"{value.__module__}:{value.__qualname__}"
        try:
            if _class_named(path) is value:
                return path
        except (ImportError, AttributeError, TypeError):
            pass
        raise ValueError(
            f"{value!r} is not allowed: a worker has to find the class by its import path, so "
            "define it at the top of a module"
        )
    if isinstance(value, str) and (value in _NAMES or ":" in value):
        return value
    raise ValueError(
        f"{value!r} is not allowed: use {TIMEOUT!r}, {BACKEND_UNAVAILABLE!r}, a fault kind, a "
        f"class of exceptions, or its path 'module:Name'; the kinds are {', '.join(sorted(Kind))}"
    )


_NAMES = frozenset({TIMEOUT, BACKEND_UNAVAILABLE, *Kind})


def _is_final(error: BaseException) -> bool:
    if isinstance(error, _NEVER):
        return True
    refused = getattr(error, "status_code", None) in _REFUSALS
    return refused and isinstance(error, (tinker.APIStatusError, StatusError))


def _marks(error: BaseException, chain: list[BaseException]) -> Iterator[str]:
    # It may have ended the loop, or the creation of a client that the pass could not do without.
    rules = [judge(error, SeenIn.BODY), judge(error, SeenIn.CREATE)]
    kinds = {rule.kind for rule in rules if rule is not None}
    kinds |= {Kind(each.kind) for each in chain if isinstance(each, FaultError)}
    yield from kinds
    if kinds & _UNAVAILABLE:
        yield BACKEND_UNAVAILABLE
    late = any(isinstance(each, (TimeoutError, tinker.APITimeoutError)) for each in chain)
    if late or kinds & _TIMEOUTS:
        yield TIMEOUT


def _is_a(error: BaseException, path: str) -> bool:
    return any(f"{each.__module__}:{each.__qualname__}" == path for each in type(error).__mro__)
