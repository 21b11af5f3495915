"""A run at a local server, its checkpoints, and what an export of them has to hold."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from inspection import folder_of
from loops import SEED, policy, train
from numpy.typing import NDArray
from pydantic import SecretStr

from tinker_recovery import CheckpointPolicy, Supervisor
from tinker_recovery.export.exporter import Exporter
from tinker_recovery.export.manifest import CheckpointFacts
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.export import Limits
from tinker_recovery.testing import LocalTinker

LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"
LIMITS = Limits(close_s=2.0)


async def trained(
    name: str = "sft", base_model: str = QWEN, *, steps: int = 6, rank: int = 8
) -> Supervisor:
    """A supervised run that is over, at the service of the environment."""
    given = policy(checkpoints=CheckpointPolicy(save_at_start=False, save_every=2))
    async with Supervisor(given) as supervisor:
        loop = functools.partial(train, steps=steps)
        await supervisor.run(loop, base_model=base_model, rank=rank, seed=SEED, name=name)
    return supervisor


def newest(local: LocalTinker, supervisor: Supervisor) -> str:
    """The path of its newest checkpoint."""
    return local.checkpoints(supervisor.runs[0].segments[-1].run_id)[-1].path


def trained_weights(local: LocalTinker, path: str) -> dict[str, NDArray[np.float32]]:
    """A checkpoint's factors, as the server has stored them."""
    name = path.rpartition("/")[2]
    (file,) = folder_of(local).rglob(f"weights/{name}.????????.safetensors")
    return dict(safetensors.numpy.load_file(file))


def endpoint_of(local: LocalTinker) -> Endpoint:
    return Endpoint(local.base_url, SecretStr(local.api_key))


@asynccontextmanager
async def an_exporter(local: LocalTinker, limits: Limits = LIMITS) -> AsyncIterator[Exporter]:
    async with Exporter(endpoint_of(local), limits=limits) as exporter:
        yield exporter


def facts(path: str, **more: Any) -> CheckpointFacts:
    return CheckpointFacts(**{"path": path, "run": "sft", "base_model": QWEN, **more})


def expected(weights: dict[str, NDArray[np.float32]], number: int) -> list[Any]:
    """The two factors of the module of this number, computed by hand from the run's own.

    Only for modules with as many outputs as inputs, 64; the server numbers all modules in order.
    """
    a, b = weights["lora_a"], weights["lora_b"]
    rank = b.shape[0]
    of_a = np.array(
        [[a[(column - number) % 64, row] for column in range(64)] for row in range(rank)]
    )
    flat = b.flatten()
    of_b = np.array([[flat[row * rank + column] for column in range(rank)] for row in range(64)])
    return [of_a, of_b * np.float32(1 + number / 64)]


def loaded(folder: Path) -> dict[str, NDArray[Any]]:
    return dict(safetensors.numpy.load_file(folder / "adapter_model.safetensors"))
