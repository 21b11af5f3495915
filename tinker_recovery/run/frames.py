"""Where errors were raised, dropped once they are history."""

from __future__ import annotations

from collections.abc import Iterable


def drop_frames(errors: Iterable[BaseException]) -> None:
    """Drop the tracebacks of errors, and of all that they came of or consist of.

    A traceback holds each frame it passed, with all local variables: clients, batches, answers.
    """
    left, seen = list(errors), set[int]()
    while left:
        error = left.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        error.__traceback__ = None
        left += filter(None, (error.__cause__, error.__context__))
        if isinstance(error, BaseExceptionGroup):
            left += error.exceptions
