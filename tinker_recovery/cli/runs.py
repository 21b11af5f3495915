"""``tinker-recovery runs``: every run in the journal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.common import (
    WithoutRun,
    echo,
    journal_file,
    journal_option,
    plain_console,
    refuse_because,
)
from tinker_recovery.cli.records import Cell, Column, Record, show_records
from tinker_recovery.cli.states import STYLES, named_option, state_option, trouble, with_quiet

if TYPE_CHECKING:
    from tinker_recovery.journal.summary import RunSummary

_SORTS: dict[str, Callable[[RunSummary], Any]] = {
    "active": lambda each: -each.run.updated,
    "trouble": lambda each: trouble(each.run.display_state),
    "name": lambda each: each.run.name,
    "step": lambda each: -each.run.step,
    "loss": lambda each: each.losses[-1] if each.losses else math.inf,
    "recoveries": lambda each: -each.recoveries,
    "fault": lambda each: math.inf if each.incident is None else -each.incident.started,
}


@click.command(cls=WithoutRun)
@state_option
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    default="active",
    show_default=True,
    help="The most recently active, the most urgent state, the most steps, the lowest loss, the "
    "most recoveries, or the newest fault first; or by name.",
)
@click.option("--limit", type=click.IntRange(0), help="At most so many; 0 for all. Default: all.")
@named_option
@click.option("--all", "all_", is_flag=True, hidden=True)  # what is done without it by now
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def command(
    *,
    states: Sequence[str],
    sort: str,
    limit: int | None,
    named: bool,
    all_: bool,
    journal: Path | None,
    as_json: bool,
) -> None:
    r"""List the runs in this machine's journal, the most recently active first.

    \b
        tinker-recovery runs --state failed --state dead --state stalled
        tinker-recovery runs --sort loss --limit 10
        tinker-recovery runs | grep seed023

    "training (no step for 2 min)" is a run that takes longer than usual for its next step, and
    "stalled" is a run whose process lives, and that has done no step for five minutes, or for five
    times as long as its steps take if that is longer. "dead" is a run whose process was killed; run
    the same command again to resume it. "resuming" is one that the same command has by now, and
    does not train yet. "since" is since when it is in its state, "recov." how
    often it has recovered, "job" the job and the try that trains it, and "host" the machine whose
    process does. Piped, times are in ISO 8601.

    The service is not asked: a run that a machine with a journal of its own trains is not seen
    here. Who tries to train it as well waits, or is refused, and learns that machine's name.

    Exit status: 0; 2 for a wrong option; 3 if the journal cannot be read.
    """
    del all_
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.summary import read_summaries

    try:
        found = read_summaries(journal_file(journal), losses=1)
    except JournalError as error:
        refuse_because(error)
    chosen = [
        each
        for each in found
        if (each.run.named or not named) and (not states or each.run.display_state in states)
    ]
    chosen.sort(key=_SORTS[sort])  # stable: the most recently active first among equals
    runs = chosen[:limit] if limit else chosen
    if as_json:
        echo(json.dumps([summary(run) for run in runs]))
        return
    now = time.time()
    console = plain_console()
    show_records(console, _COLUMNS, [_record(each, now) for each in runs])
    if console.is_terminal and (len(runs) < len(found) or not found):
        from tinker_recovery.telemetry.text import counted

        echo(f"{len(runs)} of {counted(len(found), 'run')}" if found else "no runs yet")


_COLUMNS = (
    Column("run", 0),
    Column("state", 0),
    Column("since", 3),
    Column("step", 1, right=True),
    Column("loss", 2),
    Column("recov.", 2, right=True),
    Column("last fault", 4, sparse=True),
    Column("when", 5, sparse=True),
    Column("job", 6, sparse=True),
    Column("host", 7, once=True),
    Column("service", 8, once=True),
)


def _record(each: RunSummary, now: float) -> Record:
    from tinker_recovery.report.words import age, iso

    run, fault, state = each.run, each.incident, each.run.display_state
    return (
        run.name,
        Cell(with_quiet(state, run.quiet_since, now), STYLES.get(state, ""), plain=state),
        Cell(age(now - each.since), plain=iso(each.since)),
        str(run.step),
        f"{each.losses[-1]:.4g}" if each.losses else "-",
        Cell(str(each.recoveries), "yellow" if each.recoveries else "dim"),
        "-" if fault is None else fault.kind,
        Cell("-")
        if fault is None
        else Cell(f"{age(now - fault.started)} ago", "dim", iso(fault.started)),
        job_text(run.job, run.name),
        run.holder.host if run.holder is not None and run.live else "-",
        run.service,
    )


def job_text(job: str | None, run: str) -> str:
    """The job of a run, ``NAME try N``; without its name where the run has the same."""
    return "-" if job is None else job.removeprefix(f"{run} ")


def summary(each: RunSummary) -> dict[str, Any]:
    """A run's main facts, for JSON."""
    from tinker_recovery.report.words import with_iso

    run, fault = each.run, each.incident
    holder = run.holder if run.live else None
    return with_iso(
        {
            "run": run.name,
            "named": run.named,
            "state": run.display_state,
            "since": each.since,
            "quiet_since": run.quiet_since,
            "detail": run.detail,
            "step": run.step,
            "loss": each.losses[-1] if each.losses else None,
            "recoveries": each.recoveries,
            "last_fault": None if fault is None else fault.kind,
            "last_fault_time": None if fault is None else fault.started,
            "next_save_step": run.next_save_step,
            "next_save": run.next_save,
            "attempts_left": run.attempts_left,
            "lineage": run.lineage,
            "service": run.service,
            "origin": dict(run.origin),
            "job": run.job,
            "created": run.created,
            "updated": run.updated,
            "pid": None if holder is None else holder.pid,
            "host": None if holder is None else holder.host,
            "held_since": None if holder is None else holder.since,
        }
    )
