"""What an error of the SDK says: of the checkpoint that is loaded or saved, and to a reader."""

from __future__ import annotations

import re

import tinker
from tinker.types import RequestErrorCategory

from tinker_recovery.errors import causes


def is_refused(error: BaseException) -> bool:
    """Whether this checkpoint cannot be loaded, now or later, by the service's answer."""
    for each in causes(error):
        if isinstance(
            each,
            (tinker.NotFoundError, tinker.BadRequestError, tinker.UnprocessableEntityError),
        ):
            return True
        if isinstance(each, tinker.RequestFailedError):
            return each.category is RequestErrorCategory.User
    return False


_SHOWN = 500
"""Most characters of an answer that are repeated."""

_LIMIT = re.compile(r"limit|too many|maximum|concurrent", re.IGNORECASE)
_OF_WHAT = re.compile(r"session|client", re.IGNORECASE)


def is_limit(error: BaseException) -> bool:
    """Whether there are too many sessions or training clients, by the service's answer."""
    return any(
        isinstance(each, tinker.RateLimitError)
        or (
            isinstance(each, tinker.APIStatusError | tinker.RequestFailedError)
            and _LIMIT.search(str(each)) is not None
            and _OF_WHAT.search(str(each)) is not None
        )
        for each in causes(error)
    )


def is_failed(error: BaseException) -> bool:
    """Whether the service answered that loading failed, without saying that it always will.

    A service may blame itself for a damaged file (category ``server``), each time anew.
    """
    return any(isinstance(each, tinker.RequestFailedError) for each in causes(error))


_NO_REFUSAL = frozenset({401, 402, 408, 409, 410, 429})
"""What a service answers to any request as well: a key, a bill, a session, or its load."""


def refuses_save(error: BaseException) -> bool:
    """Whether a service that answers a save with this would not store it if it were asked again."""
    return (
        isinstance(error, tinker.APIStatusError)
        and error.response.is_client_error
        and error.status_code not in _NO_REFUSAL
    )


_BUSY = frozenset({408, 409, 429})


def outlasts_tries(error: BaseException) -> bool:
    """Whether the SDK tries a save that is answered so again, until it has tried for long enough.

    A request that it gives up is missing in the order of its client's requests, as a refused one.
    """
    if isinstance(error, tinker.APIStatusError):
        return error.status_code in _BUSY or error.response.is_server_error
    return isinstance(error, tinker.APIConnectionError)


_MACHINERY = " for self.request_id="
"""What the SDK appends to the service's own words: ids and classes of its code."""


def in_words(error: BaseException) -> str:
    """What the service has answered, in one line, without what the SDK says of its own code."""
    if isinstance(error, tinker.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        said = body.get("detail") or body.get("message") or body.get("error")
        return f"HTTP {error.status_code}: {_line(said or error.response.text)}".rstrip(": ")
    said = _line(str(error).partition(_MACHINERY)[0])
    if isinstance(error, tinker.RequestFailedError):
        return f"the service answers that it failed: {said.removeprefix('Request failed: ')}"
    return said or type(error).__name__


def _line(said: object) -> str:
    return " ".join(str(said).split())[:_SHOWN]
