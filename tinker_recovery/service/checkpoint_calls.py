"""What is asked of the service about one stored checkpoint: delete it, where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
from pydantic import SecretStr, ValidationError
from tinker import types

from tinker_recovery.service.http import ServiceHttp

_AGAIN_S = 0.5
_OK, _NOT_OK, _NOT_FOUND = 200, 300, 404


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """Where the files of an export are. Whoever has an address can read the file: keep them secret.

    Attributes:
        urls: The address of each file, by its path in the export.
        expires: When the addresses stop working.
    """

    urls: Mapping[str, SecretStr]
    expires: datetime


class CheckpointCalls:
    """Calls about single checkpoints, each by its ``tinker://RUN/weights/NAME`` path.

    Args:
        http: The way to the service.
    """

    def __init__(self, http: ServiceHttp) -> None:
        self._http = http

    async def delete(self, path: str) -> int | None:
        """Ask once for its deletion; the HTTP status, or None if no answer came in time."""
        return await self._http.tell("DELETE", _route(path))

    async def remove(self, path: str, *, deadline_s: float) -> str | None:
        """Ask for its deletion until it is gone; what stood in the way after a deadline, or None.

        One that is not there is gone.
        """
        status: int | None = None
        with anyio.move_on_after(deadline_s):
            while True:
                status = await self.delete(path)
                if status is not None and (status == _NOT_FOUND or _OK <= status < _NOT_OK):
                    return None
                await anyio.sleep(_AGAIN_S)
        return "no answer" if status is None else f"HTTP {status}"

    async def set_ttl(self, path: str, ttl_s: int | None) -> int | None:
        """Let it expire so many whole seconds from now, or never; the HTTP status, or None."""
        return await self._http.tell("PUT", f"{_route(path)}/ttl", json={"ttl_seconds": ttl_s})

    async def weights_info(self, path: str) -> types.WeightsInfoResponse:
        """What the service says of its weights.

        Raises:
            StatusError: It says nothing; StatusRefused with status 404 if it knows no such path.
        """
        return await self._http.ask(
            "POST",
            "weights_info",
            types.WeightsInfoResponse.model_validate,
            json={"tinker_path": path},
        )

    async def signed_files(self, path: str) -> SignedFiles:
        """Where the files of an export are, by its ``tinker://RUN/external_weights/NAME`` path.

        Raises:
            StatusError: The service does not say.
        """
        return await self._http.ask("GET", f"{_route(path)}/external_weights_urls", _signed_files)


def _signed_files(said: Any) -> SignedFiles:
    try:
        reply = types.ExternalWeightsUrlsResponse.model_validate(said)
    except ValidationError:
        reply = None
    if reply is None:
        # Not from within the handler: pydantic's error quotes what it was given, addresses and all.
        raise ValueError("it is no map of signed addresses with a date")
    expires = reply.expires if reply.expires.tzinfo else reply.expires.replace(tzinfo=UTC)
    return SignedFiles({name: SecretStr(url) for name, url in reply.urls.items()}, expires)


def _route(path: str) -> str:
    run_id, _, name = path.removeprefix("tinker://").partition("/")
    return f"training_runs/{run_id}/checkpoints/{name}"
