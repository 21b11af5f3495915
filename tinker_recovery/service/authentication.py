"""How our own requests show who asks: by the key, or by a token made of a credential."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import tinker

from tinker_recovery.errors import StatusError, StatusRefused, StatusUnavailable
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.bounded import ReplyLimits, parsed
from tinker_recovery.service.credentials import (
    COMMAND_S,
    UNAUTHORIZED,
    credential,
    lifetime_s,
    plain_key,
)
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

_LATER = frozenset({408, 409, 425, 429})

TOKEN_S = 300.0
"""How long a token is taken to live that does not say so."""

RENEW_AGAIN_S = 60.0
"""After a token could not be renewed, while it still serves."""


_NONE = httpx.Auth()
"""Adds nothing: requests of the authentication's own say what they show themselves."""


def is_transient(code: int) -> bool:
    """Whether the service may answer otherwise in a while."""
    return code in _LATER or code >= httpx.codes.INTERNAL_SERVER_ERROR


async def json_object(reply: httpx.Response, limits: ReplyLimits) -> dict[str, Any]:
    """The body of a reply.

    Raises:
        StatusRefused: It is no JSON object, or too large a one.
    """
    why, cause = "it is not a JSON object", None
    try:
        body = parsed(await reply.aread(), limits.reply_bytes)
    except ValueError as error:
        body, why, cause = None, str(error), error
    if not isinstance(body, dict):
        raise StatusRefused(
            f"the answer of the service to {reply.request.url.path} cannot be read: {why}",
            status_code=reply.status_code,
        ) from cause
    return body


