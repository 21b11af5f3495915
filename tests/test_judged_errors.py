"""What an error means that leaves the body of an attempt: a decision, with an attempt made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tinker
from sdk_errors import failed, status
from tinker.types import RequestErrorCategory

from tinker_recovery.faults import RULES, Kind
from tinker_recovery.run.judging import judge_leaving, judge_request
from tinker_recovery.service.client import CANARY, CUSTOM_LOSS, SAVE


def from_it(error: BaseException) -> BaseException:
    made = ValueError("the loop's own words")
    made.__cause__ = error
    return made


def attempt(**facts: Any) -> Any:
    """An attempt whose body is left, with the errors of its requests."""
    return SimpleNamespace(
        refusal=SimpleNamespace(error=facts.get("refused"), rule=RULES[Kind.SAVE_REFUSED]),
        fault=facts.get("fault"),
        run=SimpleNamespace(policy=SimpleNamespace(retryable_errors=facts.get("retryable", ()))),
        client=SimpleNamespace(
            failed=facts.get("failed", []), failed_saves=facts.get("failed_saves", [])
        ),
        connection=facts.get("connection"),
        sampling=SimpleNamespace(failed=facts.get("failed_samples", [])),
    )


def kind_of(scope: Any, error: BaseException) -> Kind | None:
    rule = judge_leaving(scope, error)
    return None if rule is None else rule.kind


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_raised_from_the_error_of_a_request_is_judged_as_that_request(
    *, wrapped: bool
) -> None:
    for operation, kind in (("forward_backward", Kind.MODEL_MISSING), ("sampler", None)):
        error = status(404)
        left = from_it(error) if wrapped else error
        scope = attempt(failed=[("optim_step", status(503)), (operation, error)])
        assert kind_of(scope, left) is (kind or Kind.INVALID_REQUEST)
    unknown = KeyError("not JSON")
    left = from_it(unknown) if wrapped else unknown
    assert kind_of(attempt(failed=[("optim_step", unknown)]), left) is Kind.REQUEST_BROKE
    assert kind_of(attempt(failed_saves=[unknown]), left) is Kind.REQUEST_BROKE
    assert kind_of(attempt(failed=[("optim_step", KeyError("not JSON"))]), left) is None, "not it"
    assert kind_of(attempt(failed=[(CUSTOM_LOSS, unknown)]), left) is None, "the user's own"


def test_the_model_is_gone_where_a_save_of_the_loops_own_says_so() -> None:
    error = status(404)
    assert kind_of(attempt(failed_saves=[error]), error) is Kind.MODEL_MISSING
    assert kind_of(attempt(), error) is Kind.INVALID_REQUEST


def test_what_a_save_was_refused_with_and_a_fault_keep_the_rule_that_they_have() -> None:
    error = status(422)
    assert kind_of(attempt(refused=error, failed=[(SAVE, error)]), from_it(error)) is (
        Kind.SAVE_REFUSED
    )
    fault = SimpleNamespace(error=error, rule=RULES[Kind.METADATA_REFUSED])
    assert kind_of(attempt(fault=fault, failed=[(SAVE, error)]), error) is Kind.METADATA_REFUSED
    other = SimpleNamespace(error=status(422), rule=RULES[Kind.METADATA_REFUSED])
    assert kind_of(attempt(fault=other), error) is Kind.INVALID_REQUEST
    silent = SimpleNamespace(error=None, rule=RULES[Kind.SILENCE])
    assert kind_of(attempt(fault=silent), ValueError("x")) is None


def test_a_group_is_a_fault_only_if_each_in_it_is() -> None:
    broken = KeyError("not JSON")
    scope = attempt(failed=[("optim_step", broken)])
    assert kind_of(scope, ExceptionGroup("", [broken, status(503)])) is Kind.REQUEST_BROKE
    assert kind_of(scope, ExceptionGroup("", [status(503), broken])) is Kind.UNAVAILABLE
    assert kind_of(scope, ExceptionGroup("", [broken, ValueError("own")])) is None


def test_what_the_policy_names_is_a_fault_of_the_body_of_a_request_and_of_a_sample() -> None:
    error = ValueError("x")
    for facts in ({}, {"failed": [(CUSTOM_LOSS, error)]}, {"failed_samples": [error]}):
        assert kind_of(attempt(retryable=(ValueError,), **facts), error) is Kind.RETRYABLE
        assert kind_of(attempt(**facts), error) is None


def test_a_request_inside_a_custom_loss_meets_a_rotated_key_like_any_other() -> None:
    for operation in (CUSTOM_LOSS, "optim_step"):
        rule, elsewhere = judge_request(operation, status(401))
        assert rule is not None
        assert (rule.verdict, elsewhere) == ("recover", False)
    kept, _ = judge_request(CUSTOM_LOSS, status(401), (tinker.AuthenticationError,))
    assert kept is RULES[Kind.RETRYABLE]
    assert judge_request("sampler", status(404))[1], "it is about something else than the model"
    named = judge_request("sampler", status(404), (tinker.NotFoundError,))
    assert named == (RULES[Kind.RETRYABLE], False)
    assert judge_request(CANARY, status(404)) == (RULES[Kind.MODEL_MISSING], False)


@pytest.mark.parametrize(
    ("connection", "explained"),
    [
        (None, False),
        (SimpleNamespace(training=SimpleNamespace(holder=SimpleNamespace(_closed=True))), False),
        (SimpleNamespace(training=SimpleNamespace(holder=SimpleNamespace(_closed=False))), True),
    ],
)
def test_a_closed_client_that_is_not_the_attempts_is_the_loops_own_mistake_and_that_is_said(
    connection: Any, *, explained: bool
) -> None:
    error = RuntimeError("ServiceClient is closed")
    kind = kind_of(attempt(connection=connection), error)
    assert kind is (None if explained else Kind.CLIENT_CLOSED)
    notes = getattr(error, "__notes__", [])
    assert [note.startswith("This is not the client of this attempt") for note in notes] == (
        [True] * explained
    )
    other = RuntimeError("TrainingClient is poisoned")
    assert kind_of(attempt(connection=connection), other) is Kind.CLIENT_POISONED
    assert not hasattr(other, "__notes__")


@pytest.mark.parametrize(
    ("error", "of_a_sample", "else_"),
    [
        (status(503), Kind.SAMPLING_FAILED, Kind.UNAVAILABLE),
        (status(404), Kind.SAMPLING_FAILED, Kind.INVALID_REQUEST),
        (failed(RequestErrorCategory.Server), Kind.SAMPLING_FAILED, Kind.REQUEST_FAILED),
        (status(401), Kind.UNAUTHORIZED, Kind.UNAUTHORIZED),
        (status(429), Kind.RATE_LIMITED, Kind.RATE_LIMITED),
        (status(422), Kind.INVALID_REQUEST, Kind.INVALID_REQUEST),
        (failed(RequestErrorCategory.User), Kind.USER_ERROR, Kind.USER_ERROR),
        (ValueError("no such option"), None, None),
    ],
)
def test_a_sample_that_failed_at_a_fresh_sampler_too_is_recovered_from_if_that_may_help(
    error: BaseException, of_a_sample: Kind | None, else_: Kind | None
) -> None:
    rule = judge_leaving(attempt(failed_samples=iter([ValueError("x"), error])), from_it(error))
    assert (None if rule is None else rule.kind) is of_a_sample
    if of_a_sample is Kind.UNAUTHORIZED:
        assert rule is not None
        assert rule.verdict == "recover", "training waits for the key"
    assert kind_of(attempt(failed_samples=[ValueError("x")]), error) is else_
    assert kind_of(attempt(), error) is else_


def test_a_program_that_is_to_end_ends_whatever_it_was_at() -> None:
    for stop in (KeyboardInterrupt(), SystemExit(2)):
        assert kind_of(attempt(failed_samples=[stop]), stop) is None
        assert kind_of(attempt(failed=[("optim_step", stop)]), stop) is None
