"""A recipe's main, run under supervision."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
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
from tinker_recovery.run.blocking import in_worker_thread, is_async, run_body
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
    outcome: Any = None
    an_epoch: int | None = None
    limit_s = supervisor.policy.close_timeout_s
    with seated(module):
        async for attempt in supervisor.attempts(**_start(recipe, config, run, seed)):
            async with attempt:
                if recipe.position == "epoch" and an_epoch is None and attempt.start_step:
                    an_epoch = await anyio.to_thread.run_sync(batches, config)
                seat = await _seat(recipe, config, attempt, folder, an_epoch)
                train = _train(functools.partial(main, config, *args, **kwargs), seat)
                try:
                    outcome = await run_body(
                        train, attempt, runner=in_worker_thread, limit_s=limit_s
                    )
                except BaseException:  # a fault cancels it, and is no Exception
                    _close(seat)
                    raise
    return outcome


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


def _train(main: Callable[[], Any], seat: Seat) -> Callable[[Attempt], Any]:
    """The main as a loop of an attempt, in its seat; a coroutine function if the main is one."""

    @contextlib.contextmanager
    def seated_here() -> Iterator[None]:
        token = SEAT.set(seat)
        try:
            yield
        finally:
            SEAT.reset(token)

    async def train(_: Attempt) -> Any:
        with seated_here():
            return await main()

    def train_blocking(_: Attempt) -> Any:
        with seated_here():
            return main()

    return train if is_async(main) else train_blocking


def _close(seat: Seat) -> None:
    """Close what a recipe logs with, as it does at its end, so that nothing of it is lost."""
    for each in seat.loggers:
        with contextlib.suppress(Exception):  # a logger's trouble must not hide the fault
            each.close()
