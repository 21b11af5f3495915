"""The table of faults: every way a run goes bad, and exactly one verdict for it."""

from __future__ import annotations

import asyncio
import concurrent.futures

import httpx
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from tinker.lib.retryable_exception import RetryableException
from tinker.types import RequestErrorCategory

from tinker_recovery.errors import (
    CorruptedRun,
    DeadlineExceeded,
    FaultError,
    NonFiniteLoss,
    StatusRefused,
    StatusUnavailable,
)
from tinker_recovery.faults import RULES, TABLE, DetectedBy, Fault, Kind, SeenIn, Verdict, judge

_REQUEST = httpx.Request("POST", "http://127.0.0.1/api/v1/optim_step")


def _failed(category: RequestErrorCategory, message: str = "x") -> tinker.RequestFailedError:
    return tinker.RequestFailedError(message, request_id="r", category=category)


_BY_CODE: dict[int, type[tinker.APIStatusError]] = {
    400: tinker.BadRequestError,
    401: tinker.AuthenticationError,
    402: tinker.BillingError,
    403: tinker.PermissionDeniedError,
    404: tinker.NotFoundError,
    409: tinker.ConflictError,
    422: tinker.UnprocessableEntityError,
    429: tinker.RateLimitError,
}


def _status(code: int, message: str = "x") -> tinker.APIStatusError:
    kind = tinker.InternalServerError if code >= 500 else _BY_CODE.get(code, tinker.APIStatusError)
    return kind(message, response=httpx.Response(code, request=_REQUEST), body=None)


def _raised_from(outer: BaseException, cause: BaseException) -> BaseException:
    outer.__cause__ = cause
    return outer


def _poll(code: int) -> BaseException:
    """How the SDK raises what a poll met: the real error is only its cause."""
    return _raised_from(ValueError("Error retrieving result"), _status(code))


CALLS: list[tuple[BaseException, Kind, Verdict]] = [
    (_failed(RequestErrorCategory.Server), Kind.REQUEST_FAILED, Verdict.RECOVER),
    (_failed(RequestErrorCategory.Unknown), Kind.REQUEST_FAILED, Verdict.RECOVER),
    (RetryableException("gone"), Kind.GONE, Verdict.RECOVER),
    (_raised_from(ValueError("x"), RetryableException("gone")), Kind.GONE, Verdict.RECOVER),
    (_status(410), Kind.GONE, Verdict.RECOVER),
    (_status(503), Kind.UNAVAILABLE, Verdict.RECOVER),
    (_status(500), Kind.UNAVAILABLE, Verdict.RECOVER),
    (_status(408), Kind.UNAVAILABLE, Verdict.RECOVER),
    (tinker.APIConnectionError(request=_REQUEST), Kind.UNAVAILABLE, Verdict.RECOVER),
    (tinker.APITimeoutError(_REQUEST), Kind.UNAVAILABLE, Verdict.RECOVER),
    (_status(404), Kind.MODEL_MISSING, Verdict.RECOVER),
    (_poll(404), Kind.MODEL_MISSING, Verdict.RECOVER),
    (_status(400, "Model s:train:0 not loaded"), Kind.MODEL_MISSING, Verdict.RECOVER),
    (_failed(RequestErrorCategory.User, "model not loaded"), Kind.MODEL_MISSING, Verdict.RECOVER),
    (_status(409), Kind.CONFLICT, Verdict.RECOVER),
    (_status(429), Kind.RATE_LIMITED, Verdict.WAIT),
    (_status(401), Kind.UNAUTHORIZED, Verdict.RECOVER),
    (_poll(401), Kind.UNAUTHORIZED, Verdict.RECOVER),
    (_status(402), Kind.UNPAID, Verdict.GIVE_UP),
    (_poll(402), Kind.UNPAID, Verdict.GIVE_UP),
    (_status(403), Kind.FORBIDDEN, Verdict.GIVE_UP),
    (_poll(403), Kind.FORBIDDEN, Verdict.GIVE_UP),
    (_status(422), Kind.INVALID_REQUEST, Verdict.GIVE_UP),
    (_poll(422), Kind.INVALID_REQUEST, Verdict.GIVE_UP),
    (_status(400), Kind.INVALID_REQUEST, Verdict.GIVE_UP),
    (_failed(RequestErrorCategory.User), Kind.USER_ERROR, Verdict.GIVE_UP),
    (
        RuntimeError("A previous request failed; this TrainingClient is poisoned and cannot"),
        Kind.CLIENT_POISONED,
        Verdict.RECOVER,
    ),
    (RuntimeError("Internal client holder is closed"), Kind.CLIENT_CLOSED, Verdict.RECOVER),
    (RuntimeError("ServiceClient is closed"), Kind.CLIENT_CLOSED, Verdict.RECOVER),
    (asyncio.CancelledError(), Kind.CANCELLED, Verdict.RECOVER),
    (concurrent.futures.CancelledError(), Kind.CANCELLED, Verdict.RECOVER),
    (ValueError("cannot decode the result"), Kind.REQUEST_BROKE, Verdict.RECOVER),
    (NonFiniteLoss(3, float("nan")), Kind.LOSS_NOT_FINITE, Verdict.RECOVER),
]


