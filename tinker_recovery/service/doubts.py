"""The requests of a loop that are not known to have succeeded, and what the loop knows of them."""

from __future__ import annotations

import math

import tinker
from tinker.types import RequestErrorCategory


class Doubts:
    """Requests that ended without success; usable from any thread."""

    def __init__(self) -> None:
        self._doubts: list[tuple[int, BaseException | None]] = []
        self._seen: list[BaseException] = []

    def add(self, step: int, error: BaseException | None) -> None:
        """A request of this step has failed; without an error, it was cancelled."""
        self._doubts.append((step, error))

    @property
    def first_step(self) -> float:
        """The first step with one; infinite if there is none."""
        return min((step for step, _ in list(self._doubts)), default=math.inf)

    @property
    def unseen(self) -> list[BaseException]:
        """Errors that no wait has raised yet."""
        return [
            error
            for _, error in list(self._doubts)
            if error is not None and not any(error is seen for seen in self._seen)
        ]

    def has_seen(self, error: BaseException) -> None:
        """Note that a wait has raised this error: the loop knows of it, and decides."""
        self._seen.append(error)
        if (
            isinstance(error, tinker.RequestFailedError)
            and error.category is RequestErrorCategory.User
        ):
            # The request itself was invalid. A loop that continues after that does so knowingly.
            self._doubts = [doubt for doubt in self._doubts if doubt[1] is not error]
