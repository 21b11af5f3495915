"""The places that recoveries wait for: as many at once as the policy allows, see ``admission``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio

from tinker_recovery.admission import Admission, Ticket
from tinker_recovery.telemetry import names, phase


class Place:
    """A place that one try of a recovery waits for: ``async with place:``.

    Cancelling the wait gives it up.

    Attributes:
        blamed: Whether the try failed, and the backend is to blame for it.
    """

    def __init__(self, places: Places, ticket: Ticket) -> None:
        self._places = places
        self.ticket = ticket
        self.admitted = anyio.Event()
        self.blamed = False

    async def __aenter__(self) -> Self:
        self._places.ask(self)
        if not self.admitted.is_set():
            try:
                with phase(names.SPAN_QUEUE, {names.TRY: self.ticket.tries}):
                    await self.admitted.wait()
            except BaseException:
                self._places.leave(self)
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._places.leave(self)

    def succeeded(self) -> None:
        """The try went well."""
        self._places.succeeded()

    def failed(self) -> None:
        """The service could not do it; another time it may."""
        self.blamed = self._places.failed(self.ticket)


class Places:
    """The places for recoveries; what is asked of it, other than :meth:`serve`, never awaits.

    Args:
        most: The most recoveries at once.
        backoff_s: Seconds that everybody backs off for after so many probes failed in a row.
        sleep: Waits that long.
    """

    def __init__(
        self,
        most: int,
        *,
        backoff_s: Callable[[int], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._backoff_s = backoff_s
        self._sleep = sleep
        self._admission = Admission(most)
        self._asking: dict[Ticket, Place] = {}
        self._closed = anyio.Event()
        self._closed_for_s = 0.0

    def place(self, *, left: int, detected_at: float, tries: int) -> Place:
        """A place to wait for; see :class:`Ticket`."""
        return Place(self, Ticket(left, detected_at, tries))

    def ask(self, place: Place) -> None:
        """A place is wanted."""
        self._asking[place.ticket] = place
        self._admission.ask(place.ticket)
        self._admit()

    def leave(self, place: Place) -> None:
        """A place is free again, or not wanted any more."""
        self._asking.pop(place.ticket, None)
        self._admission.leave(place.ticket)
        self._admit()

    def succeeded(self) -> None:
        """A try went well."""
        self._admission.succeeded()
        self._admit()

    def failed(self, ticket: Ticket) -> bool:
        """A try failed; whether the backend is to blame, and everybody backs off."""
        failures = self._admission.failed(ticket)
        if failures:
            self._closed_for_s = self._backoff_s(failures)
            self._closed.set()
        return failures > 0

    def be_careful(self, *, careful: bool) -> None:
        """A mass failure has begun, or the last one is over."""
        self._admission.be_careful(careful=careful)
        self._admit()

    def _admit(self) -> None:
        for ticket in self._admission.admit():
            self._asking.pop(ticket).admitted.set()

    async def serve(self) -> None:
        """Let recoveries go on after each common backoff, for ever."""
        while True:
            await self._closed.wait()
            self._closed = anyio.Event()
            await self._sleep(self._closed_for_s)
            self._admission.reopen()
            self._admit()