@pytest.mark.parametrize(
    ("error", "kind", "verdict"), CALLS, ids=[f"{kind.value}-{e!r:.40}" for e, kind, _ in CALLS]
)
def test_what_a_request_ended_in_has_its_kind_and_its_verdict(
    error: BaseException, kind: Kind, verdict: Verdict
) -> None:
    rule = judge(error, SeenIn.CALL)
    assert rule is not None
    assert (rule.kind, rule.verdict) == (kind, verdict)


@pytest.mark.parametrize(
    ("error", "kind", "verdict"),
    [
        (DeadlineExceeded("creating a client", 240), Kind.DEADLINE, Verdict.WAIT),
        (StatusUnavailable("x", status_code=503), Kind.STATUS_UNREAD, Verdict.WAIT),
        (StatusUnavailable("x", status_code=429), Kind.RATE_LIMITED, Verdict.WAIT),
        (StatusRefused("x", status_code=401), Kind.UNAUTHORIZED, Verdict.GIVE_UP),
        (_status(404), Kind.INVALID_REQUEST, Verdict.GIVE_UP),
        (_status(409), Kind.INVALID_REQUEST, Verdict.GIVE_UP),
        (_status(503), Kind.UNAVAILABLE, Verdict.RECOVER),
    ],
)
def test_what_stops_a_client_from_being_created_is_judged_by_where_it_was_seen(
    error: BaseException, kind: Kind, verdict: Verdict
) -> None:
    rule = judge(error, SeenIn.CREATE)
    assert rule is not None
    assert (rule.kind, rule.verdict) == (kind, verdict)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the user's own"),
        RuntimeError("the user's own"),
        concurrent.futures.CancelledError(),
        asyncio.CancelledError(),
        StatusUnavailable("the user's own reading"),
        ExceptionGroup("g", [_failed(RequestErrorCategory.Server), KeyError("the user's own")]),
    ],
)
def test_what_may_be_the_users_own_is_left_to_the_user(error: BaseException) -> None:
    assert judge(error, SeenIn.BODY) is None


@pytest.mark.parametrize("place", SeenIn)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_ends_programs_is_never_a_fault(error: BaseException, place: SeenIn) -> None:
    assert judge(error, place, [lambda _: True]) is None


def test_a_group_is_a_fault_only_if_all_of_it_is() -> None:
    rule = judge(
        ExceptionGroup("g", [_failed(RequestErrorCategory.Server), RetryableException("g")])
    )
    assert rule is RULES[Kind.REQUEST_FAILED]


def test_a_cycle_of_causes_is_judged_all_the_same() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert judge(first) is None


def test_the_users_own_rows_are_asked_first_by_class_or_by_predicate() -> None:
    mine = _raised_from(RuntimeError("outer"), KeyError("inner"))
    assert judge(mine, SeenIn.BODY, [KeyError]) is RULES[Kind.RETRYABLE]
    assert judge(mine, SeenIn.BODY, [lambda e: "outer" in str(e)]) is RULES[Kind.RETRYABLE]
    assert judge(_status(401), SeenIn.CALL, [tinker.AuthenticationError]) is RULES[Kind.RETRYABLE]
    assert judge(mine, SeenIn.BODY, [OSError]) is None


def test_a_refused_credential_of_a_call_is_asked_for_again_and_no_other_is() -> None:
    verdicts = {}
    for place in SeenIn:
        rule = judge(_poll(401), place)
        assert rule is not None
        assert rule.kind is Kind.UNAUTHORIZED
        verdicts[place] = rule.verdict
    assert verdicts == {
        SeenIn.CALL: Verdict.RECOVER,
        SeenIn.BODY: Verdict.GIVE_UP,
        SeenIn.CREATE: Verdict.GIVE_UP,
    }


def test_every_kind_has_exactly_one_row_and_every_row_a_reason() -> None:
    assert sorted(rule.kind for rule in TABLE) == sorted(Kind)
    assert all(rule.reason and rule.seen_as for rule in TABLE)


@given(code=st.integers(400, 599), place=st.sampled_from(SeenIn), hidden=st.booleans())
def test_every_http_status_of_the_service_is_judged_wherever_it_is_seen(
    *, code: int, place: SeenIn, hidden: bool
) -> None:
    error = _poll(code) if hidden else _status(code)
    assert judge(error, place) is not None


@pytest.mark.parametrize("rule", TABLE, ids=lambda rule: rule.kind.value)
def test_a_fault_that_nothing_raised_still_has_an_error_that_names_the_run(rule: object) -> None:
    fault = Fault("r", 1, "session:train:0", rule, DetectedBy.POLL, step=3)  # type: ignore[arg-type]  # pytest's parameter
    error = fault.as_error()
    assert isinstance(error, FaultError)
    assert isinstance(error, CorruptedRun) == (fault.kind is Kind.CORRUPTED)
    assert "session:train:0" in str(error)
