"""Exports at the local server, requested by the unmodified SDK; and damaged checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import anyio.to_thread
import httpx
import numpy as np
import pytest
import safetensors.numpy
import tinker
from sdk_loops import a_service, fresh, resumed, train
from tinker.cli.commands.checkpoint import _download_checkpoint
from tinker.lib.public_interfaces.rest_client import RestClient
from wire import NO_TLS, wired

from tinker_recovery.testing import Damage, LocalTinker

HOUR_S = 3600


class Wall:
    """A wall clock that is the real one, plus what a test adds."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@asynccontextmanager
async def a_rest_client(server: LocalTinker) -> AsyncIterator[RestClient]:
    rest = await anyio.to_thread.run_sync(
        lambda: RestClient(base_url=server.base_url, api_key=server.api_key)
    )
    try:
        yield rest
    finally:
        await anyio.to_thread.run_sync(rest.holder.close)


async def fetch(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(verify=NO_TLS) as http:
        return await http.get(url, headers=headers)


async def test_the_sdk_exports_the_weights_of_a_run_and_downloads_them_by_signed_urls() -> None:
    wall = Wall()
    async with (
        LocalTinker(wall=wall) as local,
        a_service(local) as service,
        a_rest_client(local) as rest,
    ):
        client = await fresh(service)
        await train(client, 0, 3)
        exported = await client.save_weights_external("e", ttl_seconds=HOUR_S)
        assert exported.path == f"tinker://{client.model_id}/external_weights/e"
        (listed,) = (await rest.list_checkpoints(client.model_id)).checkpoints
        assert (listed.checkpoint_id, listed.checkpoint_type) == ("external_weights/e", "external")
        assert listed.tinker_path == exported.path
        assert listed.expires_at is not None
        assert (await rest.get_training_run(client.model_id)).last_checkpoint is None

        signed = await rest.get_external_weights_urls(exported.path)
        assert signed.expires.timestamp() - wall() == pytest.approx(HOUR_S, abs=5)
        replies = {name: await fetch(url) for name, url in signed.urls.items()}
        assert sum(len(reply.content) for reply in replies.values()) == listed.size_bytes
        tensors = safetensors.numpy.load(replies["adapter_model.safetensors"].content)
        q_proj = "base_model.model.model.layers.1.self_attn.q_proj"
        assert tensors[f"{q_proj}.lora_A.weight"].shape == (8, 64)
        assert tensors[f"{q_proj}.lora_B.weight"].shape == (64, 8)
        assert np.any(tensors[f"{q_proj}.lora_B.weight"])
        config = json.loads(replies["adapter_config.json"].content)
        assert (config["r"], config["lora_alpha"]) == (8, 32)
        assert {name.split(".")[-3] for name in tensors} == set(config["target_modules"])

        url = signed.urls["adapter_model.safetensors"]
        assert (await fetch(url.replace("token=", "token=0"))).status_code == 403
        assert (await fetch(url.partition("?")[0])).status_code == 422
        wall.ahead_s = HOUR_S - 60
        await rest.set_checkpoint_ttl_from_tinker_path(exported.path, HOUR_S)
        assert (await fetch(url)).status_code == 200
        wall.ahead_s = HOUR_S + 1
        assert (await fetch(url)).status_code == 403
        again = await rest.get_external_weights_urls(exported.path)
        await rest.delete_checkpoint_from_tinker_path(exported.path)
        assert (await fetch(again.urls["adapter_model.safetensors"])).status_code == 404
        with pytest.raises(tinker.NotFoundError):
            await rest.get_external_weights_urls(exported.path)
        assert (await rest.list_user_checkpoints()).checkpoints == []


async def test_a_file_of_an_export_can_be_had_from_a_byte_on(local: LocalTinker) -> None:
    async with a_service(local) as service, a_rest_client(local) as rest:
        client = await fresh(service)
        exported = await client.save_weights_external("e", ttl_seconds=HOUR_S)
        url = (await rest.get_external_weights_urls(exported.path)).urls["adapter_config.json"]
        whole = (await fetch(url)).content
        rest_of_it = await fetch(url, {"Range": "bytes=10-"})
        assert (rest_of_it.status_code, rest_of_it.content) == (206, whole[10:])
        assert rest_of_it.headers["Content-Range"] == f"bytes 10-{len(whole) - 1}/{len(whole)}"
        assert (await fetch(url, {"Range": f"bytes={len(whole)}-"})).status_code == 416


async def test_an_export_expires_by_itself_and_is_no_checkpoint_to_roll_back_to() -> None:
    wall = Wall()
    async with LocalTinker(wall=wall) as local, wired(local) as wire:
        run = await wire.create()
        await wire.result(await wire.optim_step(run, 1))
        body = {"model_id": run, "seq_id": 2, "path": "e", "ttl_seconds": HOUR_S}
        done = await wire.result(await wire.post("save_weights_external", body))
        assert done["type"] == "save_weights_external"
        assert done["size_bytes"] > 1000
        await wire.post("save_weights_external", {**body, "seq_id": 3}, status=409)
        await wire.post("save_weights", {"model_id": run, "seq_id": 3, "path": "e"})
        assert (await wire.load(1, done["path"]))["category"] == "user"
        wall.ahead_s = HOUR_S + 1
        kinds = [
            found["checkpoint_type"]
            for found in (await wire.get(f"training_runs/{run}/checkpoints"))["checkpoints"]
        ]
        assert kinds == ["training"]
        url = f"training_runs/{run}/checkpoints/weights/e/external_weights_urls"
        assert (await wire.http.get(url)).status_code == 400


async def test_the_sdks_own_command_downloads_a_checkpoint_and_leaves_no_export(
    local: LocalTinker, tmp_path: Path
) -> None:
    async with a_service(local) as service, a_rest_client(local) as rest:
        client = await fresh(service)
        await train(client, 0, 2)
        saved = await client.save_state("s")
        size = await anyio.to_thread.run_sync(
            lambda: _download_checkpoint(
                rest, saved.path, tmp_path, show_progress=False, format="json"
            )
        )
        files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}  # noqa: ASYNC240 - a test folder
        assert set(files) == {"adapter_model.safetensors", "adapter_config.json"}
        assert sum(files.values()) == size
        (left,) = (await rest.list_user_checkpoints()).checkpoints
        assert left.tinker_path == saved.path