class Authentication(httpx.Auth):
    """Sends what the SDK would send: the key, or a token exchanged for the credential.

    ``/client/config`` says which. A token is renewed in the background at half of its life, which
    its own dates give, and serves until shortly before its end. What the service refuses with 401
    is asked for again, once: the token, the command, and the factory of clients for a new key (and
    new headers). Requests that meet the same refusal share what is asked for, and one whose
    deadline passes meanwhile leaves it to the next. Used from one event loop.

    Args:
        endpoint: The service, and where to ask for a new key.
        limits: How much of a reply is read.
        timeout_s: Deadline of each request of its own.
    """

    def __init__(self, endpoint: Endpoint, limits: ReplyLimits, timeout_s: float) -> None:
        self.http: httpx.AsyncClient | None = None
        """What its own requests are sent by; to be set before the first."""
        self._endpoint = endpoint
        self._limits = limits
        self._timeout_s = timeout_s
        self._exchanges = False
        self._by_command = False
        self._shown = ""
        self._renew_at = self._ends_at = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._factory_asked = False
        self._found: dict[bool, str] = {}
        self.asks_user = False
        """Whether the user's command or factory is what is waited for, and not the service."""

    def __repr__(self) -> str:
        return "<Authentication>"

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send a request with what is shown, and again if that is refused and there is another."""
        now = time.monotonic()
        if now >= self._ends_at:
            await self._finish(self._begin())
        elif now >= self._renew_at:
            self._begin()
        shown = self._shown
        reply = yield self._signed(request)
        if reply.status_code != UNAUTHORIZED:
            return
        if shown == self._shown:
            await self._finish(self._begin(refused=True))
        if shown != self._shown:
            yield self._signed(request)

    def _signed(self, request: httpx.Request) -> httpx.Request:
        request.headers.update({**self._endpoint.headers, "X-API-Key": self._shown})
        return request

    def _begin(self, *, refused: bool = False) -> asyncio.Task[None]:
        """Have what is shown asked for, or that which is being asked for already."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(refused=refused))
            self._asking.add_done_callback(_note_failure)
        return self._asking

    async def _finish(self, asking: asyncio.Task[None]) -> None:
        # Cancelling this wait leaves the task alone: others may wait for it, or will.
        await asyncio.wait([asking])
        if asking.cancelled():
            raise StatusUnavailable("the client of the service was closed")
        asking.result()

    async def _ask(self, *, refused: bool) -> None:
        self._factory_asked = False
        self._found.clear()
        try:
            if not self._exchanges:
                if refused:
                    await self._ask_factory()
                if not await self._configure():
                    return
            await self._exchange()
        except (StatusError, httpx.HTTPError):
            if refused or time.monotonic() >= self._ends_at:
                raise
            self._renew_at = time.monotonic() + RENEW_AGAIN_S

    async def _configure(self) -> bool:
        """Ask the service what it wants; whether that is a token."""
        reply, sent = await self._post(
            "client/config", {"sdk_version": tinker.__version__}, by_command=False
        )
        if reply.status_code == UNAUTHORIZED:
            raise self._refused(reply, "client/config")
        if not reply.is_success:
            # Not known for now: the request itself shows what is wrong. Asked again next time.
            self._show(sent, 0.0)
            return False
        config = await json_object(reply, self._limits)
        self._exchanges = bool(config.get("pjwt_auth_enabled", False))
        self._by_command = config.get("credential_default_source") == "credential_cmd"
        if not self._exchanges:
            self._show(await plain_key(self._endpoint.api_key), math.inf)
        return self._exchanges

    async def _exchange(self) -> None:
        reply, _ = await self._post("auth/token", {}, by_command=self._by_command)
        if not reply.is_success:
            raise self._refused(reply, "auth/token")
        token = (await json_object(reply, self._limits)).get("jwt")
        if not isinstance(token, str) or not token:
            raise StatusRefused("the answer of the service to auth/token has no token")
        self._show(token, lifetime_s(token) or TOKEN_S)

    def _refused(self, reply: httpx.Response, path: str) -> StatusRefused:
        code, by = reply.status_code, ""
        if code == UNAUTHORIZED:
            given = self._endpoint.key_from or "that of service="
            by = f"; the credential that is refused is {given}"
        return StatusRefused(f"asking for {path}: HTTP {code}{by}", status_code=code)

    def _show(self, what: str, lives_s: float) -> None:
        now = time.monotonic()
        self._shown, self._renew_at, self._ends_at = what, now + lives_s / 2, now + lives_s * 0.9

    async def _post(
        self, path: str, body: dict[str, str], *, by_command: bool
    ) -> tuple[httpx.Response, str]:
        """Send a request with the credential; the reply, and what was sent.

        Raises:
            StatusUnavailable: The service may answer otherwise in a while.
        """
        sent = await self._credential(by_command=by_command)
        reply = await self._send(path, body, sent)
        if reply.status_code == UNAUTHORIZED:
            await self._ask_factory()
            self._found.clear()
            again = await self._credential(by_command=by_command)
            if again != sent:
                sent, reply = again, await self._send(path, body, again)
        if is_transient(reply.status_code):
            code = reply.status_code
            raise StatusUnavailable(f"asking for {path}: HTTP {code}", status_code=code)
        return reply, sent

    async def _credential(self, *, by_command: bool) -> str:
        """The credential; without a key the one that the command has printed serves for both."""
        key = self._endpoint.api_key
        which = by_command or key is None
        if which not in self._found:
            with self._asking_user():
                self._found[which] = await credential(key, by_command=by_command)
        return self._found[which]

    @contextmanager
    def _asking_user(self) -> Iterator[None]:
        self.asks_user = True
        try:
            yield
        finally:
            self.asks_user = False

    async def _send(self, path: str, body: dict[str, str], shown: str) -> httpx.Response:
        assert self.http is not None  # noqa: S101 - its owner sets it
        headers = {**self._endpoint.headers, "X-API-Key": shown}
        try:
            with anyio.fail_after(self._timeout_s):
                return await self.http.post(path, json=body, headers=headers, auth=_NONE)
        except TimeoutError:
            raise StatusUnavailable(
                f"asking for {path} took longer than {self._timeout_s:g} s"
            ) from None

    async def _ask_factory(self) -> None:
        """Ask the factory of clients, once, for a new key and the headers that go with it."""
        if self._endpoint.renew is None or self._factory_asked:
            return
        self._factory_asked = True
        try:
            with self._asking_user(), anyio.fail_after(COMMAND_S):
                renewed = await anyio.to_thread.run_sync(
                    self._endpoint.renew, abandon_on_cancel=True
                )
        except Exception as error:  # noqa: BLE001 - the user's own function: what was refused stays refused
            logger.warning(
                "the key is refused, and service= has no new one, because it failed: %r", error
            )
            return
        self._endpoint = replace(self._endpoint, api_key=renewed.api_key, headers=renewed.headers)

    async def aclose(self) -> None:
        """Ask for nothing more, and end a command that runs."""
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            await asyncio.wait([self._asking])


def _note_failure(asking: asyncio.Task[None]) -> None:
    # Whoever waits gets it; where no request does any more, asyncio would report it as lost.
    if not asking.cancelled() and (error := asking.exception()) is not None:
        logger.debug("no credential for our own requests: %r", error)
