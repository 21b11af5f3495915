"""``tinker-recovery show``: the history of one run."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.runs import in_short
from tinker_recovery.cli.source import (
    NO_SUCH_RUN,
    UNREADABLE,
    journal_file,
    journal_option,
    service_option,
)

if TYPE_CHECKING:
    from tinker_recovery.journal.reading import EventView, RunView


@click.command()
@click.argument("run")
@service_option
@click.option("--events", type=click.IntRange(0), default=20, show_default=True, help="How many.")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *, run: str, service: str | None, events: int, journal: Path | None, as_json: bool
) -> None:
    """Show one run: its attempts, its incidents, its checkpoints and its newest events.

    Nothing is asked of the service: what is shown is what this machine's journal knows.

    Exit status: 0; 1 if there is no such run; 2 for a wrong option; 3 if the journal cannot be
    read.
    """
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_events, read_run

    path = journal_file(journal)
    try:
        view = read_run(path, run, service=service)
        newest = read_events(path, run, limit=events) if events else []
    except JournalError as error:
        click.echo(str(error), err=True)
        sys.exit(UNREADABLE)
    if view is None:
        click.echo(f"there is no run {run!r}: see `tinker-recovery runs`", err=True)
        sys.exit(NO_SUCH_RUN)
    if as_json:
        whole = {
            **in_short(view),
            "attempts": [asdict(each) for each in view.attempts],
            "incidents": [asdict(each) for each in view.incidents],
            "checkpoints": [asdict(each) for each in view.checkpoints],
            "events": [asdict(each) for each in newest],
        }
        click.echo(json.dumps(whole))
        return
    _show(view, newest)


def _show(view: RunView, events: list[EventView]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    detail = f": {view.detail}" if view.detail else ""
    console.print(
        f"run {view.name}  {view.display_state}{detail}, at step {view.step}", markup=False
    )
    console.print(f"lineage {view.lineage} at {view.service}", markup=False)
    if view.holder is not None and view.live:
        console.print(f"trained by {view.holder}", markup=False)
    attempts = Table("attempt", "Tinker run", "from step", "began", "came to", title="Attempts")
    for attempt in view.attempts:
        attempts.add_row(
            str(attempt.number),
            attempt.run_id,
            str(attempt.start_step),
            _at(attempt.started),
            attempt.outcome or "under way",
        )
    console.print(attempts)
    if view.incidents:
        incidents = Table(
            "fault", "at step", "back to", "when", "took", "came to", title="Incidents"
        )
        for each in view.incidents:
            took = "" if each.ended is None else f"{each.ended - each.started:.1f} s"
            back = "" if each.to_step is None else str(each.to_step)
            outcome = each.outcome or f"under way ({each.phase})"
            incidents.add_row(each.kind, str(each.step), back, _at(each.started), took, outcome)
        console.print(incidents)
    kept = [each for each in view.checkpoints if not each.gone]
    if kept:
        console.print(f"{len(kept)} checkpoints, the newest {kept[-1].path}", markup=False)
    for event in events:
        console.print(f"{_at(event.time)}  {event.name}  {event.message}", markup=False)


def _at(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
