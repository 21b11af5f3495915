"""``tinker-recovery runs``: every run in the journal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.common import echo, journal_file, journal_option, plain_console, refuse

if TYPE_CHECKING:
    from tinker_recovery.journal.reading import RunView


@click.command()
@click.option("--all", "all_", is_flag=True, help="Include runs without a name of their own.")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def command(*, all_: bool, journal: Path | None, as_json: bool) -> None:
    """List the runs in this machine's journal, the most recently active first.

    "host" is the machine whose process trains the run. "dead" is a run whose process was killed;
    run the same command again to resume it.

    The service is not asked: a run that a machine with a journal of its own trains is not seen
    here. Who tries to train it as well waits, or is refused, and learns that machine's name.

    Exit status: 0; 2 for a wrong option; 3 if the journal cannot be read.
    """
    from rich.table import Column, Table

    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_runs
    from tinker_recovery.report.words import age

    try:
        runs = [run for run in read_runs(journal_file(journal)) if run.named or all_]
    except JournalError as error:
        refuse(str(error))
    if as_json:
        echo(json.dumps([summary(run) for run in runs]))
        return
    table = Table(Column("run", overflow="fold"), "state", "step", "last active", "host", "service")
    for run in runs:
        active = f"{age(time.time() - run.updated)} ago"
        host = run.holder.host if run.holder is not None and run.live else "-"
        table.add_row(run.name, run.display_state, str(run.step), active, host, run.service)
    plain_console().print(table)


def summary(run: RunView) -> dict[str, Any]:
    """A run's main facts, for JSON."""
    holder = run.holder if run.live else None
    return {
        "run": run.name,
        "state": run.display_state,
        "detail": run.detail,
        "step": run.step,
        "next_save_step": run.next_save_step,
        "next_save": run.next_save,
        "attempts_left": run.attempts_left,
        "lineage": run.lineage,
        "service": run.service,
        "origin": dict(run.origin),
        "created": run.created,
        "updated": run.updated,
        "pid": None if holder is None else holder.pid,
        "host": None if holder is None else holder.host,
        "held_since": None if holder is None else holder.since,
    }
