"""The recipes of the tinker-cookbook that can be supervised, and what is particular about each."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tinker_recovery.errors import UsageError

TRIED_WITH = "0.6.1"
"""The version of the cookbook that these were tried with; the docs name it too."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training loop of the cookbook.

    Attributes:
        module: Where its ``main(config)`` is.
        position: How its checkpoints say where it stands: ``"epoch"``, by epoch and batch, one
            optimizer step a batch; or ``"batch"``, by the number of its iteration alone.
        reference: Whether it makes its reference model from the client's first weights.
    """

    module: str
    position: Literal["epoch", "batch"]
    reference: bool = False

    def updates(self, config: Any) -> int:
        """How many optimizer steps an iteration has, at most."""
        return int(getattr(config, "num_substeps", 1))


RECIPES = (
    Recipe("tinker_cookbook.supervised.train", "epoch"),
    Recipe("tinker_cookbook.rl.train", "batch"),
    Recipe("tinker_cookbook.preference.train_dpo", "epoch", reference=True),
    Recipe("tinker_cookbook.distillation.train_on_policy", "batch"),
    Recipe("tinker_cookbook.distillation.train_off_policy", "batch"),
)

KNOWN = ", ".join(f"{recipe.module}.main" for recipe in RECIPES)
"""Their mains, for errors."""

_NEEDED = ("log_path", "model_name", "lora_rank", "load_checkpoint_path")


def recipe_of(main: Callable[..., Any]) -> Recipe:
    """The recipe whose main this is.

    Raises:
        UsageError: It is none that can be supervised.
    """
    main = inspect.unwrap(main)
    for recipe in RECIPES:
        if main.__module__ == recipe.module and main.__name__ == "main":
            return recipe
    raise UsageError(
        f"{main.__module__}.{main.__name__} is no recipe that can be supervised unchanged; known "
        f"are {KNOWN}. Write its loop as `async for attempt in supervisor.attempts(...)` instead"
    )


def check_config(recipe: Recipe, config: Any) -> None:
    """Raise UsageError unless a config has what has to be known of it."""
    missing = [name for name in _NEEDED if not hasattr(config, name)]
    if missing:
        raise UsageError(
            f"the config {type(config).__module__}.{type(config).__name__} has no {missing[0]}, "
            f"which {recipe.module} of tinker-cookbook {TRIED_WITH} has: this version of the "
            "cookbook is not known"
        )
    log_path = str(config.log_path)
    if "://" in log_path:
        raise UsageError(f"log_path={log_path!r} is not allowed under supervision: a local folder")


def module_of(recipe: Recipe) -> ModuleType:
    """The recipe's module.

    Raises:
        UsageError: The cookbook is not installed.
    """
    try:
        return importlib.import_module(recipe.module)
    except ImportError as error:
        raise UsageError(
            f"{recipe.module} cannot be imported ({error}): install the cookbook as "
            "docs/cookbook.md says"
        ) from error


def batches(config: Any) -> int:
    """Batches of an epoch of an ``"epoch"`` recipe; builds its dataset, which may block."""
    dataset, _ = config.dataset_builder()
    return len(dataset)


def log_folder(config: Any) -> Path:
    """Where the recipe writes its metrics and records."""
    return Path(str(config.log_path)).expanduser()
