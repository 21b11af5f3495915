"""``tinker-recovery runs``: every run the journal knows."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.source import UNREADABLE, journal_file, journal_option

if TYPE_CHECKING:
    from tinker_recovery.journal.reading import RunView


@click.command()
@click.option("--all", "all_", is_flag=True, help="Those without a name of their own, too.")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def command(*, all_: bool, journal: Path | None, as_json: bool) -> None:
    """List the runs this machine's journal knows, the most recently alive first.

    Nothing is asked of the service. "dead" is a run whose process ended without a word: the same
    command goes on with it.

    Exit status: 0; 2 for a wrong option; 3 if the journal cannot be read.
    """
    from rich.console import Console
    from rich.table import Table

    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_runs

    try:
        runs = [run for run in read_runs(journal_file(journal)) if run.named or all_]
    except JournalError as error:
        click.echo(str(error), err=True)
        sys.exit(UNREADABLE)
    if as_json:
        click.echo(json.dumps([in_short(run) for run in runs]))
        return
    table = Table("run", "state", "step", "last sign of life", "service")
    for run in runs:
        table.add_row(run.name, run.display_state, str(run.step), _ago(run.updated), run.service)
    Console().print(table)


def in_short(run: RunView) -> dict[str, Any]:
    """A run, for machines."""
    holder = run.holder if run.live else None
    return {
        "run": run.name,
        "state": run.display_state,
        "detail": run.detail,
        "step": run.step,
        "next_save_step": run.next_save_step,
        "attempts_left": run.attempts_left,
        "lineage": run.lineage,
        "service": run.service,
        "origin": dict(run.origin),
        "created": run.created,
        "updated": run.updated,
        "pid": None if holder is None else holder.pid,
        "host": None if holder is None else holder.host,
    }


def _ago(moment: float) -> str:
    seconds = max(0, int(time.time() - moment))
    for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = seconds // unit
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"
