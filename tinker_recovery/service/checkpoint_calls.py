"""Requests about one stored checkpoint: delete it, set its lifetime, where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
from pydantic import SecretStr, ValidationError
from tinker import types

from tinker_recovery.errors import StatusRefused
from tinker_recovery.service.http import ServiceHttp
from tinker_recovery.service.routes import route

_RETRY_S = 0.5
_OK, _NOT_OK, _NOT_FOUND = 200, 300, 404


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """The files of an export. A signed URL grants access to its file: keep it secret.

    Attributes:
        urls: The signed URL of each file, by its path in the export.
        expires: When the URLs stop working.
    """

    urls: Mapping[str, SecretStr]
    expires: datetime


class CheckpointCalls:
    """Requests about single checkpoints, each by its ``tinker://RUN/weights/NAME`` path."""

    def __init__(self, http: ServiceHttp) -> None:
        self._http = http
        self.limits = http.limits
        """How much of an answer is read."""

    async def delete(self, path: str) -> int | None:
        """Send one deletion request; the HTTP status, or None if there was no answer in time."""
        return await self._http.send("DELETE", _route(path))

    async def remove(self, path: str, *, deadline_s: float) -> str | None:
        """Delete it, with retries until the deadline; None on success (or a 404), else why not."""
        status: int | None = None
        with anyio.move_on_after(deadline_s):
            while True:
                try:
                    status = await self.delete(path)
                except StatusRefused as error:
                    return str(error)  # there is no credential to show, and will be none
                if status is not None and (status == _NOT_FOUND or _OK <= status < _NOT_OK):
                    return None
                await anyio.sleep(_RETRY_S)
        return "no answer" if status is None else f"HTTP {status}"

    async def set_ttl(self, path: str, ttl_s: int | None) -> int | None:
        """Let it expire ``ttl_s`` seconds from now, or never; the HTTP status, or None."""
        return await self._http.send("PUT", f"{_route(path)}/ttl", json={"ttl_seconds": ttl_s})

    async def weights_info(self, path: str) -> types.WeightsInfoResponse:
        """What the service says about its weights.

        Raises:
            StatusError: It cannot be read; StatusRefused with status 404 if there is no such path.
        """
        return await self._http.ask(
            "POST",
            "weights_info",
            types.WeightsInfoResponse.model_validate,
            json={"tinker_path": path},
        )

    async def signed_files(self, path: str) -> SignedFiles:
        """The files of an export, by its ``tinker://RUN/external_weights/NAME`` path.

        Raises:
            StatusError: They cannot be read.
        """
        return await self._http.ask("GET", f"{_route(path)}/external_weights_urls", _signed_files)


def _signed_files(body: Any) -> SignedFiles:
    try:
        reply = types.ExternalWeightsUrlsResponse.model_validate(body)
    except ValidationError:
        reply = None
    if reply is None:
        # Outside the handler: pydantic's error quotes its input, with the signed URLs.
        raise ValueError("it is not a map of signed URLs with a date")
    expires = reply.expires if reply.expires.tzinfo else reply.expires.replace(tzinfo=UTC)
    return SignedFiles({name: SecretStr(url) for name, url in reply.urls.items()}, expires)


def _route(path: str) -> str:
    run_id, _, name = path.removeprefix("tinker://").partition("/")
    return route("training_runs", run_id, "checkpoints", name)
