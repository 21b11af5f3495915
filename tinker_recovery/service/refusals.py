"""Whether an error means that the service refuses a checkpoint."""

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
