"""What the SDK's own requests meet: an outage that none of ours meets is noticed by them.

The SDK sends a request again for minutes if it finds the service out of reach, and keeps that to
itself. A service that is restarted meanwhile may carry it out on older weights. So the method by
which all of its HTTP clients send is wrapped here, for the whole process. Without that method in
the SDK, or with ``TINKER_RECOVERY_SDK_WORKAROUNDS=0``, only our own requests notice an outage.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from tinker import _base_client

from tinker_recovery.service.http import UNSERVED, Unreached, unreached
from tinker_recovery.service.sdk_workarounds import is_on

_CLIENT: Any = getattr(_base_client, "AsyncHttpxClientWrapper", None)
ORIGINAL: Any = getattr(_CLIENT, "send", None)

_listeners: list[tuple[str, Callable[[Unreached], object]]] = []


@contextmanager
def listening(base_url: str, met: Callable[[Unreached], object]) -> Iterator[None]:
    """Inside, have what the SDK's requests to a service meet reported.

    Args:
        base_url: The service.
        met: Called in the SDK's thread, before the request is sent again.
    """
    _apply()
    listener = (f"{base_url.rstrip('/')}/", met)
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def is_possible() -> bool:
    """Whether this SDK has what is wrapped, and that is not turned off."""
    return is_on() and inspect.iscoroutinefunction(ORIGINAL)


@functools.cache
def _apply() -> None:
    if is_possible():
        _CLIENT.send = _send_and_report


async def _send_and_report(self: Any, request: httpx.Request, **given: Any) -> httpx.Response:
    try:
        reply: httpx.Response = await ORIGINAL(self, request, **given)
    except httpx.TransportError as error:
        _report(request, unreached(error))
        raise
    if reply.status_code in UNSERVED:
        _report(request, "unserved")
    return reply


def _report(request: httpx.Request, how: Unreached) -> None:
    url = str(request.url)
    for base_url, met in _listeners:
        if url.startswith(base_url):
            met(how)
