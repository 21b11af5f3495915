"""What an error of loading a checkpoint says of it."""

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
