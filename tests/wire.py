"""A bare HTTP client of the local server, for what the SDK would not send, or would retry."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from tinker_recovery.testing import LocalTinker

Reply = dict[str, Any]

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""The server speaks plain HTTP, and reading the system's certificates takes 30 ms per client."""


class Wire:
    """One session at a server."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.session = ""

    async def post(self, path: str, body: Reply, *, status: int = 200) -> Reply:
        """A reply of the status expected."""
        reply = await self.http.post(path, json=body)
        assert reply.status_code == status, reply.text
        return dict(reply.json())

    async def get(self, path: str, **params: int) -> Reply:
        """A reply."""
        reply = await self.http.get(path, params=params)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def result(self, accepted: Reply) -> Reply:
        """The result of a request."""
        return await self.post("retrieve_future", {"request_id": accepted["request_id"]})

    async def create(self, model_seq_id: int = 0, seed: int = 7) -> str:
        """A new run."""
        body = {
            "session_id": self.session,
            "model_seq_id": model_seq_id,
            "base_model": "b",
            "lora_config": {"rank": 4, "seed": seed},
        }
        return str((await self.result(await self.post("create_model", body)))["model_id"])

    async def forward_backward(self, run: str, seq_id: int, tokens: list[int]) -> Reply:
        """Submit a batch of one sequence."""
        message = pb.ForwardBackwardRequest(model_id=run, seq_id=seq_id, loss_fn="cross_entropy")
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.array(tokens[:-1], np.int32).tobytes()
        targets = datum.loss_fn_inputs["target_tokens"]
        targets.dtype, targets.dense = pb.DTYPE_INT64, np.array(tokens[1:], np.int64).tobytes()
        reply = await self.http.post("forward_backward", content=message.SerializeToString())
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def optim_step(self, run: str, seq_id: int) -> Reply:
        """Submit an optimizer step."""
        adam = {"learning_rate": 0.05}
        return await self.post(
            "optim_step", {"model_id": run, "seq_id": seq_id, "adam_params": adam}
        )

    async def save(self, run: str, seq_id: int, name: str, **more: object) -> Reply:
        """Submit a save."""
        return await self.post(
            "save_weights", {"model_id": run, "seq_id": seq_id, "path": name, **more}
        )

    async def load(self, model_seq_id: int, path: str) -> Reply:
        """Make a run from a checkpoint; its result."""
        body = {
            "session_id": self.session,
            "model_seq_id": model_seq_id,
            "path": path,
            "optimizer": True,
        }
        return await self.result(await self.post("load_weights", body))


def http(base_url: str, api_key: str) -> httpx.AsyncClient:
    """A client of the API."""
    return httpx.AsyncClient(
        base_url=f"{base_url}/api/v1/", headers={"X-API-Key": api_key}, verify=NO_TLS
    )


@contextlib.asynccontextmanager
async def wired(server: LocalTinker) -> AsyncIterator[Wire]:
    """A session, finished at the end."""
    async with http(server.base_url, server.api_key) as client:
        wire = Wire(client)
        wire.session = (await wire.post("create_session", {"tags": []}))["session_id"]
        yield wire
        await wire.post(f"sessions/{wire.session}/finish", {"reason": {"type": "success"}})