LOADS_SILENTLY = {"zero_tail", "bit_flip", "nan", "no_metadata"}


@pytest.mark.parametrize("lenient", [False, True])
async def test_damage_is_refused_by_itself_and_loads_leniently_where_it_can_be_parsed(
    lenient: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    async with LocalTinker(lenient=lenient) as local, a_service(local) as service:
        client = await fresh(service)
        await train(client, 0, 2)
        saved = {how: (await client.save_state(how)).path for how in get_args(Damage)}
        await train(client, 2, 3)
        whole = local.run_state(client.model_id).weights_digest
        for how, path in saved.items():
            local.damage(path, how)
            if how != "no_metadata" and not (lenient and how in LOADS_SILENTLY):
                with pytest.raises(tinker.RequestFailedError, match="cannot load"):
                    await resumed(service, path)
                continue
            again = await resumed(service, path)
            loss = (await train(again, 2, 3))[0]
            assert math.isnan(loss) == (how == "nan"), how
            same = local.run_state(again.model_id).weights_digest == whole
            assert same == (how == "no_metadata"), how


async def test_what_is_not_there_cannot_be_damaged(local: LocalTinker) -> None:
    with pytest.raises(ValueError, match="no checkpoint 'tinker://r/weights/x'"):
        local.damage("tinker://r/weights/x", "truncated")
    async with a_service(local) as service:
        saved = await (await fresh(service)).save_state("s")
        with pytest.raises(ValueError, match="how='scratched' is not allowed: truncated, "):
            local.damage(saved.path, "scratched")  # type: ignore[arg-type]  # what is wrong with it
