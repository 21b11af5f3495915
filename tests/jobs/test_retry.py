"""RetryPolicy: its names and defaults, when a job is tried again, and after how long."""

from __future__ import annotations

import json

import httpx
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tinker_recovery.errors import (
    CorruptedRun,
    DeadlineExceeded,
    LeaseLost,
    RecoveryExhausted,
    RecoveryRefused,
    RunFinished,
    StatusRefused,
    StatusUnavailable,
    UsageError,
)
from tinker_recovery.faults import Kind
from tinker_recovery.jobs.retry import JITTER, RetryPolicy

POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 10_000),
    backoff_type=st.sampled_from(["exponential", "linear", "constant"]),
    initial_delay_ms=st.integers(0, 10_000),
    max_delay_ms=st.integers(10_000, 10_000_000),
)
RANDOM = st.floats(0, 1, exclude_max=True)


def _answer(code: int) -> tinker.APIStatusError:
    response = httpx.Response(code, request=httpx.Request("POST", "http://x"))
    kind = tinker.InternalServerError if code >= 500 else tinker.APIStatusError
    return kind("no", response=response, body=None)


class Passing(Exception):
    """What a loop of the user's raises."""


def test_it_has_the_names_and_defaults_of_the_document_that_this_grew_from() -> None:
    assert RetryPolicy().model_dump() == {
        "max_attempts": 3,
        "backoff_type": "exponential",
        "initial_delay_ms": 1000,
        "max_delay_ms": 60_000,
        "retryable_errors": ("timeout", "backend_unavailable"),
    }


@given(POLICIES, st.integers(2, 10_000), RANDOM)
def test_a_delay_never_shrinks_and_never_passes_its_limit(
    policy: RetryPolicy, number: int, random: float
) -> None:
    delay, later = (policy.delay_ms_before(each, random) for each in (number, number + 1))
    assert policy.delay_ms_before(1, random) == 0
    assert policy.initial_delay_ms <= delay <= later <= policy.max_delay_ms * (1 + JITTER)


@pytest.mark.parametrize(
    ("how", "delays"),
    [
        ("exponential", [1000, 2000, 4000, 5000, 5000]),
        ("linear", [1000, 2000, 3000, 4000, 5000]),
        ("constant", [1000, 1000, 1000, 1000, 1000]),
    ],
)
def test_delays_grow_as_the_policy_says(how: str, delays: list[int]) -> None:
    policy = RetryPolicy.model_validate({"backoff_type": how, "max_delay_ms": 5000})
    assert [policy.delay_ms_before(number, 0.0) for number in range(2, 7)] == delays


@given(POLICIES)
def test_it_can_be_written_as_json_and_read_back(policy: RetryPolicy) -> None:
    assert RetryPolicy.model_validate(json.loads(policy.model_dump_json())) == policy


@given(POLICIES, st.integers(1, 20_000))
def test_no_more_tries_than_max_attempts(policy: RetryPolicy, tried: int) -> None:
    assert policy.retries(TimeoutError(), tried=tried) == (tried < policy.max_attempts)


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (TimeoutError(), {"timeout"}),
        (DeadlineExceeded("creating a client", 2.0), {"timeout", "deadline"}),
        (_answer(503), {"backend_unavailable", "unavailable"}),
        (StatusUnavailable("no answer"), {"backend_unavailable", "status_unread"}),
        (CorruptedRun("run-1"), {"backend_unavailable", "corrupted"}),
        (RecoveryExhausted("spent", run="a", errors=[_answer(503)]), {"backend_unavailable"}),
        (RecoveryExhausted("spent", run="a", errors=[CorruptedRun("r")]), {"corrupted"}),
        (ValueError("a mistake in the loop"), set()),
        (Passing(), set()),
    ],
)
def test_errors_are_named_by_kind_and_by_what_they_stand_for(
    error: Exception, names: set[str]
) -> None:
    found = {
        name
        for name in ("timeout", "backend_unavailable", *map(str, Kind))
        if RetryPolicy(retryable_errors=(name,)).names(error)
    }
    assert names <= found
    assert bool(found) == bool(names)


def test_classes_are_named_by_themselves_or_by_their_path_and_cover_those_below() -> None:
    policy = RetryPolicy.model_validate({"retryable_errors": [Passing, "builtins:LookupError"]})
    assert policy.names(Passing())
    assert policy.names(KeyError("k"))
    assert not policy.names(ValueError())
    assert policy.names(ExceptionGroup("two", [Passing(), KeyError()]))
    assert not policy.names(ExceptionGroup("two", [Passing(), ValueError()]))


@pytest.mark.parametrize(
    "error",
    [
        LeaseLost("taken", run="a"),
        RunFinished("done", run="a", checkpoint=None, step=3),
        UsageError("no such argument"),
        _answer(401),
        _answer(403),
        _answer(422),
        StatusRefused("no", status_code=401),
        RecoveryRefused("refused", run="a", errors=[_answer(403)]),
    ],
)
def test_what_another_try_cannot_change_is_never_tried_again(error: Exception) -> None:
    everything = RetryPolicy.model_validate(
        {"retryable_errors": ["timeout", "backend_unavailable", *Kind, Exception]}
    )
    assert not everything.names(error)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("retryable_errors", ["tiemout"], "'tiemout' is not allowed: use 'timeout'"),
        ("retryable_errors", [KeyboardInterrupt], "is not allowed"),
        ("retryable_errors", [type("Made", (Exception,), {})], "at the top of a module"),
        ("max_attempts", 0, "greater than or equal to 1"),
        ("max_delay_ms", 10, "below initial_delay_ms=1000"),
        ("backoff_type", "cubic", "'exponential', 'linear' or 'constant'"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(field: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RetryPolicy.model_validate({field: value})
