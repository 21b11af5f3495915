"""The routes of exports: a run's weights as files, behind signed addresses that expire."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinker_recovery.testing._auth import SIGNED
from tinker_recovery.testing._rest_routes import check_ttl
from tinker_recovery.testing._runs import ServiceError, ServiceRun
from tinker_recovery.testing._service_state import ServiceState
from tinker_recovery.testing._store import DamagedCheckpoint

_SIGNED_S = 3600
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
            config = {
                "base_model_name_or_path": run.facts["base_model"],
                "peft_type": "LORA",
                "r": run.facts["rank"],
            }
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
            return Response(facts["config"], media_type="application/json")
        try:
            content = self._state.checkpoints.content(facts)
        except DamagedCheckpoint as error:
            raise ServiceError(404, str(error)) from error
        return Response(content, media_type="application/octet-stream")

    def _token(self, what: str, expires: int) -> str:
        return hmac.digest(self._secret, f"{what}?{expires}".encode(), hashlib.sha256).hex()
