"""Ahead: the client that will probably be used, made ready while the choice is still under way.

Choosing takes two round trips and loading at least three. In nearly every recovery the newest
checkpoint that the service said it had stored is the one chosen, so a client is made of it at once,
or its run's spare client taken, and the canary asked. The choice has the last word: what was made
of another checkpoint is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import anyio

from tinker_recovery.checkpoints.canary import Answer
from tinker_recovery.recovery.spares import Spawn
from tinker_recovery.service import Connection, TinkerBackend
from tinker_recovery.service.pending_session import PendingSession
from tinker_recovery.shielding import is_being_cancelled, to_the_end
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

END_S = 15.0
"""How long what is made may take to end, once it is not wanted: its own deadlines are a third."""

Close = Callable[[Connection], Awaitable[None]]
Make = Callable[[], Awaitable[Connection]]
"""Makes a client. If it raises, also as it is cancelled, it has closed what it made."""
Ask = Callable[[Connection], Awaitable[Answer]]


class Ahead:
    """What is made ready for one recovery, and used once: a session, or a client.

    Args:
        backend: What opens sessions.
        spawn: Runs something in the background.
        close: Closes a client that is not used.
    """

    def __init__(self, backend: TinkerBackend, spawn: Spawn, close: Close) -> None:
        self._backend = backend
        self._spawn = spawn
        self._close = close
        self._session: PendingSession | None = None
        self.path: str | None = None
        """The checkpoint that the client to be taken is of; None if there is none."""
        self._begun = self._is_late = False
        self._scope = anyio.CancelScope()
        self._made = anyio.Event()
        self._asked = anyio.Event()
        self._connection: Connection | None = None
        self._taken: Connection | None = None
        self._answer: Answer | None = None
        self._error: BaseException | None = None

    def open(self) -> None:
        """Begin to open a session."""
        self._session = self._backend.open_ahead()

    def session(self) -> PendingSession | None:
        """The session that was opened, from now on the caller's."""
        session, self._session = self._session, None
        return session

    def make(self, path: str, make: Make, ask: Ask | None) -> None:
        """Begin to make a client of this checkpoint, and to ask the canary on it."""
        self.path, self._begun = path, True

        async def work() -> None:
            try:
                with self._scope:
                    connection = self._connection = await make()
                    self._made.set()
                    if ask is not None:
                        self._answer = await ask(connection)
            except Exception as error:  # noqa: BLE001 - raised to who waits for the client
                self._error = error
            except asyncio.CancelledError as error:
                if is_being_cancelled():
                    raise
                self._error = error  # by something underneath, without our asking
            finally:
                self._made.set()
                self._asked.set()
                if self._is_late:
                    await to_the_end(self._close_made())

        self._spawn(work)

    async def take(self) -> Connection:
        """Wait for the client; from now on it is the caller's.

        Raises:
            Exception: What making it ended with.
        """
        await self._made.wait()
        self.path, connection = None, self._connection
        self._taken, self._connection = connection, None
        if connection is None:
            raise self._error or RuntimeError("making a client ahead was cancelled")
        return connection

    async def answer_of(self, connection: Connection) -> Answer | None:
        """Wait for the canary's answer, once; None if it is not asked on this client.

        Raises:
            Exception: What asking ended with.
        """
        if connection is not self._taken:
            return None
        await self._asked.wait()
        self._taken = None
        if self._error is not None:
            raise self._error
        return self._answer

    def drop(self) -> None:
        """Close the client if it was not taken, and ask no more on it; in the background."""
        self.path = self._taken = None
        if self._begun:
            self._spawn(self._end_behind)

    async def discard(self) -> None:
        """Close what was not taken, whoever cancels that; never raises an Exception."""
        self.path = self._taken = None
        await to_the_end(self._discard())

    async def _discard(self) -> None:
        if (session := self.session()) is not None:
            await self._backend.discard(session)
        await self._end()

    async def _end_behind(self) -> None:
        await to_the_end(self._end())

    async def _end(self) -> None:
        if self._begun:
            self._begun = False
            self._scope.cancel()
            with anyio.move_on_after(END_S) as waiting:
                await self._asked.wait()
            if waiting.cancelled_caught:
                # What is still made closes itself, or is closed once it is there.
                self._is_late = True
                logger.warning(
                    "a client that is not used is still being made %g s after that was ended; "
                    "it is not waited for, and closed in the background",
                    END_S,
                )
                return
        await self._close_made()

    async def _close_made(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._close(connection)
