"""``tinker-recovery checkpoints pin`` and ``unpin``: protect checkpoints from deletion."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tinker_recovery.cli.checkpoints.scope import as_json_option
from tinker_recovery.cli.common import echo, journal_option, say_error


def _check_paths(paths: Sequence[str]) -> None:
    from tinker_recovery.checkpoints.sampler_plan import run_id_of_any
    from tinker_recovery.errors import UsageError

    for path in paths:
        try:
            run_id_of_any(path)
        except UsageError as error:
            raise click.BadParameter(str(error), param_hint="PATH") from error


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--reason", default="pinned by the user", show_default=True, help="Stored with the pin."
)
@journal_option
@as_json_option
def pin(paths: tuple[str, ...], reason: str, journal: Path | None, *, as_json: bool) -> None:
    """Protect checkpoints from deletion.

    No retention rule and no prune on this machine deletes them. One that has a lifetime (ttl_s) is
    renewed while its run is trained; the service deletes it when that ends.

    Exit status: 0; 1 if one is not listed by the service (nothing is pinned then); 2 for a wrong
    option; 3 if the service or the journal could not be read.
    """
    _check_paths(paths)
    missing = asyncio.run(_pin(paths, reason, journal))
    _report(paths, "pinned", missing, as_json=as_json)


async def _pin(paths: Sequence[str], reason: str, journal: Path | None) -> list[str]:
    from tinker_recovery.checkpoints.sampler_plan import run_id_of_any
    from tinker_recovery.cli.checkpoints.context import open_context

    async with open_context(journal) as context:
        listed = {
            each.tinker_path
            for run_id in {run_id_of_any(path) for path in paths}
            for each in await context.collaborators.reader.checkpoints(run_id)
        }
        missing = [path for path in paths if path not in listed]
        if not missing:
            for path in paths:
                await context.collaborators.notebook.pin(path, reason)
        return missing


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@journal_option
@as_json_option
def unpin(paths: tuple[str, ...], journal: Path | None, *, as_json: bool) -> None:
    """Remove pins: retention rules apply to these checkpoints again.

    Exit status: 0; 1 if one was not pinned; 2 for a wrong option; 3 if the journal could not be
    read.
    """
    _check_paths(paths)
    missing = asyncio.run(_unpin(paths, journal))
    _report(paths, "unpinned", missing, as_json=as_json)


async def _unpin(paths: Sequence[str], journal: Path | None) -> list[str]:
    from tinker_recovery.cli.checkpoints.context import open_context

    async with open_context(journal) as context:
        return [path for path in paths if not await context.collaborators.notebook.unpin(path)]


def _report(paths: Sequence[str], done: str, missing: Sequence[str], *, as_json: bool) -> None:
    refused = "is not listed by the service" if done == "pinned" else "was not pinned"
    kept = [] if missing and done == "pinned" else [path for path in paths if path not in missing]
    if as_json:
        echo(json.dumps({done: kept, "missing": list(missing)}))
    for path in missing:
        say_error(f"{path} {refused}", 1)
    if not as_json:
        for path in kept:
            echo(f"{done} {path}")
    sys.exit(1 if missing else 0)
