"""``tinker-recovery checkpoints verify``: whether checkpoints can be used."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.checkpoints.scope import Scope, as_json_option, scope_of, scope_options
from tinker_recovery.cli.common import echo, indented, plain_console
from tinker_recovery.telemetry.text import counted

if TYPE_CHECKING:
    from tinker_recovery.checkpoints import Finding


@click.command()
@click.argument("paths", nargs=-1, metavar="[RUN | PATH...]")
@scope_options
@click.option(
    "--deep",
    is_flag=True,
    help="Also load each into a session, export and download it, and read its bytes.",
)
@as_json_option
def verify(
    paths: tuple[str, ...],
    run: str | None,
    lineage: str | None,
    journal: Path | None,
    *,
    everything: bool,
    deep: bool,
    as_json: bool,
) -> None:
    r"""Check whether checkpoints are sound.

    \b
    metadata   complete and consistent
    listing    listed by the service, without an expiry, of the recorded size
    weights    the service's description of the weights fits the run
    bytes      with --deep: the files are whole, by their headers, values and checksums

    RUN is the name of a run or a Tinker run id; PATHs are tinker://RUN/weights/NAME. With --deep,
    each checkpoint costs a session and a download; the export is deleted afterwards, and checksums
    are recorded in this machine's journal at the first check. Nothing is marked as bad or deleted.

    Where the service has no export, bytes are not looked at, which is said, and does not count.

    Exit status: 0 if all are sound; 1 if one is not; 2 for a wrong option; 3 if the service or the
    journal could not be read: what had been found by then is shown.
    """
    named = None
    if any(not each.startswith("tinker:") for each in paths):
        if len(paths) > 1:
            raise click.UsageError(f"give one RUN, or PATHs (tinker://...): not {' '.join(paths)}")
        (named,), paths = paths, ()
    if paths and (run or lineage or everything):
        raise click.UsageError("give PATHs, or one of RUN, --lineage and --all")
    scope = scope_of(run, lineage, everything=everything, needed=not paths, named=named)
    found: dict[str, Sequence[Finding]] = {}
    chosen: list[str] = []
    try:
        asyncio.run(_verify(paths, scope, journal, deep=deep, chosen=chosen, found=found))
    except BaseException:  # Ctrl-C too: it may be the end of hours
        if found:
            _show(found, len(chosen), as_json=as_json)
        raise
    _show(found, len(chosen), as_json=as_json)
    sys.exit(0 if all(map(_ok, found.values())) else 1)


def _show(found: dict[str, Sequence[Finding]], of: int, *, as_json: bool) -> None:
    if not as_json:
        _print_verdicts(found, of)
        return
    rows = [
        {"path": path, "ok": _ok(each), "verdicts": [asdict(one) for one in each]}
        for path, each in found.items()
    ]
    echo(json.dumps(rows))


def _ok(verdicts: Sequence[Finding]) -> bool:
    return all(verdict.ok for verdict in verdicts)


async def _verify(
    paths: Sequence[str],
    scope: Scope,
    journal: Path | None,
    *,
    deep: bool,
    chosen: list[str],
    found: dict[str, Sequence[Finding]],
) -> None:
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    from tinker_recovery.cli.checkpoints.context import open_context
    from tinker_recovery.retention.verifier import Progress, Verifier

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        console=plain_console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    async with open_context(journal) as context:
        verifier = Verifier(context.collaborators)
        chosen += dict.fromkeys(paths) or [each.path for each in await context.listed(scope)]
        with bars:
            for number, path in enumerate(chosen, 1):
                title = f"{number} of {len(chosen)}"
                bar = bars.add_task(title, total=None)

                def update(progress: Progress, bar: Any = bar, title: str = title) -> None:
                    bars.update(
                        bar,
                        description=f"{title}, {progress.phase}",
                        completed=progress.done_bytes,
                        total=progress.total_bytes,
                    )

                found[path] = await verifier.verify(path, deep=deep, progress=update)
                bars.remove_task(bar)


def _print_verdicts(found: dict[str, Sequence[Finding]], of: int) -> None:
    from rich.text import Text

    console = plain_console()
    for path, verdicts in found.items():
        mark = Text("ok ", "green") if _ok(verdicts) else Text("BAD", "red")
        console.print(mark, indented(path), soft_wrap=True)
        for verdict in verdicts:
            mark = Text("✗", "red") if not verdict.ok else Text(" " if verdict.looked else "?")
            console.print(
                "   ", mark, f"{verdict.level:<9} {indented(verdict.reason)}", soft_wrap=True
            )
    bad = sum(not _ok(verdicts) for verdicts in found.values())
    unseen = sum(not all(verdict.looked for verdict in verdicts) for verdicts in found.values())
    also = f", {unseen} not looked at in full" if unseen else ""
    number = counted(of, "checkpoint")
    number = number if len(found) == of else f"{len(found)} of {number} looked at"
    console.print(f"\n{number}, {bad} bad{also}")
