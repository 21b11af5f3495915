"""What the requests of one training client have failed with."""

from __future__ import annotations

import contextlib
import math
from collections import deque

import tinker
from tinker.types import RequestErrorCategory

_KEPT = 16


class RequestErrors:
    """The errors of a client, and which of its steps they cast doubt on; for any thread."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, BaseException]] = []
        """The first few, each with its operation."""
        self.failed_saves: deque[BaseException] = deque(maxlen=_KEPT)
        """Those of the newest saves that the service could not carry out."""
        self._doubts: list[tuple[int, BaseException | None]] = []
        self._seen: list[BaseException] = []

    def doubt(self, step: int, error: BaseException | None) -> None:
        """A request of this step of the loop has not succeeded; without an error, was cancelled."""
        self._doubts.append((step, error))

    def note(self, operation: str, error: BaseException) -> None:
        """A request has failed."""
        if len(self.failed) < _KEPT:
            self.failed.append((operation, error))

    def has_seen(self, error: BaseException) -> None:
        """A wait has raised this error: the loop knows of it, and decides."""
        self._seen.append(error)
        if (
            isinstance(error, tinker.RequestFailedError)
            and error.category is RequestErrorCategory.User
        ):
            # The request itself was invalid. A loop that continues after that does so knowingly.
            for doubt in [each for each in list(self._doubts) if each[1] is error]:
                with contextlib.suppress(ValueError):
                    self._doubts.remove(doubt)
        # Of the newest, the doubt may be yet to come.
        for seen in self._seen[:-_KEPT]:
            if not any(each is seen for _, each in list(self._doubts)):
                with contextlib.suppress(ValueError):
                    self._seen.remove(seen)

    @property
    def first_step(self) -> float:
        """The first step with a request that has not succeeded; infinite if none."""
        return min((step for step, _ in list(self._doubts)), default=math.inf)

    @property
    def unseen(self) -> list[BaseException]:
        """Errors of the loop's requests that no wait has raised yet."""
        return [
            error
            for _, error in list(self._doubts)
            if error is not None and not any(error is seen for seen in list(self._seen))
        ]

    @property
    def every(self) -> list[BaseException]:
        """All that are kept."""
        doubts = [error for _, error in list(self._doubts) if error is not None]
        failed = [error for _, error in self.failed]
        return [*doubts, *failed, *self.failed_saves, *self._seen]
