"""The rounds of ``async for attempt in supervisor.attempts(...)``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Self

from tinker_recovery.errors import UsageError
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.service.contact import FirstContact

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun


class Rounds:
    """The iterator behind ``supervisor.attempts(...)``.

    Args:
        open_run: Opens the run; called when its first attempt is asked for.
    """

    def __init__(self, open_run: Callable[[], Awaitable[SupervisedRun]]) -> None:
        self._open_run = open_run
        self._run: SupervisedRun | None = None
        self._last: AttemptScope | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt:
        if self._run is None:
            self._run = await self._open_run()
            self._last = await first_attempt(self._run)
            return Attempt(self._last)
        if self._last is None or not self._last.entered:
            raise UsageError(
                "an attempt was asked for while the one before was never entered: the loop's body "
                "is `async with attempt: ...`"
            )
        # A body that takes its time to leave may find the recovery done already.
        if not self._run.recovering and self._last is self._run.current:
            raise StopAsyncIteration
        self._last = await self._run.next_attempt()
        return Attempt(self._last)


async def first_attempt(run: SupervisedRun) -> AttemptScope:
    """The first attempt of a run; an error of the service says what to do.

    Raises:
        ServiceUnusable: The service's address or the credential is wrong.
        Exception: As :meth:`SupervisedRun.first_attempt`.
    """
    try:
        with FirstContact(run.collaborators.reader.http.endpoint):
            return await run.first_attempt()
    finally:
        run.attempts.begun.set()
