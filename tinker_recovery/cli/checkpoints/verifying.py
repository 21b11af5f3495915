"""``tinker-recovery checkpoints verify``: whether they can be trusted."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.checkpoints.scope import Scope, as_json_option, scope_of, scope_options

if TYPE_CHECKING:
    from tinker_recovery.checkpoints import Finding


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@scope_options
@click.option(
    "--deep",
    is_flag=True,
    help="Also load each into a session, export it, download it and read its bytes.",
)
@as_json_option
def verify(
    paths: tuple[str, ...],
    run: str | None,
    lineage: str | None,
    *,
    everything: bool,
    deep: bool,
    as_json: bool,
) -> None:
    r"""Check whether checkpoints can be trusted, the cheapest checks first.

    \b
    metadata   its metadata is complete and consistent
    listing    the service lists it, it does not expire, its size is the one recorded
    weights    base model and rank, as the service says them, fit the run
    bytes      with --deep: its files are whole, by their headers, values and checksums

    PATHs are tinker://RUN/weights/NAME. Checksums are recorded at the first deep look, in this
    machine's journal. A deep look costs a session and a download for each; what it exports is
    deleted again. Nothing is marked or deleted by this.

    Exit status: 0 if all can be trusted; 1 if one cannot; 2 for a wrong option; 3 if the service or
    the journal could not be read.
    """
    if paths and (run or lineage or everything):
        raise click.UsageError("give PATHs, or one of --run, --lineage and --all")
    scope = scope_of(run, lineage, everything=everything, needed=not paths)
    found = asyncio.run(_verify(paths, scope, deep=deep))
    if as_json:
        click.echo(
            json.dumps(
                [
                    {"path": path, "ok": _ok(said), "verdicts": [asdict(each) for each in said]}
                    for path, said in found.items()
                ]
            )
        )
    else:
        _print_verdicts(found)
    sys.exit(0 if all(map(_ok, found.values())) else 1)


def _ok(verdicts: Sequence[Finding]) -> bool:
    return all(verdict.ok for verdict in verdicts)


async def _verify(
    paths: Sequence[str], scope: Scope, *, deep: bool
) -> dict[str, Sequence[Finding]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    from tinker_recovery.cli.checkpoints.stock import open_stock
    from tinker_recovery.retention.verifier import Progress, Verifier

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    found: dict[str, Sequence[Finding]] = {}
    async with open_stock() as stock:
        verifier = Verifier(stock.collaborators)
        chosen = paths or [each.path for each in await stock.listed(scope)]
        with bars:
            for number, path in enumerate(chosen, 1):
                title = f"{number} of {len(chosen)}"
                bar = bars.add_task(title, total=None)

                def show(progress: Progress, bar: Any = bar, title: str = title) -> None:
                    bars.update(
                        bar,
                        description=f"{title}, {progress.phase}",
                        completed=progress.done_bytes,
                        total=progress.total_bytes,
                    )

                found[path] = await verifier.verify(path, deep=deep, progress=show)
                bars.remove_task(bar)
    return found


def _print_verdicts(found: dict[str, Sequence[Finding]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for path, said in found.items():
        console.print(f"[green]ok [/]  {path}" if _ok(said) else f"[red]BAD[/]  {path}")
        for verdict in said:
            mark = "  " if verdict.ok else "[red]✗[/] "
            console.print(f"     {mark}{verdict.level:<9} {verdict.reason}")
    bad = sum(not _ok(said) for said in found.values())
    console.print(f"\n{len(found)} checkpoints, {bad} not to be trusted")
