"""A recipe's script, run as it is, with its main under supervision."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import tinker

from tinker_recovery.cookbook.recipes import KNOWN, RECIPES, module_of
from tinker_recovery.errors import UsageError
from tinker_recovery.run.blocking import is_async

Run = Callable[..., Any]
"""Runs ``main(config, ...)`` under supervision; a coroutine function."""

_MAKERS = (
    "create_lora_training_client",
    "create_training_client_from_state",
    "create_training_client_from_state_with_optimizer",
)


def parse(command: Sequence[str]) -> tuple[str, bool, list[str]]:
    """What a command line runs: a module or a file, whether it is a module, and its arguments.

    Raises:
        UsageError: It is not ``python -m MODULE ...`` or ``python FILE.py ...``.
    """
    words = list(command)
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    if len(words) > 1 and words[0] == "-m":
        return words[1], True, words[2:]
    if words and words[0].endswith(".py"):
        return words[0], False, words[1:]
    raise UsageError(
        f"{' '.join(command)!r} is not allowed: `python -m MODULE ...` or `python FILE.py ...`, "
        "without options of python's own"
    )


def run_script(command: Sequence[str], run: Run) -> None:
    """Run a script in this process, as ``__main__``; the recipe it starts is given to ``run``.

    Raises:
        UsageError: It is no such command, the cookbook is not installed, or it starts training by
            none of the recipes known.
        BaseException: What the script raises.
    """
    target, is_module, arguments = parse(command)
    argv, path = list(sys.argv), list(sys.path)
    with _supervised_mains(run):
        sys.argv = [target, *arguments]
        sys.path[0] = os.getcwd() if is_module else str(Path(target).resolve().parent)  # noqa: PTH109 - as python itself does
        try:
            if is_module:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(target, run_name="__main__")
        finally:
            sys.argv, sys.path[:] = argv, path


@contextlib.contextmanager
def _supervised_mains(run: Run) -> Iterator[None]:
    """Inside, the main of each recipe is supervised, and nothing else may begin to train."""
    begun: list[bool] = []
    with contextlib.ExitStack() as stack:
        for recipe in RECIPES:
            module = module_of(recipe)
            stack.enter_context(_replaced(module, "main", _supervised(module.main, run, begun)))
        cli_utils = importlib.import_module("tinker_cookbook.cli_utils")
        stack.enter_context(
            _replaced(cli_utils, "check_log_dir", _resumes(cli_utils.check_log_dir))
        )
        for name in _MAKERS:
            maker = getattr(tinker.ServiceClient, name)
            stack.enter_context(_replaced(tinker.ServiceClient, name, _guarded(maker, begun)))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _supervised(main: Callable[..., Any], run: Run, begun: list[bool]) -> Callable[..., Any]:
    if is_async(main):

        @functools.wraps(main)
        async def supervised(*args: Any, **kwargs: Any) -> Any:
            begun.append(True)
            return await run(main, *args, **kwargs)

        return supervised

    @functools.wraps(main)
    def supervised_blocking(*args: Any, **kwargs: Any) -> Any:
        begun.append(True)
        return anyio.run(functools.partial(run, main, *args, **kwargs))

    return supervised_blocking


def _resumes(check: Callable[..., Any]) -> Callable[..., Any]:
    """To be asked nothing: a folder that exists is that of the run to continue."""

    @functools.wraps(check)
    def check_log_dir(log_dir: str, behavior_if_exists: str) -> Any:
        return check(log_dir, "delete" if behavior_if_exists == "delete" else "resume")

    return check_log_dir


def _guarded(maker: Callable[..., Any], begun: list[bool]) -> Callable[..., Any]:
    @functools.wraps(maker)
    def make(*args: Any, **kwargs: Any) -> Any:
        if not begun:
            raise UsageError(
                f"the script trains by none of the mains that can be supervised ({KNOWN}): have "
                "it call one, or write its loop as `async for attempt in supervisor.attempts(...)`"
            )
        return maker(*args, **kwargs)

    return make
