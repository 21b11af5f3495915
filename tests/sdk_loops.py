"""The real SDK against a local server: clients, and a step of training."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio.to_thread
import tinker
from loops import ADAM, MODEL, SEED, batch

from tinker_recovery.testing import LocalTinker


@contextlib.asynccontextmanager
async def a_service(server: LocalTinker) -> AsyncIterator[tinker.ServiceClient]:
    """A ServiceClient that is closed at the end."""
    service = server.service()
    try:
        yield service
    finally:
        await service.close("success")


async def fresh(service: tinker.ServiceClient, seed: int | None = SEED) -> tinker.TrainingClient:
    """A client of a new run."""
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client(MODEL, rank=8, seed=seed)
    )
    client: tinker.TrainingClient = await pending
    return client


async def resumed(
    service: tinker.ServiceClient, path: str, *, optimizer: bool = True
) -> tinker.TrainingClient:
    """A client of a run made from a checkpoint."""
    make = (
        service.create_training_client_from_state_with_optimizer
        if optimizer
        else service.create_training_client_from_state
    )
    pending = await anyio.to_thread.run_sync(lambda: make(path))
    client: tinker.TrainingClient = await pending
    return client


async def train(client: tinker.TrainingClient, start: int, stop: int) -> list[float]:
    """Steps of training; their losses."""
    losses = []
    for step in range(start, stop):
        forward = client.forward_backward(batch(step), "cross_entropy")
        update = client.optim_step(ADAM)
        losses.append((await forward).metrics["loss:sum"])
        await update
    return losses
