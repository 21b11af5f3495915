"""First contact: what is wrong with an address or a credential, said once, and what to do."""

from __future__ import annotations

import json
import logging
import shlex
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType

import anyio
import httpx
import tinker

from tinker_recovery.clock import Clock
from tinker_recovery.errors import RunFailed, ServiceUnusable, StatusError, drop_frames
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.credentials import PLACES, UNAUTHORIZED
from tinker_recovery.service.http import ServiceHttp, unreached
from tinker_recovery.telemetry.names import SCOPE
from tinker_recovery.telemetry.redaction import redact

logger = logging.getLogger(SCOPE)

SAY_AFTER_S = 5.0
"""How long a run may take to begin before it is looked why."""

_FORBIDDEN, _NOT_FOUND = 403, 404
_FIRST = ("client/config", "client/dynamic_config", "create_session")
"""What the SDK asks first: every Tinker service answers the first and the last."""

_TIMEOUTS = (TimeoutError, httpx.TimeoutException, tinker.APITimeoutError)

_ADDRESS = "set TINKER_BASE_URL, or base_url= of the ServiceClient that service= returns"


class FirstContact:
    """Around what asks a service for the first time: its errors say what to do, and are short.

    An answer that would be the same again, such as a refused key, raises
    :class:`~tinker_recovery.errors.ServiceUnusable`. Of an error of ours that is raised after
    waiting, the SDK's tracebacks are left out. All else passes through.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, RunFailed):
            for each in error.errors:
                if unusable_by(each, self._endpoint):
                    drop_frames([each])
        elif isinstance(error, Exception) and not isinstance(error, ServiceUnusable):
            unusable = unusable_by(error, self._endpoint)
            if unusable:
                raise _error(unusable, error) from error


async def say_unusable(
    http: ServiceHttp, run: str, *, clock: Clock, begun: Callable[[], Awaitable[object]]
) -> None:
    """Log once why a run has not begun, long before the SDK is done with trying.

    Ends as soon as it has, or will not.

    Args:
        http: Our own client of the service.
        run: The run's name.
        clock: What :data:`SAY_AFTER_S` is waited by.
        begun: Waits until the run's beginning is over, well or not.
    """

    async def say() -> None:
        await clock.sleep(SAY_AFTER_S)
        try:
            await http.ask("POST", "client/config", dict, json={"sdk_version": tinker.__version__})
        except StatusError as error:
            why = unusable_by(error, http.endpoint)
            if why is not None:
                logger.warning("run %s has not begun, and is tried further: %s", run, why)

    async with anyio.create_task_group() as group:
        group.start_soon(say, name=f"first contact of run {run}")
        await begun()
        group.cancel_scope.cancel()


def unanswered(
    error: StatusError, endpoint: Endpoint, run: str, waited_s: float
) -> ServiceUnusable:
    """What to raise where a run cannot begin, as the service has not answered for so long.

    Args:
        error: The last try's; it loses its frames, which the result has as text.
        endpoint: The service.
        run: The run's name.
        waited_s: How long it was waited for.
    """
    why = unusable_by(error, endpoint) or (
        f"the service at {_at(endpoint)} does not answer ({error}): run the same command again "
        "once it does"
    )
    said = f"run {run!r} has not begun within {waited_s:g} s (max_wait_s): {why}"
    return _error(said, error)


def _error(said: str, cause: BaseException) -> ServiceUnusable:
    details = redact("".join(traceback.format_exception(cause)))
    drop_frames([cause])
    return ServiceUnusable(said, details=details)


def unknown_there(endpoint: Endpoint, run: str) -> str:
    """What to say of a service that answers, and has nothing of a run that has saved there."""
    return (
        f"the service at {_at(endpoint)} knows nothing of run {run!r}: none of its Tinker runs, "
        "sessions or checkpoints. It is another service, was emptied, or the API key is another "
        "account's: set TINKER_BASE_URL and TINKER_API_KEY to where the run is; or, to begin it "
        f"anew, `tinker-recovery abandon {shlex.quote(run)}` and the same command again"
    )


def unusable_by(error: BaseException, endpoint: Endpoint) -> str | None:
    """What an error says of the service's address or credential, and what to do.

    None if it is about something else.
    """
    return _refused(error, endpoint) or _unreachable(error, endpoint)


def _refused(error: BaseException, endpoint: Endpoint) -> str | None:
    at = _at(endpoint)
    for each in _chain(error):
        code = getattr(each, "status_code", None)
        if not isinstance(each, StatusError | tinker.APIError):
            continue
        if code == UNAUTHORIZED:
            return (
                f"the service at {at} refuses the credential (HTTP 401), which is "
                f"{endpoint.key_from or 'that of service='}: {PLACES}; or, if it is of another "
                f"service, {_ADDRESS}"
            )
        if code == _FORBIDDEN:
            return (
                f"the service at {at} does not allow this (HTTP 403) by the credential, which is "
                f"{endpoint.key_from or 'that of service='}: ask for its permissions, or set "
                "TINKER_API_KEY to another key"
            )
        if _is_no_tinker(each):
            found = f"HTTP {code}" if code == _NOT_FOUND else "what is no JSON"
            return (
                f"there is no Tinker service at {at}, which answers {found} to its first request: "
                f"{_ADDRESS}"
            )
    return None


def how_unreachable(error: BaseException) -> str | None:
    """How the service was out of reach, in words; None if it has answered."""
    chain = list(_chain(error))
    if not any(
        isinstance(each, tinker.APIConnectionError | httpx.TransportError)
        or (isinstance(each, StatusError) and each.status_code is None)
        for each in chain
    ) or any(getattr(each, "status_code", None) for each in chain):
        return None
    texts = " ".join(map(str, chain))
    if any(isinstance(each, ssl.SSLError) for each in chain) or "CERTIFICATE" in texts:
        how = "the encrypted connection (TLS) cannot be set up; look at https:// and certificates"
    elif any(isinstance(each, socket.gaierror) for each in chain) or "Name or service" in texts:
        how = "the name of the host does not resolve"
    elif unreached(error) == "refused":
        how = "nothing listens there (connection refused)"
    elif any(isinstance(each, _TIMEOUTS) for each in chain):
        how = "nothing answers in time"
    else:
        how = "the connection broke off"
    return how


def _unreachable(error: BaseException, endpoint: Endpoint) -> str | None:
    how = how_unreachable(error)
    return how and (
        f"the service at {_at(endpoint)} cannot be reached: {how}. If that is not its address, "
        f"{_ADDRESS}"
    )


def _at(endpoint: Endpoint) -> str:
    where = f" ({endpoint.url_from})" if endpoint.url_from else ""
    return f"{endpoint.base_url}{where}"


def _is_no_tinker(error: BaseException) -> bool:
    if isinstance(error, tinker.APIResponseValidationError | tinker.NotFoundError):
        return error.request.url.path.endswith(_FIRST)
    return isinstance(error, StatusError) and isinstance(error.__cause__, json.JSONDecodeError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """What it was raised from, or while handling what: sockets hide below HTTP libraries."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop(0)
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            group = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
            inner = (each.__cause__ or each.__context__, *group)
            pending += [one for one in inner if one is not None]
