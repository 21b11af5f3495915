"""What an error of loading a checkpoint says of it."""

from __future__ import annotations

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


def is_failed(error: BaseException) -> bool:
    """Whether the service answered that loading failed, without saying that it always will.

    A service may blame itself for a damaged file (category ``server``), each time anew.
    """
    return any(isinstance(each, tinker.RequestFailedError) for each in causes(error))
