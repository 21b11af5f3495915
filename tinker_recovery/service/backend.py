"""The SDK adapter: clients created and closed with deadlines of our own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from typing import Any

import anyio
import anyio.to_thread
import tinker
from pydantic import SecretStr
from tinker.lib.base_url import resolve_base_url
from tinker.lib.credentials import JsonCredentialStore, default_credentials_path
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.errors import DeadlineExceeded, UsageError
from tinker_recovery.service.base import (
    CloseStatus,
    Connection,
    Endpoint,
    Origin,
    ServiceFactory,
)
from tinker_recovery.service.opening import PendingSession
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)


NOTICE_S = 15.0
"""After this long a creation still under way says so in the log."""

OPEN_AGAIN_S = 10.0
"""After this long a session that is still not open is opened again.

Opening one takes seconds. But now and then (ran: once in 300, where one process opens a session
after the other) the SDK never sees the answer to its first request: it leaves the HTTP client of
that request to the garbage collector, whose finalizer closes a socket by a number that is another
one's by then. It asks again after 60 s.
"""

STANDBY_AFTER_S = 1.0
"""How long after a client is made the session for the next one is opened, out of its way."""

ABANDON_S = 2.0
"""How long whoever gives up a creation waits for its thread, and then for its session's end."""


def endpoint_of(service: tinker.ServiceClient) -> Endpoint:
    """Where a ServiceClient goes, by the SDK's own rules, without opening a session for it.

    The SDK resolves the same three sources (argument, environment, stored credentials) when it
    opens a session, and shows the result only there.
    """
    api_key = service._api_key or os.environ.get("TINKER_API_KEY")  # noqa: SLF001 - the SDK has no public way to ask
    if api_key is None and not os.environ.get("TINKER_CREDENTIAL_CMD"):
        stored = JsonCredentialStore(default_credentials_path()).get_default_key()
        api_key = None if stored is None else stored.key
    return Endpoint(
        base_url=resolve_base_url(service._base_url),  # noqa: SLF001 - as above
        api_key=SecretStr(api_key) if api_key else None,
        headers=dict(service._default_headers_overrides),  # noqa: SLF001 - as above
    )


class TinkerBackend:
    """Clients of the Tinker service through its SDK.

    Args:
        factory: Returns a fresh ServiceClient; the default reads TINKER_BASE_URL and
            TINKER_API_KEY, as the SDK does.
        standby: Whether one session is held open for the next client to be made ahead; to be let
            go by :meth:`aclose`.
    """

    def __init__(
        self, factory: ServiceFactory = tinker.ServiceClient, *, standby: bool = False
    ) -> None:
        self._factory = factory
        self._wants_standby = standby
        self._standby: PendingSession | None = None
        self._preparing: asyncio.TimerHandle | None = None

    async def endpoint(self) -> Endpoint:
        """Where the service is; makes a ServiceClient and never opens a session with it."""
        service = await anyio.to_thread.run_sync(self._factory, abandon_on_cancel=True)
        self._prepare()
        return endpoint_of(service)

    def open_ahead(self) -> PendingSession:
        """Begin to open a session, or take the one on standby; see :meth:`Backend.open_ahead`."""
        standby = self._standby
        if standby is not None and standby.is_open:
            self._standby = None
            return standby
        return PendingSession(self._factory)

    async def discard(self, opening: PendingSession) -> None:
        """Close a session opened ahead; see :meth:`Backend.discard`."""
        with anyio.CancelScope(shield=True):
            await _give_up(opening, "it was not needed")

    async def connect(
        self, origin: Origin, *, deadline_s: float, opening: PendingSession | None = None
    ) -> Connection:
        """A new client in a new session; see :meth:`Backend.connect`."""
        if opening is None:
            opening = PendingSession(self._factory)
        # A service that is out of reach looks like one that is slow, for as long as the SDK tries.
        notice = asyncio.get_running_loop().call_later(
            NOTICE_S, _still_waiting, origin, deadline_s - NOTICE_S
        )
        try:
            with anyio.fail_after(deadline_s):
                opening.submit(origin)
                if not await _opens(opening):
                    logger.warning(
                        "no session is open after %g s: another one is opened", OPEN_AGAIN_S
                    )
                    opening = await self._instead(opening, origin)
                try:
                    training = await _created(opening)
                except Exception as error:
                    if not opening.standby:
                        raise
                    # The service may have forgotten the session; if it was something else, the
                    # next one meets it as well.
                    logger.info(
                        "the session on standby is of no use, another one is opened: %r", error
                    )
                    opening = await self._instead(opening, origin)
                    training = await _created(opening)
            _check_client(training)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await _give_up(opening, "its training client could not be created")
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"creating a client by {origin!r}", deadline_s) from error
            raise
        finally:
            notice.cancel()
        self._prepare()
        return Connection(training, str(training.model_id), opening.service)

    async def _instead(self, opening: PendingSession, origin: Origin) -> PendingSession:
        # One that opens after all is closed by its thread; nobody waits for that.
        service = opening.abandon()
        if service is not None:
            await _close(service, "interrupted", "another one was opened", deadline_s=ABANDON_S)
        another = PendingSession(self._factory)
        another.submit(origin)
        return another

    def _prepare(self) -> None:
        if self._wants_standby and self._preparing is None:
            loop = asyncio.get_running_loop()
            self._preparing = loop.call_later(STANDBY_AFTER_S, self._open_standby)

    def _open_standby(self) -> None:
        self._preparing = None
        standby = self._standby
        # One that could not be opened is not tried again before the next client is made.
        if standby is None or standby.out.done():
            self._standby = PendingSession(self._factory, standby=True)

    async def aclose(self) -> None:
        """Let the session on standby go; see :meth:`Backend.aclose`."""
        if self._preparing is not None:
            self._preparing.cancel()
        self._wants_standby = False
        standby, self._standby = self._standby, None
        if standby is not None:
            await self.discard(standby)

    async def close(
        self, connection: Connection, status: CloseStatus, detail: str, *, deadline_s: float
    ) -> None:
        """Finish the session and stop its polling; see :meth:`Backend.close`."""
        if connection.service is not None:
            await _close(connection.service, status, detail, deadline_s=deadline_s)


