"""The SDK adapter: creates and closes clients, each within a deadline of ours."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import tinker
from tinker.lib.base_url import resolve_base_url
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.errors import StatusRefused, UsageError
from tinker_recovery.service import at_work, closing, credentials, sdk_at_exit, sdk_workarounds
from tinker_recovery.service.at_work import Patience, patiently
from tinker_recovery.service.base import (
    CloseStatus,
    Connection,
    Endpoint,
    Origin,
    ServiceFactory,
)
from tinker_recovery.service.pending_session import PendingSession
from tinker_recovery.service.refusals import is_limit
from tinker_recovery.service.waiting import result_of
from tinker_recovery.shielding import to_the_end
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

Announce = Callable[[str], Awaitable[None]]
"""Called with the id of a session before a model is made in it; if it raises, none is."""

OPEN_AGAIN_S = 10.0
"""A session that is not open after this long is given up, and another one opened.

Opening one takes seconds. But now and then (measured: once in 300, when one process opens session
after session) the SDK never sees the answer to its first request: it leaves the HTTP client of that
request to the garbage collector, whose finalizer closes a file descriptor that by then belongs to
another socket. The SDK repeats the request only after 60 s.
"""

STANDBY_AFTER_S = 1.0
"""How long after a client is created the standby session is opened, so as not to delay it."""


def endpoint_of(service: tinker.ServiceClient) -> Endpoint:
    """The endpoint of a ServiceClient, without opening a session for it.

    Follows the SDK's rules, which it applies only when it opens a session.

    Raises:
        StatusRefused: The file of stored keys cannot be read.
    """
    return Endpoint(
        base_url=resolve_base_url(service._base_url),  # noqa: SLF001 - the SDK has no public way to ask
        api_key=credentials.key_of(service),
        headers=dict(service._default_headers_overrides),  # noqa: SLF001 - as above
        url_from=_url_from(service),
        key_from=credentials.key_from(service),
    )


def _url_from(service: tinker.ServiceClient) -> str:
    if service._base_url:  # noqa: SLF001 - as above
        return "base_url= of the ServiceClient that service= returns"
    return "TINKER_BASE_URL" if os.environ.get("TINKER_BASE_URL") else "the SDK's default"


class TinkerBackend:
    """Clients of the Tinker service through its SDK.

    Args:
        factory: Returns a fresh ServiceClient; the default reads TINKER_BASE_URL and
            TINKER_API_KEY, as the SDK does.
        standby: Whether to hold one session open for the next client; :meth:`aclose` closes it.
    """

    def __init__(
        self, factory: ServiceFactory = tinker.ServiceClient, *, standby: bool = False
    ) -> None:
        if not callable(factory):
            raise UsageError(
                f"service is of type {type(factory).__name__}, which is not allowed: give a "
                "function that returns a fresh client, as service=lambda: tinker.ServiceClient(...)"
            )
        sdk_workarounds.apply()
        at_work.apply()
        sdk_at_exit.apply()
        self._factory = factory
        self._wants_standby = standby
        self._standby: PendingSession | None = None
        self._preparing: asyncio.TimerHandle | None = None

    async def endpoint(self) -> Endpoint:
        """The address and credentials of the service; opens no session, and asks nothing.

        Raises:
            UsageError: There is no credential, or one that the SDK never sends.
        """

        def ask() -> Endpoint:
            return replace(endpoint_of(self._factory()), renew=ask)

        try:
            endpoint = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)
            await credentials.check(endpoint.api_key)
        except StatusRefused as error:
            raise UsageError(str(error)) from None
        self._prepare()
        return endpoint

    def open_ahead(self) -> PendingSession:
        """Start opening a session for a later :meth:`connect`, or take the one on standby.

        Returns at once. The result has to be passed to :meth:`connect` or :meth:`discard`, once.
        """
        standby = self._standby
        if standby is not None and standby.is_open:
            self._standby = None
            return standby
        return PendingSession(self._factory)

    async def discard(self, pending: PendingSession) -> None:
        """Close a session opened ahead that is not needed; never raises an Exception."""
        await to_the_end(_give_up(pending, "it was not needed"))

    async def connect(
        self,
        origin: Origin,
        *,
        patience: Patience,
        pending: PendingSession | None = None,
        announce: Announce | None = None,
    ) -> Connection:
        """A new client in a new session, or in one opened ahead.

        If it is cancelled or fails, the session and the client are closed.

        Args:
            origin: How it is made.
            patience: How long to wait for it.
            pending: The session opened ahead.
            announce: Called once the session is open, before the client is made in it.

        Raises:
            DeadlineExceeded: The patience came to its end.
            Exception: The service's error, or what ``announce`` raised.
        """
        if pending is None:
            pending = PendingSession(self._factory)
        try:
            with patiently(f"creating a client ({origin})", patience):
                if announce is None:
                    pending.submit(origin)
                if not await _opens(pending):
                    logger.warning("no session opened within %g s; opening another", OPEN_AGAIN_S)
                    pending = await self._replace(pending)
                    await _submit(pending, origin, announce)
                elif announce is not None:
                    await _submit(pending, origin, announce)
                try:
                    training = await _created(pending)
                except Exception as error:
                    if not (pending.standby or await self._made_room(error)):
                        raise
                    # The service may have forgotten the session. Any other cause will show again
                    # in the new one.
                    logger.info("a session failed; opening another: %r", error)
                    pending = await self._replace(pending)
                    await _submit(pending, origin, announce)
                    training = await _created(pending)
            _check_client(training)
        except BaseException:
            await to_the_end(_give_up(pending, "its training client could not be created"))
            raise
        self._prepare()
        return Connection(training, str(training.model_id), pending.service)

    async def _replace(self, pending: PendingSession) -> PendingSession:
        # If the old one opens after all, its thread closes it.
        pending.release()
        await _abandon(pending, "another one was opened")
        return PendingSession(self._factory)

    async def _made_room(self, error: Exception) -> bool:
        """Whether the session on standby was given up, for it may be one too many."""
        standby, self._standby = self._standby, None
        if standby is None or not is_limit(error):
            self._standby = standby
            return False
        self._stop_preparing(error)
        await self.discard(standby)
        return True

    def _stop_preparing(self, error: BaseException) -> None:
        self._wants_standby = False
        logger.warning(
            "the service limits sessions, so none is kept on standby any more (standby=): %s", error
        )

    def _prepare(self) -> None:
        if self._wants_standby and self._preparing is None:
            loop = asyncio.get_running_loop()
            self._preparing = loop.call_later(STANDBY_AFTER_S, self._open_standby)

    def _open_standby(self) -> None:
        self._preparing = None
        standby = self._standby
        # One that could not be opened is not tried again before the next client is created.
        if standby is not None and standby.finished.done():
            error = standby.submitted.exception() if standby.submitted.done() else None
            if error is not None and is_limit(error):
                self._standby = None
                self._stop_preparing(error)
                return
        if standby is None or standby.finished.done():
            self._standby = PendingSession(self._factory, standby=True)

    async def aclose(self) -> None:
        """Close the session on standby; never raises an Exception."""
        if self._preparing is not None:
            self._preparing.cancel()
        self._wants_standby = False
        standby, self._standby = self._standby, None
        if standby is not None:
            await self.discard(standby)

    async def close(
        self, connection: Connection, status: CloseStatus, detail: str, *, deadline_s: float
    ) -> None:
        """Finish the session and stop everything that polls for it; never raises an Exception.

        Completes even if cancelled. Past the deadline only the resources of this process are
        released.
        """
        if connection.service is not None:
            await to_the_end(
                closing.close(connection.service, status, detail, deadline_s=deadline_s)
            )


def is_open(connection: Connection) -> bool:
    """Whether nobody has closed a connection's client yet."""
    return not getattr(connection.training.holder, "_closed", False)


