"""Our own HTTP client of the service, with our deadlines and retries.

It shares nothing with the SDK, whose single event-loop thread may be what hangs.
"""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import anyio
import httpx

from tinker_recovery.errors import StatusRefused, StatusUnavailable
from tinker_recovery.service.authentication import Authentication, is_transient, json_object
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.bounded import (
    ACCEPTED,
    DEFAULT_LIMITS,
    ReplyLimits,
    ReplyTooLarge,
    bound,
)
from tinker_recovery.service.retrying import retried
from tinker_recovery.service.service_clock import ServiceClock

_T = TypeVar("_T")
UNSERVED = frozenset({502, 503, 504})
"""What a proxy answers for a service that is down; other codes come from the service itself."""

KEEP_ALIVE_S = 300.0
"""Longer than from one poll to the next, or each would pay for the handshakes of TCP and TLS."""

MOST_IDLE = 32
"""Connections kept open that nothing uses. Each request looks at all of them, so without a limit a
burst of requests makes all later ones slow."""

_SENT = "tinker_recovery.sent_s"


@functools.cache
def tls() -> ssl.SSLContext:
    """The TLS context, shared by all clients: loading the certificates blocks for 30 ms."""
    return httpx.create_ssl_context()


Unreached = Literal["refused", "down", "unserved", "silent"]
"""How the service could not be reached:

- ``refused``: nothing listens where it is, as while it is restarted.
- ``down``: a connection broke off, or could not be made.
- ``unserved``: HTTP 502, 503 or 504, as of a proxy that does not reach it. It may be this route.
- ``silent``: no answer in time, as from one that is busy, or that the network does not reach.
"""


Missed = Callable[[Unreached, float], object]
"""Called when the service could not be reached: how, and how many seconds a request had waited."""


def _ignore(how: Unreached, waited_s: float) -> None:
    del how, waited_s


def unreached(error: BaseException) -> Unreached:
    """How a request that failed with this error found the service."""
    if _is_refused(error):
        return "refused"
    return "silent" if isinstance(error, TimeoutError | httpx.TimeoutException) else "down"


def _is_refused(error: BaseException) -> bool:
    """Whether the connection was refused, and not the network or the name at fault.

    httpcore hides the error of the socket, and several addresses make a group of it; of pyqwest's,
    which the SDK may use, there are only the words.
    """
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if isinstance(each, ConnectionRefusedError) or (
            isinstance(each, httpx.ConnectError) and "refused" in str(each).lower()
        ):
            return True
        if id(each) not in seen:
            seen.add(id(each))
            group = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
            inner = (each.__cause__, each.__context__, *group)
            pending += [one for one in inner if one is not None]
    return False


