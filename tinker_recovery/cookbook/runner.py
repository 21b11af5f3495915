"""A recipe's main, run under supervision."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio.to_thread
import tinker
from typing_extensions import Unpack

from tinker_recovery.cookbook.clients import SEAT, Seat, seated
from tinker_recovery.cookbook.log_dir import begin, run_name, totals
from tinker_recovery.cookbook.recipes import (
    Recipe,
    batches,
    check_config,
    log_folder,
    module_of,
    recipe_of,
)
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.blocking import in_worker_thread, is_async, run_blocking
from tinker_recovery.run.options import StartOptions
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(names.SCOPE)


class _Supervisor(Protocol):
    """What is asked of the Supervisor."""

    @property
    def policy(self) -> Any: ...

    def attempts(self, **start: Unpack[StartOptions]) -> AsyncIterator[Attempt]: ...


async def run_cookbook(
    supervisor: _Supervisor,
    main: Callable[..., Any],
    config: Any,
    *args: Any,
    name: str | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """See :meth:`Supervisor.run_cookbook`."""
    recipe = recipe_of(main)
    check_config(recipe, config)
    module = module_of(recipe)
    folder = log_folder(config)
    run = run_name(folder, name)
    outcome: list[Any] = []
    an_epoch: int | None = None
    with seated(module):
        async for attempt in supervisor.attempts(**_start(recipe, config, run, seed)):
            async with attempt:
                if recipe.position == "epoch" and an_epoch is None and attempt.start_step:
                    an_epoch = await anyio.to_thread.run_sync(batches, config)
                seat = await _seat(recipe, config, attempt, folder, an_epoch)
                body = functools.partial(_in_seat, seat, main, config, *args, **kwargs)
                try:
                    if is_async(main):
                        outcome[:] = [await body(attempt)]
                    else:
                        limit_s = supervisor.policy.close_timeout_s
                        outcome[:] = [
                            await run_blocking(
                                body, attempt, runner=in_worker_thread, limit_s=limit_s
                            )
                        ]
                except BaseException:
                    _close(seat)
                    raise
    return outcome[0]


def _start(recipe: Recipe, config: Any, run: str, seed: int | None) -> StartOptions:
    start: dict[str, Any] = {"name": run, "updates_per_step": recipe.updates(config)}
    # As the recipe would: its own checks of a checkpoint look for it.
    renderer = getattr(config, "renderer_name", None)
    metadata = {"renderer_name": renderer} if renderer else {}
    path = config.load_checkpoint_path
    if path:

        def from_its_weights(service: tinker.ServiceClient) -> Any:
            return service.create_training_client_from_state(path, user_metadata=metadata)

        start["start"] = from_its_weights
    else:
        start |= {"base_model": config.model_name, "rank": config.lora_rank}
        start |= {"user_metadata": metadata} | ({} if seed is None else {"seed": seed})
    return cast("StartOptions", start)


async def _seat(
    recipe: Recipe, config: Any, attempt: Attempt, folder: Path, an_epoch: int | None
) -> Seat:
    """Put a recipe where the attempt begins: its log folder, and what it asks for first."""
    step, checkpoint = batch, _ = attempt.start_step, attempt.checkpoint
    record: dict[str, Any] | None = None
    if recipe.position == "batch" and attempt.loop_state is not None:
        batch = attempt.loop_state["batch"]
    if step and checkpoint is not None:
        record = {"name": f"recovered-{attempt.number}", "state_path": checkpoint.path}
        record |= totals(folder, batch)
    begin(folder, attempt.number, batch=batch, an_epoch=an_epoch, record=record)
    if record is not None:
        asked, begins = "create_training_client_from_state_with_optimizer", f"resumes step {step}"
    elif config.load_checkpoint_path:
        asked, begins = "create_training_client_from_state", "starts from load_checkpoint_path"
    else:
        asked, begins = "create_lora_training_client", "starts from its base model"
    seat = Seat(attempt, f"the attempt {begins}", asked)
    if recipe.position == "batch":
        seat.iteration = batch
    if recipe.reference:
        seat.reference = await attempt.once(
            "reference", attempt.client.save_weights_and_get_sampling_client
        )
    return seat


def _in_seat(seat: Seat, main: Callable[..., Any], config: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the main in the seat; a coroutine of it, if it is one."""
    *given, _ = args  # the last is the attempt, which is not for it
    if is_async(main):
        return _inside(seat, main(config, *given, **kwargs))
    token = SEAT.set(seat)
    try:
        return main(config, *given, **kwargs)
    finally:
        SEAT.reset(token)


async def _inside(seat: Seat, coroutine: Coroutine[Any, Any, Any]) -> Any:
    token = SEAT.set(seat)
    try:
        return await coroutine
    finally:
        SEAT.reset(token)


def _close(seat: Seat) -> None:
    """Close what a recipe logs with, as it does at its end, so that nothing of it is lost."""
    for each in seat.loggers:
        with contextlib.suppress(Exception):  # a logger's trouble must not hide the fault
            each.close()
