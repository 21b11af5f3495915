"""An export made by our own requests: a session, the checkpoint loaded into it, its weights saved.

Nothing here goes through the SDK or a run's session, so whatever becomes of a run's client, no
export waits for it, and an export that hangs holds nothing that a save or a recovery needs. Each
request has a deadline, and each part of the work has one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
from tinker import types

from tinker_recovery.errors import (
    DeadlineExceeded,
    NoUsableCheckpoint,
    StatusError,
    StatusRefused,
    StatusUnavailable,
)
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.claim_sessions import GONE, NOT_FOUND, ClaimSessions
from tinker_recovery.service.export import Limits
from tinker_recovery.service.http import ServiceHttp
from tinker_recovery.service.temporary import TTL_S
from tinker_recovery.shielding import to_the_end

BEAT_S = 10.0
"""Seconds between two heartbeats of the session, as the SDK has it."""

_TRIES, _FIRST_S, _MOST_S = 8, 0.5, 10.0

PREFIX = "tinker-recovery-export-"
"""What the names of these exports begin with."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An export at the service, with its files behind signed URLs, until it is deleted.

    Attributes:
        path: ``tinker://RUN/external_weights/NAME``.
        size_bytes: How large its files are; None if the service does not say.
    """

    path: str
    size_bytes: int | None


async def make_export(
    path: str,
    http: ServiceHttp,
    *,
    limits: Limits,
    phase: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Export a checkpoint's weights; the session it takes is finished in any case.

    Args:
        path: ``tinker://RUN/weights/NAME``.
        http: For all requests; nothing else should wait for its answers.
        limits: How long each part may take.
        phase: Called with what is being done: ``loading``, ``exporting``.

    Raises:
        NoUsableCheckpoint: The service has no such checkpoint.
        StatusRefused: The service refuses, or has no exports.
        StatusUnavailable: It is out of reach, has failed, or its session has ended.
        DeadlineExceeded: A part took longer than its limit.
    """
    sessions = ClaimSessions(http)
    session = await sessions.open("an export", {"tinker_recovery.purpose": "export"})
    how, done, failure = "errored", None, None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_keep, sessions, session)
            try:
                done = await _export(session, path, http, limits, phase)
                how = "success"
            except Exception as error:  # noqa: BLE001 - raised below, outside the group, which would wrap it
                failure = error
            group.cancel_scope.cancel()
    finally:
        await to_the_end(_finish(sessions, session, how, limits.close_s))
    if failure is not None or done is None:
        raise failure or StatusUnavailable(f"{path} could not be exported")
    return done


async def _finish(sessions: ClaimSessions, session: str, how: str, limit_s: float) -> None:
    with anyio.move_on_after(limit_s):
        await sessions.finish(session, how, "tinker_recovery: a checkpoint was exported")


async def _keep(sessions: ClaimSessions, session: str) -> None:
    """Send heartbeats until cancelled; what a request meets says more than a failed one."""
    while True:
        await anyio.sleep(BEAT_S)
        try:
            await sessions.beat(session)
        except StatusError:
            continue


async def _export(
    session: str, path: str, http: ServiceHttp, limits: Limits, phase: Callable[[str], object]
) -> Exported:
    model = f"{session}:train:0"
    phase("loading")
    body: dict[str, Any] = {"session_id": session, "model_seq_id": 0, "path": path}
    body |= {"optimizer": False, "type": "load_weights"}
    try:
        await _result(http, "load_weights", body, model, limits.load_s)
    except StatusError as error:  # a service may call its own what is none of its fault
        if await _is_gone(http, path):
            raise NoUsableCheckpoint(
                f"the service has no checkpoint {path} (any more): it was deleted, or has expired"
            ) from error
        raise
    phase("exporting")
    name = f"{PREFIX}{secrets.token_hex(4)}"
    body = {"model_id": model, "path": name, "seq_id": 1, "ttl_seconds": TTL_S}
    try:
        saved = await _result(
            http,
            "save_weights_external",
            {**body, "type": "save_weights_external"},
            model,
            limits.export_s,
        )
    except StatusRefused as error:
        if error.status_code == NOT_FOUND:
            raise StatusRefused(
                f"this service has no exports, so {path} cannot be downloaded from it",
                status_code=NOT_FOUND,
            ) from error
        raise
    size = saved.get("size_bytes")
    return Exported(str(saved["path"]), size if isinstance(size, int) else None)


async def _is_gone(http: ServiceHttp, path: str) -> bool:
    try:
        await CheckpointCalls(http).weights_info(path)
    except StatusError as error:
        return error.status_code == NOT_FOUND
    return False


async def _result(
    http: ServiceHttp, route: str, body: dict[str, Any], model: str, limit_s: float
) -> dict[str, Any]:
    """Submit a request and wait for its result."""
    try:
        with anyio.fail_after(limit_s):
            request_id = await http.ask("POST", route, _request_id, json=body)
            return await _answer(http, route, request_id, model)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{route} of {body['path']}", limit_s) from error


def _request_id(reply: Any) -> str:
    return types.UntypedAPIFuture.model_validate(reply).request_id


async def _answer(http: ServiceHttp, route: str, request_id: str, model: str) -> dict[str, Any]:
    failures, wait_s = 0, _FIRST_S
    body = {"request_id": request_id, "allow_metadata_only": True}
    headers = {"X-Tinker-Request-Type": route}
    while True:
        try:
            reply = await http.ask("POST", "retrieve_future", _object, json=body, headers=headers)
        except StatusRefused as error:
            if error.status_code in GONE:
                raise StatusUnavailable(
                    f"the session of {model} has ended before {route} was done",
                    status_code=error.status_code,
                ) from error
            raise
        except StatusUnavailable:
            failures += 1
            if failures == _TRIES:
                raise
            await anyio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MOST_S)
            continue
        failures, wait_s = 0, _FIRST_S
        if reply.get("type") == "try_again":
            await anyio.sleep(0.05)  # where a service does not hold the request by itself
        elif "error" in reply:
            # By the same rule as a run recovers from a failed request.
            blamed = reply.get("category") == types.RequestErrorCategory.User.value
            raise (StatusRefused if blamed else StatusUnavailable)(f"{route}: {reply['error']}")
        else:
            return reply


def _object(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - what cannot be parsed is a ValueError
    return reply
