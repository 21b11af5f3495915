"""What is mended in the SDK, why, and until which version of it.

**The HTTP client of a session's first request (tinker 0.38).** ``_fetch_client_config`` makes a
connection pool for one request and drops it without closing it. The finalizer of its HTTP client
schedules the closing in whichever event loop runs in the thread that collects it, by file
descriptors that may belong to another connection by then: the session being opened at that moment
is never answered, and hangs for 60 s and more (7 of 5,965 openings of the plain SDK). Closing the
pool on its own loop, right after the request, takes the cause away.

**HTTP clients made when they are first needed.** Each kind of request has one, and making it reads
the certificates for 30 ms. :func:`make_http_clients` has those of a creation made ahead of it.

**Transports made anew for each HTTP client.** Each reads the system's certificates, for some 15 ms
of the one event loop that all clients share, and a session has four. :func:`reused_transport` gives
a new client the transport of one that was closed, so that a process reads them once for each client
that is open at a time, however many recoveries it has seen, and finds connections that are still
open. No two clients that are open share one: theirs are limited for each client on purpose.

**Errors held back for telemetry (tinker 0.38).** A training request that has failed reaches the
loop once the service's telemetry has taken a note of it: three round trips later, and half a minute
later where that route does not answer. :func:`note_beside` has it noted at the same time, or at the
latest when the client is closed.

All but the second are applied once a :class:`TinkerBackend` is made, to the whole process. Off
with ``TINKER_RECOVERY_SDK_WORKAROUNDS=0``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import re
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import httpx
import tinker
from opentelemetry import metrics, trace
from tinker import _base_client
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType
from tinker.lib.internal_client_holder import ClientConnectionPool, InternalClientHolder
from tinker.lib.telemetry import Telemetry

from tinker_recovery.forks import HomeProcess, keep_to_the_end
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

OFF = "TINKER_RECOVERY_SDK_WORKAROUNDS"

MOST_FREE = 64
"""Transports kept for clients to come, of 110 KB each: twice what recoveries at once need."""
LEAST_FREE = 4
"""How many of them at least: those of one session. Beyond that no more than there are clients open,
so that once many runs have ended their connections are closed."""

_WRITTEN_FOR = re.compile(r"0\.38\.")
_FETCH = "_fetch_client_config"
_MAKE = "_default_pyqwest_transport"
_CREATE = "_create_client_connection_pool"
_NOTE = "log_fatal_exception"
ORIGINAL = getattr(InternalClientHolder, _FETCH, None)
NOTE: Any = getattr(Telemetry, _NOTE, None)
MAKE: Callable[[], httpx.AsyncBaseTransport] | None = getattr(_base_client, _MAKE, None)


def is_on() -> bool:
    """Whether the SDK may be changed in this process, as it may by default."""
    return os.environ.get(OFF, "1") != "0"


def is_wanted() -> bool:
    """Whether this is the SDK that it was written for, and it is not turned off."""
    return (
        is_on()
        and _WRITTEN_FOR.match(str(tinker.__version__)) is not None
        and inspect.iscoroutinefunction(ORIGINAL)
        and list(inspect.signature(ORIGINAL).parameters) == ["self", "auth"]
        and hasattr(InternalClientHolder, _CREATE)
        and inspect.iscoroutinefunction(getattr(ClientConnectionPool, "close", None))
    )


def apply() -> None:
    """Mend the SDK of this process; does nothing the second time, or if that is not wanted."""
    if is_wanted():
        setattr(InternalClientHolder, _FETCH, fetch_and_close)
        if MAKE is not None and not inspect.signature(MAKE).parameters:
            setattr(_base_client, _MAKE, reused_transport)
        if inspect.iscoroutinefunction(NOTE):
            setattr(Telemetry, _NOTE, note_beside)


_noting: set[asyncio.Task[bool]] = set()


async def note_beside(self: Telemetry, exception: BaseException, *how: Any, **more: Any) -> bool:
    """``log_fatal_exception``, without waiting until the service has taken it."""
    noting = asyncio.get_running_loop().create_task(NOTE(self, exception, *how, **more))
    _noting.add(noting)
    noting.add_done_callback(_noting.discard)
    return True


_Providers = tuple[object, object]


def _providers() -> _Providers:
    # A transport reports its requests to those of the moment it is made.
    return trace.get_tracer_provider(), metrics.get_meter_provider()


class FreeTransports:
    """Transports whose clients are closed. Those of a parent are no forked child's to use."""

    def __init__(self) -> None:
        self._home = HomeProcess()
        self._transports: deque[tuple[_Providers, httpx.AsyncBaseTransport]] = deque()
        self._open: weakref.WeakSet[ReusedTransport] = weakref.WeakSet()

    def take(
        self, client: ReusedTransport, providers: _Providers
    ) -> httpx.AsyncBaseTransport | None:
        """One of them for a client that opens: the newest, if it reports to these."""
        if not self._home.is_here:
            keep_to_the_end(self._transports)
            self._home, self._transports = HomeProcess(), deque()
            self._open = weakref.WeakSet()
        self._open.add(client)
        try:
            reports_to, transport = self._transports.pop()
        except IndexError:
            return None
        return transport if reports_to == providers else None

    def give(
        self,
        client: ReusedTransport,
        providers: _Providers,
        transport: httpx.AsyncBaseTransport,
    ) -> None:
        """A client is closed, and its transport free."""
        if not self._home.is_here:
            return
        self._open.discard(client)
        self._transports.append((providers, transport))
        while len(self._transports) > min(MOST_FREE, max(LEAST_FREE, len(self._open))):
            self._transports.popleft()


