"""``tinker-recovery checkpoints pin`` and ``unpin``: what is kept for ever."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

import click

from tinker_recovery.cli.checkpoints.scope import as_json_option


def _check_paths(paths: Sequence[str]) -> None:
    from tinker_recovery.checkpoints import run_id_of
    from tinker_recovery.errors import UsageError

    for path in paths:
        try:
            run_id_of(path)
        except UsageError as error:
            raise click.BadParameter(str(error), param_hint="PATH") from error


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--reason", default="pinned by the user", show_default=True)
@as_json_option
def pin(paths: tuple[str, ...], reason: str, *, as_json: bool) -> None:
    """Keep these for ever: no rule and no prune on this machine deletes them.

    Exit status: 0; 1 if one is not listed by the service (nothing is pinned then); 2 for a wrong
    option; 3 if the service or the journal could not be read.
    """
    _check_paths(paths)
    missing = asyncio.run(_pin(paths, reason))
    _print_pins(paths, "pinned", missing, as_json=as_json)


async def _pin(paths: Sequence[str], reason: str) -> list[str]:
    from tinker_recovery.checkpoints import run_id_of
    from tinker_recovery.cli.checkpoints.stock import open_stock

    async with open_stock() as stock:
        there = {
            each.tinker_path
            for run_id in {run_id_of(path) for path in paths}
            for each in await stock.collaborators.reader.checkpoints(run_id)
        }
        missing = [path for path in paths if path not in there]
        if not missing:
            for path in paths:
                await stock.collaborators.notebook.pin(path, reason)
        return missing


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@as_json_option
def unpin(paths: tuple[str, ...], *, as_json: bool) -> None:
    """Take pins back: the rules decide over these again.

    Exit status: 0; 1 if one was not pinned; 2 for a wrong option; 3 if the journal could not be
    read.
    """
    _check_paths(paths)
    missing = asyncio.run(_unpin(paths))
    _print_pins(paths, "unpinned", missing, as_json=as_json)


async def _unpin(paths: Sequence[str]) -> list[str]:
    from tinker_recovery.cli.checkpoints.stock import open_stock

    async with open_stock() as stock:
        return [path for path in paths if not await stock.collaborators.notebook.unpin(path)]


def _print_pins(paths: Sequence[str], done: str, missing: Sequence[str], *, as_json: bool) -> None:
    refused = "is not listed by the service" if done == "pinned" else "was not pinned"
    kept = [] if missing and done == "pinned" else [path for path in paths if path not in missing]
    if as_json:
        click.echo(json.dumps({done: kept, "missing": list(missing)}))
    for path in missing:
        click.echo(f"{path} {refused}", err=True)
    if not as_json:
        for path in kept:
            click.echo(f"{done} {path}")
    sys.exit(1 if missing else 0)
