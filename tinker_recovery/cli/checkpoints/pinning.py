"""``tinker-recovery checkpoints pin`` and ``unpin``: protect checkpoints from deletion."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from tinker_recovery.cli.checkpoints.scope import as_json_option
from tinker_recovery.cli.common import echo, journal_option, say_error


@dataclass(slots=True)
class _Done:
    """What became of paths: by path, why one that is pinned will not last."""

    paths: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    expiring: dict[str, str] = field(default_factory=dict)


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

    No retention rule and no prune on this machine deletes them. One that has a lifetime (ttl_s) has
    none from then on.

    Exit status: 0; 1 if one is not listed by the service (nothing is pinned then), or keeps its
    lifetime; 2 for a wrong option; 3 if the service or the journal could not be read.
    """
    _check_paths(paths)
    done = asyncio.run(_pin(paths, reason, journal))
    _report("pinned", done, "is not listed by the service", as_json=as_json)


async def _pin(paths: Sequence[str], reason: str, journal: Path | None) -> _Done:
    from tinker_recovery.checkpoints.sampler_plan import run_id_of_any
    from tinker_recovery.cli.checkpoints.context import open_context
    from tinker_recovery.service.checkpoint_calls import CheckpointCalls

    async with open_context(journal) as context:
        reader = context.collaborators.reader
        listed = {
            each.tinker_path: each
            for run_id in {run_id_of_any(path) for path in paths}
            for each in await reader.checkpoints(run_id)
        }
        done = _Done(missing=[path for path in paths if path not in listed])
        for path in () if done.missing else paths:
            await context.collaborators.notebook.pin(path, reason)
            done.paths.append(path)
            expires = listed[path].expires_at
            if expires is None:
                continue
            status = await CheckpointCalls(reader.http).set_ttl(path, None)
            if status is None or status >= 300:  # noqa: PLR2004 - HTTP's successes end there
                said = "did not answer" if status is None else f"answered HTTP {status}"
                done.expiring[path] = (
                    f"expires at {expires:%Y-%m-%d %H:%M:%S %Z} all the same: asked to keep it, "
                    f"the service {said}"
                )
    return done


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
    done = asyncio.run(_unpin(paths, journal))
    _report("unpinned", done, "was not pinned", as_json=as_json)


async def _unpin(paths: Sequence[str], journal: Path | None) -> _Done:
    from tinker_recovery.cli.checkpoints.context import open_context

    done = _Done()
    async with open_context(journal) as context:
        for path in paths:
            known = await context.collaborators.notebook.unpin(path)
            (done.paths if known else done.missing).append(path)
    return done


def _report(how: str, done: _Done, refused: str, *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps({how: done.paths, "missing": done.missing, "expiring": done.expiring}))
    for path in done.missing:
        say_error(f"{path} {refused}", 1)
    for path, why in done.expiring.items():
        say_error(f"{path} {why}", 1)
    if not as_json:
        for path in done.paths:
            echo(f"{how} {path}")
    sys.exit(1 if done.missing or done.expiring else 0)