FREE = FreeTransports()


_SEND: Final = "handle_async_request"


class ReusedTransport(httpx.AsyncBaseTransport):
    """The transport of one HTTP client, which the next client gets when that is closed."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._providers = _providers()
        taken = FREE.take(self, self._providers)
        self._transport: httpx.AsyncBaseTransport | None = taken or make()
        # Its method itself: one of ours around it is a further coroutine for each request.
        vars(self)[_SEND] = self._transport.handle_async_request

    async def aclose(self) -> None:
        """Leave the transport to another client."""
        transport, self._transport = self._transport, None
        if transport is not None:
            vars(self)[_SEND] = _refuse
            FREE.give(self, self._providers, transport)


async def _refuse(_: httpx.Request) -> httpx.Response:
    raise RuntimeError("the HTTP client is closed")


def reused_transport() -> httpx.AsyncBaseTransport:
    """What the SDK makes for a new HTTP client, or what another is done with."""
    assert MAKE is not None  # noqa: S101 - or this was not applied
    return ReusedTransport(MAKE)


async def fetch_and_close(self: Any, auth: Any) -> Any:
    """``_fetch_client_config``, and then the pool it made is closed on its own loop."""
    create, fetching = getattr(self, _CREATE), asyncio.current_task()
    pools: list[ClientConnectionPool] = []

    @functools.wraps(create)
    def remember(*args: Any, **options: Any) -> ClientConnectionPool:
        pool: ClientConnectionPool = create(*args, **options)
        if asyncio.current_task() is fetching:
            pools.append(pool)
        return pool

    setattr(self, _CREATE, remember)
    try:
        return await ORIGINAL(self, auth)  # type: ignore[misc]  # is_wanted() has seen that it is there
    finally:
        vars(self).pop(_CREATE, None)
        for pool in pools:
            await pool.close()


def make_http_clients(service: tinker.ServiceClient, *, within_s: float = 5.0) -> None:
    """Have the HTTP clients made that creating a training client will use; blocks.

    Never raises: what is not made now is made when it is needed.

    Args:
        service: One whose session is open.
        within_s: How long to wait for the SDK's event loop.
    """
    try:
        holder = service.holder

        async def make() -> None:
            for pool in (
                ClientConnectionPoolType.TRAIN,
                ClientConnectionPoolType.RETRIEVE_PROMISE,
            ):
                with holder.aclient(pool):
                    await asyncio.sleep(0)  # requests of the loop may go between the two

        holder.run_coroutine_threadsafe(make()).result(within_s)
    except Exception as error:  # noqa: BLE001 - another SDK, or a session that has ended: nothing depends on it
        logger.debug("no HTTP clients were made ahead: %r", error)
