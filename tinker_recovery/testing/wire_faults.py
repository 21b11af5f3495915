"""What goes wrong between a request and its reply: statuses, lost and broken replies, outages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinker_recovery.testing.book import FaultBook, Strike
from tinker_recovery.testing.engine import ServiceState
from tinker_recovery.testing.runs import ServiceError
from tinker_recovery.testing.wire import read_request

PROTOBUF = "application/x-protobuf"

Drop = Callable[[tuple[str, int] | None], None]
"""Closes the connection of the client at this address."""

Answer = Callable[[Request], Awaitable[Response]]
"""What a request would be answered if nothing went wrong."""

_BODIES = {
    "text": (b"<html><body>upstream said something else</body></html>", "application/json"),
    "shape": (b'{"unexpected": ["shape"]}', "application/json"),
    "garbage": (b"\xff\xfe\x00garbage\xff", PROTOBUF),
}


class WireFaults:
    """Stands between the routes and the network.

    Args:
        book: What goes wrong.
        engine: Knows which run and step a request belongs to.
        drop: Closes a connection.
    """

    def __init__(self, book: FaultBook, engine: ServiceState, drop: Drop) -> None:
        self._book = book
        self._engine = engine
        self._drop = drop
        self.outage: int | None = None
        """The status that everything is answered with, during an outage that answers."""

    async def answer(self, name: str, request: Request, answer: Answer) -> Response:
        """The reply to a request, whatever becomes of it."""
        if self.outage is not None:
            return JSONResponse({"detail": "the service is down"}, self.outage)
        if not self._book.watches_wire():
            return await answer(request)
        run, step, polled = await self._belongs_to(name, request)
        strike = self._book.strike("wire", name, run, step, polled=polled)
        if strike is None:
            return await answer(request)
        if strike.rule.action == "status":
            return _status(strike)
        reply = await answer(request)
        return await self._spoil(strike, reply, request)

    async def _spoil(self, strike: Strike, reply: Response, request: Request) -> Response:
        rule = strike.rule
        if rule.action == "slow":
            await self._book.over(strike, rule.delay_s)
            return reply
        if rule.action == "malformed":
            body, media_type = _BODIES[rule.body]
            return Response(body, media_type=media_type)
        if rule.action == "truncate":
            return _Truncated(reply, self._book, strike)
        if rule.action == "lost_save" and reply.status_code < 300:  # noqa: PLR2004 - a success
            body = await request.json()
            self._engine.forget_save(body["model_id"], int(body["seq_id"]))
        return _Dropped(self._drop)

    async def _belongs_to(
        self, name: str, request: Request
    ) -> tuple[str | None, int | None, str | None]:
        """The run, the step and, for a poll, the kind of request asked for."""
        try:
            run, step, polled = await _belongs_to(name, request, self._engine)
        except (KeyError, TypeError, ValueError, AttributeError, ServiceError):
            return None, None, None  # nonsense belongs to nobody, and is refused further on
        return run, step, polled


async def _belongs_to(  # noqa: PLR0911 - every kind of request names its run in its own way
    name: str, request: Request, engine: ServiceState
) -> tuple[str | None, int | None, str | None]:
    if name == "forward_backward":
        encoding = request.headers.get("content-encoding")
        asked = read_request(await request.body(), encoding)
        return asked.model_id, engine.run(asked.model_id).step_for(asked.seq_id), None
    if "run" in request.path_params:
        run = str(request.path_params["run"])
        return run, engine.run(run).steps, None
    body: dict[str, Any] = await request.json() if request.method == "POST" else {}
    if name == "retrieve_future":
        return engine.poll_facts(body["request_id"])
    if name in ("create_model", "load_weights"):
        step = engine.steps_in(body["path"]) if "path" in body else 0
        return f"{body['session_id']}:train:{body['model_seq_id']}", step, None
    if name == "weights_info":
        run = str(engine.checkpoints.find(body["tinker_path"])["run_id"])
        return run, engine.run(run).steps, None
    if "model_id" in body:
        run = body["model_id"]
        found = engine.run(run)
        return run, found.step_for(body["seq_id"]) if "seq_id" in body else found.steps, None
    return None, None, None


def _status(strike: Strike) -> Response:
    rule = strike.rule
    after = None if rule.retry_after_s is None else {"Retry-After": f"{rule.retry_after_s:g}"}
    return JSONResponse({"detail": rule.message}, rule.status, headers=after)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Dropped(Response):
    """No reply: the connection is closed."""

    def __init__(self, drop: Drop) -> None:
        super().__init__()
        self._drop = drop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del send
        client = scope["client"]
        self._drop(None if client is None else (client[0], client[1]))
        # Until the server has noticed: it answers 500 for a handler that has said nothing.
        with contextlib.suppress(asyncio.CancelledError):
            await _gone(receive)


class _Truncated(Response):
    """Half of a reply, and then the connection is closed, or says no more."""

    def __init__(self, whole: Response, book: FaultBook, strike: Strike) -> None:
        super().__init__()
        self._whole = whole
        self._book = book
        self._strike = strike

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        whole = self._whole
        start = {"status": whole.status_code, "headers": whole.raw_headers}
        await send({"type": "http.response.start", **start})
        half = bytes(whole.body)[: len(whole.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        if self._strike.rule.silent:
            # The server closes the connection of a handler that returns before its reply is whole.
            ends = [
                asyncio.ensure_future(_gone(receive)),
                asyncio.ensure_future(self._book.over(self._strike)),
            ]
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
