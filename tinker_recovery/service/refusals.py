"""How to read a service's refusal of a checkpoint."""

from __future__ import annotations

import tinker
from tinker.types import RequestErrorCategory

from tinker_recovery.errors import causes


def is_refused(error: BaseException) -> bool:
    """Whether the service says that this checkpoint cannot be loaded, now or later."""
    for each in causes(error):
        if isinstance(
            each,
            (tinker.NotFoundError, tinker.BadRequestError, tinker.UnprocessableEntityError),
        ):
            return True
        if isinstance(each, tinker.RequestFailedError):
            return each.category is RequestErrorCategory.User
    return False