async def _opens(pending: PendingSession) -> bool:
    """Whether the session is open, or refused, within :data:`OPEN_AGAIN_S`."""
    with anyio.move_on_after(OPEN_AGAIN_S):
        await asyncio.wrap_future(pending.opened)
    return pending.opened.done()


async def _submit(pending: PendingSession, origin: Origin, announce: Announce | None) -> None:
    """Have the client created, once its session is open and announced if it has to be."""
    if announce is not None:
        await asyncio.wrap_future(pending.opened)
        if (session_id := pending.session_id) is not None:
            await announce(session_id)
    pending.submit(origin)


async def _created(pending: PendingSession) -> Any:
    """The client that was asked for; cancelling this wait does not cancel its creation."""
    submitted = await asyncio.wrap_future(pending.submitted)
    if not isinstance(submitted, APIFuture):
        return await submitted if inspect.isawaitable(submitted) else submitted
    creation = pending.creation = submitted.future()
    return await result_of(creation)


async def _give_up(pending: PendingSession, detail: str) -> None:
    pending.release()
    # Usually the thread is about to end, and then nothing is left behind.
    with anyio.move_on_after(closing.ABANDON_S):
        await asyncio.wrap_future(pending.finished)
    await _abandon(pending, detail)
    # Last: for a request that is cancelled just as it fails, the SDK logs a traceback.
    if pending.creation is not None:
        closing.give_up_creation(pending.service, pending.creation)


async def _abandon(pending: PendingSession, detail: str) -> None:
    service = pending.abandon()
    if service is not None:
        await closing.close(service, "interrupted", detail, deadline_s=closing.ABANDON_S)


def _check_client(training: object) -> None:
    if not isinstance(training, tinker.TrainingClient):
        raise UsageError(
            f"start= returned {type(training).__name__}: it has to return a tinker.TrainingClient "
            "or a future of one"
        )