def _still_waiting(origin: Origin, left_s: float) -> None:
    logger.warning(
        "creating a client by %r has taken %g s so far; the service may be out of reach or short "
        "of capacity, and has %g s left",
        origin,
        NOTICE_S,
        max(0.0, left_s),
    )


async def _opens(opening: PendingSession) -> bool:
    """Whether its session is open, or refused, by the time it should be."""
    with anyio.move_on_after(OPEN_AGAIN_S):
        await asyncio.wrap_future(opening.opened)
    return opening.opened.done()


async def _created(opening: PendingSession) -> Any:
    return await _outcome(await asyncio.wrap_future(opening.submitted), opening)


async def _give_up(opening: PendingSession, detail: str) -> None:
    opening.release()
    # Mostly the thread is about to come out, and then nothing at all is left behind.
    with anyio.move_on_after(ABANDON_S):
        await asyncio.wrap_future(opening.out)
    service = opening.abandon()
    if service is not None:
        await _close(service, "interrupted", detail, deadline_s=ABANDON_S)
    # Only now: a request cancelled in the moment it fails has the SDK log a traceback.
    if opening.creation is not None:
        opening.creation.cancel()


async def _outcome(pending: Any, opening: PendingSession) -> Any:
    """What a submitted creation ends as; being cancelled here does not cancel the creation."""
    if not isinstance(pending, APIFuture):
        return await pending if inspect.isawaitable(pending) else pending
    creation = opening.creation = pending.future()
    return await result_of(creation)


def _check_client(training: object) -> None:
    if not isinstance(training, tinker.TrainingClient):
        raise UsageError(
            f"start= returned {type(training).__name__}: it has to return a "
            "tinker.TrainingClient, or a future of one"
        )


async def _close(
    service: tinker.ServiceClient, status: CloseStatus, detail: str, *, deadline_s: float
) -> None:
    future = None
    try:
        with anyio.fail_after(deadline_s):
            future = await anyio.to_thread.run_sync(
                service.close, status, detail, abandon_on_cancel=True
            )
            await future
    except TimeoutError:
        logger.warning(
            "finishing a session took longer than %g s; it is left to the service to time out",
            deadline_s,
        )
    except Exception as error:  # noqa: BLE001 - closing is the last thing done for a client: nothing may depend on it
        logger.warning(
            "finishing a session failed; it is left to the service to time out: %r", error
        )
    finally:
        if future is not None and not future.future().done():
            # Cancelling it skips the finish request, and still runs the SDK's own clean-up, which
            # is what stops every future of that client from polling on.
            future.future().cancel()