class ServiceHttp:
    """An HTTP client of the service.

    Args:
        endpoint: Where the service is.
        timeout_s: Deadline of one request, retries included, in seconds.
        limits: How much of a reply is read.
        transport: Instead of the network, for tests.
        wall: Our clock, in seconds since the epoch.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float,
        limits: ReplyLimits = DEFAULT_LIMITS,
        transport: httpx.AsyncBaseTransport | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self.clock = ServiceClock(wall)
        """The service's clock, as its replies tell it."""
        self.unreachable: Missed = _ignore
        """Called as soon as a request finds the service out of reach, even if a retry then
        succeeds."""
        self.cut: Callable[[], None] = lambda: None
        """Called before a request if the service has closed the connection of the last one."""
        self._last_stream: Any = None
        self._timeout_s = timeout_s
        self._auth = Authentication(endpoint, self.limits, timeout_s)
        self._http = self._auth.http = httpx.AsyncClient(
            base_url=f"{endpoint.base_url}/api/v1/",
            auth=self._auth,
            headers={"Accept-Encoding": ACCEPTED},
            timeout=timeout_s,
            transport=transport,
            verify=tls(),
            limits=httpx.Limits(max_keepalive_connections=MOST_IDLE, keepalive_expiry=KEEP_ALIVE_S),
            event_hooks={"request": [self._note_sent], "response": [self._note_reply]},
        )

    async def _note_sent(self, request: httpx.Request) -> None:
        request.extensions = {**request.extensions, _SENT: self.clock.wall()}

    async def _note_reply(self, reply: httpx.Response) -> None:
        self.clock.note_reply(reply.headers.get("Date"), sent_s=reply.request.extensions[_SENT])
        limit = self.limits.reply_bytes
        bound(reply, limit, allowed=f"{limit} bytes: raise max_reply_bytes if that is right")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._auth.aclose()
        await self._http.aclose()

    async def send(self, method: str, path: str, **request: Any) -> int | None:
        """Send one request without retries; the HTTP status, or None if no answer came in time.

        Raises:
            StatusRefused: There is no credential to show.
        """
        began = time.monotonic()
        try:
            with anyio.fail_after(self._timeout_s):
                reply = await self._send(method, path, request)
        except ReplyTooLarge as error:
            return error.status_code  # what else it says is not needed
        except StatusUnavailable as error:  # there is no credential to show just now
            if error.status_code in UNSERVED:
                self._note_down(began)
            return error.status_code
        except (TimeoutError, httpx.HTTPError) as error:
            self._note_unreached(error, began)
            return None
        if reply.status_code in UNSERVED:
            self._note_down(began)
        return reply.status_code

    def take_cut(self) -> bool:
        """Whether the service has closed the connection of the newest reply, once; any thread.

        It does so when it ends, and as well when it tires of an idle connection.
        """
        stream = self._last_stream
        if stream is None or not stream.get_extra_info("is_readable"):
            return False
        self._last_stream = None
        return True

    async def _send(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        if self.take_cut():
            self.cut()
        self._last_stream = None  # its reply to this one would look like the end of it
        reply = await self._http.request(method, path, **request)
        self._last_stream = reply.extensions.get("network_stream")
        return reply

    def _note_unreached(self, error: BaseException, began: float) -> None:
        # What the user's own command or factory takes is no silence of the service.
        if not (isinstance(error, TimeoutError) and self._auth.asks_user):
            self.unreachable(unreached(error), time.monotonic() - began)

    def _note_down(self, began: float) -> None:
        self.unreachable("unserved", time.monotonic() - began)

    async def ask(
        self,
        method: str,
        path: str,
        parse: Callable[[Any], _T],
        **request: Any,
    ) -> _T:
        """Send a request and parse the answer; a transient failure is retried up to twice.

        Cancellable at any point.

        Raises:
            StatusUnavailable: No answer within the deadline, or a transient error.
            StatusRefused: Any other error, or an answer that cannot be parsed.
        """
        last: StatusUnavailable | None = None
        began = time.monotonic()

        async def once(number: int) -> _T:
            nonlocal last
            del number
            try:
                return await self._once(method, path, parse, request)
            except StatusUnavailable as error:
                last = error
                raise

        try:
            with anyio.fail_after(self._timeout_s):
                return await retried(once, tries=3, first_s=0.1, most_s=1.0)
        except TimeoutError as error:
            self._note_unreached(error, began)
            # What the tries before have met says more than that the time was up.
            raise StatusUnavailable(f"reading {path} took longer than {self._timeout_s:g} s") from (
                last or error
            )

    async def _once(
        self,
        method: str,
        path: str,
        parse: Callable[[Any], _T],
        request: dict[str, Any],
    ) -> _T:
        began = time.monotonic()
        try:
            reply = await self._send(method, path, request)
        except httpx.HTTPError as error:
            self._note_unreached(error, began)
            raise StatusUnavailable(f"reading {path}: {error!r}") from error
        except StatusUnavailable as error:
            if error.status_code in UNSERVED:
                self._note_down(began)
            raise
        code = reply.status_code
        if is_transient(code):
            if code in UNSERVED:
                self._note_down(began)
            raise StatusUnavailable(f"reading {path}: HTTP {code}", status_code=code)
        if not reply.is_success:
            raise StatusRefused(f"reading {path}: HTTP {code}", status_code=code)
        try:
            return parse(await json_object(reply, self.limits))
        except ValueError as error:
            raise StatusRefused(
                f"reading {path}: the reply cannot be parsed: {error}", status_code=code
            ) from error
