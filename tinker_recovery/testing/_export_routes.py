"""The routes of exports: a run's weights as files, behind signed addresses that expire."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinker_recovery.testing._auth import SIGNED
from tinker_recovery.testing._peft import peft_config
from tinker_recovery.testing._rest_routes import check_ttl
from tinker_recovery.testing._runs import ServiceError, ServiceRun
from tinker_recovery.testing._service_state import ServiceState
from tinker_recovery.testing._store import DamagedCheckpoint

_SIGNED_S = 3600
_RANGE = re.compile(r"bytes=(\d+)-")
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


class ExportRoutes:
    """Handlers that export weights and serve the files."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._secret = secrets.token_bytes(16)

    async def save_weights_external(self, request: Request) -> Response:
        """Queue an export of a run's weights."""
        body = await request.json()
        run = self._state.run(body["model_id"])
        name, ttl_s = body["path"], body.get("ttl_seconds")
        check_ttl(ttl_s)
        if body.get("age_encryption_recipients"):
            raise ServiceError(400, "age_encryption_recipients is not offered")

        def execute(run: ServiceRun) -> dict[str, Any]:
            config = peft_config(run.facts["base_model"], run.facts["rank"])
            path, size = self._state.checkpoints.export(
                run.run_id, name, run.loaded(), ttl_s=ttl_s, config=json.dumps(config)
            )
            return {"path": path, "size_bytes": size, "type": "save_weights_external"}

        request_id = self._state.submit_save(
            run, body["seq_id"], name, execute, kind="external_weights"
        )
        return JSONResponse({"request_id": request_id})

    async def external_weights_urls(self, request: Request) -> Response:
        """A signed address for each file."""
        found = request.path_params
        if found["kind"] != "external_weights":
            raise ServiceError(400, f"only external weights have addresses, not {found['kind']}")
        self._state.checkpoints.find(f"tinker://{found['run']}/external_weights/{found['name']}")
        expires = int(self._state.wall()) + _SIGNED_S
        urls = {}
        for file in (_WEIGHTS, _CONFIG):
            place = f"{SIGNED}/{quote(found['run'])}/{found['name']}/{file}"
            token = self._token(f"{found['run']}/{found['name']}/{file}", expires)
            urls[file] = (
                f"{str(request.base_url).rstrip('/')}{place}?expires={expires}&token={token}"
            )
        until = datetime.fromtimestamp(expires, UTC).isoformat()
        return JSONResponse({"urls": urls, "expires": until})

    async def download(self, request: Request) -> Response:
        """One file."""
        found, query = request.path_params, request.query_params
        expires = int(query["expires"])
        expected = self._token(f"{found['run']}/{found['name']}/{found['file']}", expires)
        if not hmac.compare_digest(expected, query["token"]):
            raise ServiceError(403, "the signature does not match")
        if expires <= self._state.wall():
            raise ServiceError(403, "the signature has expired")
        path = f"tinker://{found['run']}/external_weights/{found['name']}"
        facts = self._state.checkpoints.find(path)
        self._state.ledger.note("checkpoint_read", path)
        if found["file"] == _CONFIG:
            return _part(request, facts["config"].encode(), "application/json")
        try:
            content = self._state.checkpoints.content(facts)
        except DamagedCheckpoint as error:
            raise ServiceError(404, str(error)) from error
        return _part(request, content, "application/octet-stream")

    def _token(self, what: str, expires: int) -> str:
        return hmac.digest(self._secret, f"{what}?{expires}".encode(), hashlib.sha256).hex()


def _part(request: Request, content: bytes, media_type: str) -> Response:
    """The content, or what a ``Range: bytes=N-`` asks for of it, as object stores answer."""
    found = _RANGE.fullmatch(request.headers.get("Range", ""))
    if found is None:
        return Response(content, media_type=media_type, headers={"Accept-Ranges": "bytes"})
    begin, size = int(found[1]), len(content)
    if begin >= size:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    return Response(
        content[begin:],
        206,
        media_type=media_type,
        headers={"Content-Range": f"bytes {begin}-{size - 1}/{size}"},
    )
