"""Our own HTTP client of the service, with our deadlines and retries.

It shares nothing with the SDK, whose single event-loop thread may be what hangs.
"""

from __future__ import annotations

import functools
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal, TypeVar

import anyio
import httpx
import stamina
import tinker

from tinker_recovery.errors import StatusRefused, StatusUnavailable
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.bounded import (
    ACCEPTED,
    DEFAULT_LIMITS,
    ReplyLimits,
    ReplyTooLarge,
    bound,
    parsed,
)
from tinker_recovery.service.service_clock import ServiceClock

_T = TypeVar("_T")
_LATER = frozenset({408, 409, 425, 429})
_OUT_OF_REACH = frozenset({502, 503, 504})
"""What a proxy answers for a service that is down; other codes come from the service itself."""

_SENT = "tinker_recovery.sent_s"

_JWT_LIFETIME_S = 300.0
_UNAUTHORIZED = 401


def _is_not_ours(record: logging.LogRecord) -> bool:
    cause = str(getattr(record, "stamina.caused_by", ""))
    return not cause.startswith(StatusUnavailable.__name__)


# stamina logs a line for each retry that names neither the request nor the run. What a retry of
# ours means for a run is said where the run is known; the user's own retries are logged as ever.
logging.getLogger("stamina").addFilter(_is_not_ours)


@functools.cache
def tls() -> ssl.SSLContext:
    """The TLS context, shared by all clients: loading the certificates blocks for 30 ms."""
    return httpx.create_ssl_context()


class _ApiKeyOrJwt(httpx.Auth):
    """Sends the API key, or a token exchanged for it if the service wants one.

    ``/client/config`` says which, and is read once. A token is renewed after five minutes, and at
    once when it is refused.
    """

    def __init__(self, endpoint: Endpoint, limits: ReplyLimits) -> None:
        self._limits = limits
        self._key = endpoint.api_key.get_secret_value() if endpoint.api_key else ""
        self._root = f"{endpoint.base_url}/api/v1"
        self._headers = endpoint.headers
        self._exchange: bool | None = None
        self._token = ""
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return "<_ApiKeyOrJwt>"

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if self._exchange is None:
            reply = yield self._ask("/client/config", {"sdk_version": tinker.__version__})
            if not reply.is_success:
                # Unknown for now: use the key, and ask again next time.
                request.headers["X-API-Key"] = self._key
                yield request
                return
            self._exchange = bool(
                (await _json(reply, self._limits)).get("pjwt_auth_enabled", False)
            )
        for renewal in (False, True):
            if self._exchange and (renewal or time.monotonic() >= self._renew_at):
                reply = yield self._ask("/auth/token", {})
                if reply.is_success:
                    self._token = str((await _json(reply, self._limits)).get("jwt", ""))
                    self._renew_at = time.monotonic() + _JWT_LIFETIME_S
            request.headers["X-API-Key"] = (self._token if self._exchange else "") or self._key
            reply = yield request
            if reply.status_code != _UNAUTHORIZED or not self._exchange:
                return

    def _ask(self, path: str, body: dict[str, str]) -> httpx.Request:
        headers = {**self._headers, "X-API-Key": self._key}
        return httpx.Request("POST", self._root + path, json=body, headers=headers)


async def _json(reply: httpx.Response, limits: ReplyLimits) -> dict[str, Any]:
    why = "it is not a JSON object"
    try:
        body = parsed(await reply.aread(), limits.reply_bytes)
    except ValueError as error:
        body, why = None, str(error)
    if not isinstance(body, dict):
        raise StatusRefused(
            f"the answer of the service to {reply.request.url.path} cannot be read: {why}",
            status_code=reply.status_code,
        )
    return body


Unreached = Literal["refused", "down", "silent"]
"""How the service could not be reached:

- ``refused``: nothing listens where it is, as while it is restarted.
- ``down``: a proxy says so, or a connection broke off.
- ``silent``: no answer in time, as from one that is busy, or that the network does not reach.
"""


def _ignore(how: Unreached) -> None:
    del how


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
        self.unreachable: Callable[[Unreached], object] = _ignore
        """Called as soon as a request finds the service out of reach, even if a retry then
        succeeds."""
        self.cut: Callable[[], None] = lambda: None
        """Called before a request if the service has closed the connection of the last one."""
        self._last_stream: Any = None
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=f"{endpoint.base_url}/api/v1/",
            auth=_ApiKeyOrJwt(endpoint, self.limits),
            headers={**endpoint.headers, "Accept-Encoding": ACCEPTED},
            timeout=timeout_s,
            transport=transport,
            verify=tls(),
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
        await self._http.aclose()

    async def send(self, method: str, path: str, **request: Any) -> int | None:
        """Send one request without retries; the HTTP status, or None if no answer came in time.

        Raises:
            StatusRefused: There is no API key.
        """
        self._check_key()
        try:
            with anyio.fail_after(self._timeout_s):
                reply = await self._send(method, path, request)
        except ReplyTooLarge as error:
            return error.status_code  # what else it says is not needed
        except (TimeoutError, httpx.HTTPError) as error:
            self.unreachable(unreached(error))
            return None
        if reply.status_code in _OUT_OF_REACH:
            self.unreachable("down")
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

    def _check_key(self) -> None:
        if self.endpoint.api_key is None:
            raise StatusRefused(
                "there is no API key for the service: set TINKER_API_KEY, or pass api_key= to the "
                "ServiceClient"
            )

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
        self._check_key()
        try:
            with anyio.fail_after(self._timeout_s):
                async for attempt in stamina.retry_context(
                    on=StatusUnavailable, attempts=3, timeout=None, wait_initial=0.1, wait_max=1.0
                ):
                    with attempt:
                        return await self._once(method, path, parse, request)
        except TimeoutError as error:
            self.unreachable("silent")
            raise StatusUnavailable(
                f"reading {path} took longer than {self._timeout_s:g} s"
            ) from error
        raise AssertionError("stamina either returns or raises")  # pragma: no cover

    async def _once(
        self,
        method: str,
        path: str,
        parse: Callable[[Any], _T],
        request: dict[str, Any],
    ) -> _T:
        try:
            reply = await self._send(method, path, request)
        except httpx.HTTPError as error:
            self.unreachable(unreached(error))
            raise StatusUnavailable(f"reading {path}: {error!r}") from error
        code = reply.status_code
        if code in _LATER or code >= httpx.codes.INTERNAL_SERVER_ERROR:
            if code in _OUT_OF_REACH:
                self.unreachable("down")
            raise StatusUnavailable(f"reading {path}: HTTP {code}", status_code=code)
        if not reply.is_success:
            raise StatusRefused(f"reading {path}: HTTP {code}", status_code=code)
        try:
            return parse(await _json(reply, self.limits))
        except ValueError as error:
            raise StatusRefused(
                f"reading {path}: the reply cannot be parsed: {error}", status_code=code
            ) from error
