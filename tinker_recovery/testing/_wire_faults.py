"""Faults between a request and its reply: statuses, lost and broken replies, outages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinker_recovery.testing._fault_book import FaultBook, Strike
from tinker_recovery.testing._protobuf import MEDIA_TYPE, read_request
from tinker_recovery.testing._runs import ServiceError
from tinker_recovery.testing._service_state import ServiceState

if TYPE_CHECKING:
    from tinker_recovery.testing._host import Host

Answer = Callable[[Request], Awaitable[Response]]
"""Answers a request without a fault."""

_BODIES = {
    "text": (b"<html><body>upstream said something else</body></html>", "application/json"),
    "shape": (b'{"unexpected": ["shape"]}', "application/json"),
    "garbage": (b"\xff\xfe\x00garbage\xff", MEDIA_TYPE),
}


class WireFaults:
    """Applies wire faults to the replies of a host's routes."""

    def __init__(self, host: Host, book: FaultBook) -> None:
        self._host = host
        self._book = book
        self.outage: int | None = None
        """The status of every reply during an outage; None if there is none, or it refuses."""

    async def answer(self, name: str, request: Request, answer: Answer) -> Response:
        """The reply to a request, after a fault if one strikes."""
        if self.outage is not None:
            return JSONResponse({"detail": "the service is down"}, self.outage)
        if not self._book.watches_wire():
            return await answer(request)
        try:
            run, step, polled = await _belongs_to(name, request, self._host.state)
        except (KeyError, TypeError, ValueError, AttributeError, ServiceError):
            run = step = polled = None  # malformed: the route refuses it
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
            await self._book.wait_over(strike, rule.delay_s)
            return reply
        if rule.action == "malformed":
            body, media_type = _BODIES[rule.body]
            return Response(body, media_type=media_type)
        if rule.action == "truncate":
            return _Truncated(reply, self._book, strike)
        if rule.action == "lost_save" and reply.status_code < 300:  # noqa: PLR2004 - a success
            body = await request.json()
            self._host.state.forget_save(body["model_id"], int(body["seq_id"]))
        return _Dropped(self._host)


async def _belongs_to(  # noqa: PLR0911 - every kind of request names its run in its own way
    name: str, request: Request, state: ServiceState
) -> tuple[str | None, int | None, str | None]:
    """The run, the step and, for a poll, the kind of request polled."""
    if name == "forward_backward":
        encoding = request.headers.get("content-encoding")
        parsed = read_request(await request.body(), encoding)
        return parsed.model_id, state.run(parsed.model_id).step_for(parsed.seq_id), None
    if "sampler" in request.path_params:
        sampler = state.samplers.get(request.path_params["sampler"])
        return sampler.sampler_id, sampler.weights.steps, None
    if "run" in request.path_params:
        run = str(request.path_params["run"])
        return run, state.run(run).steps, None
    body: dict[str, Any] = await request.json() if request.method == "POST" else {}
    if name in ("retrieve_future", "cancel_future"):
        return state.poll_facts(body["request_id"])
    if name in ("create_model", "load_weights"):
        step = state.steps_in(body["path"]) if "path" in body else 0
        return f"{body['session_id']}:train:{body['model_seq_id']}", step, None
    if name in ("weights_info", "copy_weights"):
        path = body["tinker_path" if name == "weights_info" else "source_path"]
        run = str(state.checkpoints.find(path)["run_id"])
        return run, state.run(run).steps, None
    about = body.get("target", body)
    if "sampling_session_id" in about:
        sampler = state.samplers.get(about["sampling_session_id"])
        return sampler.sampler_id, sampler.weights.steps, None
    if "model_id" in body:
        run = body["model_id"]
        found = state.run(run)
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

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del send
        client = scope["client"]
        self._host.drop(None if client is None else (client[0], client[1]))
        # Until the server has noticed: it answers 500 if a handler returns without a reply.
        with contextlib.suppress(asyncio.CancelledError):
            await _gone(receive)


class _Truncated(Response):
    """Half of a reply; then the connection is closed, or left open."""

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
            # The server closes the connection when a handler returns before its reply is whole.
            ends = [
                asyncio.ensure_future(_gone(receive)),
                asyncio.ensure_future(self._book.wait_over(self._strike)),
            ]
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
