"""Errors as the SDK raises them, for tests."""

from __future__ import annotations

import httpx
import tinker
from tinker.types import RequestErrorCategory

_KINDS = {
    401: tinker.AuthenticationError,
    403: tinker.PermissionDeniedError,
    404: tinker.NotFoundError,
    503: tinker.InternalServerError,
}


def status(code: int) -> tinker.APIStatusError:
    """What a request raises that was answered so."""
    request = httpx.Request("POST", "http://127.0.0.1/api/v1/any")
    kind = _KINDS.get(code, tinker.APIStatusError)
    return kind("no", response=httpx.Response(code, request=request), body=None)


def failed(category: RequestErrorCategory) -> tinker.RequestFailedError:
    """What a request raises whose result is that it has failed."""
    return tinker.RequestFailedError("no", request_id="1", category=category)
