"""A service that limits sessions: what is on standby makes room, once, with a word."""

from __future__ import annotations

import httpx
import pytest
import tinker

from tinker_recovery.service.refusals import is_limit


def _error(kind: type[tinker.APIStatusError], status: int, message: str) -> tinker.APIStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/api/v1/create_session")
    return kind(message, response=httpx.Response(status, request=request), body=None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_error(tinker.RateLimitError, 429, "slow down"), True),
        (_error(tinker.BadRequestError, 400, "concurrent training clients limit hit"), True),
        (_error(tinker.PermissionDeniedError, 403, "Too many open sessions"), True),
        (_error(tinker.PermissionDeniedError, 403, "no access to this model"), False),
        (_error(tinker.BadRequestError, 400, "maximum length is 4096"), False),
        (RuntimeError("session limit"), False),
    ],
)
def test_too_many_sessions_are_recognised(error: Exception, *, expected: bool) -> None:
    assert is_limit(error) is expected
    wrapped = RuntimeError("opening")
    wrapped.__cause__ = error
    assert is_limit(wrapped) is expected
