"""``tinker-recovery show``: the history of one run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import (
    echo,
    indented,
    journal_file,
    journal_option,
    no_such_run,
    plain_console,
    prices_option,
    refuse_because,
    run_argument,
    service_option,
)
from tinker_recovery.cli.records import Cell, Column, show_records
from tinker_recovery.cli.runs import summary
from tinker_recovery.cli.states import with_quiet
from tinker_recovery.cli.words import say
from tinker_recovery.telemetry.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from tinker_recovery.costs import Prices
    from tinker_recovery.journal.reading import EventView, RunView
    from tinker_recovery.report import ReportFigures


@click.command()
@run_argument
@service_option
@click.option(
    "--events",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How many events to show, the newest.",
)
@journal_option
@prices_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    run: str,
    service: str | None,
    events: int,
    journal: Path | None,
    prices: Mapping[str, Prices] | None,
    as_json: bool,
) -> None:
    """Show one run: its holder, attempts, incidents, checkpoints, cost and events.

    Only this machine's journal is read. The service is not asked: that a machine with a journal of
    its own trains the run is not seen here.

    Exit status: 0; 1 if there is no such run; 2 for a wrong option; 3 if the journal cannot be
    read.
    """
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_events, read_run
    from tinker_recovery.journal.summary import RunSummary
    from tinker_recovery.report import figures_of
    from tinker_recovery.report.words import with_iso

    path = journal_file(journal)
    try:
        view = read_run(path, run, service=service)
        if view is None:
            no_such_run(path, run, service)
        newest = read_events(path, run=view.id, limit=events) if events else []
        known = RunSummary.of(view)
    except JournalError as error:
        refuse_because(error)
    figures = figures_of(view, prices=prices)
    if as_json:
        whole = {
            **summary(known),
            "attempts": [with_iso(asdict(each)) for each in view.attempts],
            "incidents": [with_iso(asdict(each)) for each in view.incidents],
            "checkpoints": [with_iso(asdict(each)) for each in view.checkpoints],
            "cost": {
                "tokens": figures.tokens,
                "tokens_replayed": figures.tokens_replayed,
                "usd": figures.usd,
                "usd_replayed": figures.usd_replayed,
                "usd_checks": figures.usd_checks,
                "unpriced": figures.unpriced,
            },
            "events": [with_iso(asdict(each)) for each in newest],
        }
        echo(json.dumps(whole))
        return
    _show(view, figures, newest)


_ATTEMPTS = (
    Column("attempt", 0, right=True),
    Column("from step", 0, right=True),
    Column("began", 2),
    Column("outcome", 0),
    Column("Tinker run", 1),
)
_INCIDENTS = (
    Column("fault", 0),
    Column("at step", 0, right=True),
    Column("back to", 0, right=True),
    Column("detected", 2),
    Column("took", 1, right=True),
    Column("outcome", 0),
)


def _state(view: RunView) -> str:
    state = with_quiet(view.display_state, view.quiet_since, time.time())
    if view.detail.startswith(f"{state} "):
        return indented(view.detail)  # "stopped by Ctrl-C" says both
    return f"{state}: {indented(view.detail)}" if view.detail else state


def _show(view: RunView, figures: ReportFigures, events: list[EventView]) -> None:
    from tinker_recovery.report import event_in_words
    from tinker_recovery.report.words import iso, moment, tokens, usd

    console = plain_console()
    say(console, f"run {indented(view.name)}: {_state(view)}, at step {view.step}")
    say(console, f"lineage {view.lineage} at {view.service}, begun {moment(view.created)}")
    if (by := view.holder) is not None and view.live:
        say(
            console,
            f"held by process {by.pid} on {by.host} since {moment(by.since)} (its lease ends at "
            f"{moment(by.expires, by.since)}, and is renewed while the process is alive)",
        )
    if view.job is not None:
        say(console, f"job {indented(view.job)}")
    _show_history(console, view)
    kept = [each for each in view.checkpoints if not each.gone]
    if kept:
        say(console, f"{counted(len(kept), 'checkpoint')}, the newest {kept[-1].path}")
    if view.next_save:
        say(console, view.next_save)
    say(console, f"tokens: {tokens(figures.tokens)}")
    if figures.tokens_replayed:
        say(console, f"of steps done again: {tokens(figures.tokens_replayed)}")
    if figures.usd is not None:
        say(
            console,
            f"cost: {usd(figures.usd, figures.unpriced)}; of steps done again "
            f"{usd(figures.usd_replayed)}, of the canary {usd(figures.usd_checks)}",
        )
    for event in events:
        if console.is_terminal:
            when = moment(event.time, view.created)
            said = event_in_words(event.name, event.message, event.fields)
        else:
            when, said = iso(event.time), indented(event.message)
        say(console, f"{when}  {event.name}  {said}")


def _show_history(console: Console, view: RunView) -> None:
    from tinker_recovery.report import duration
    from tinker_recovery.report.words import iso, moment

    attempts = [
        (
            str(attempt.number),
            str(attempt.start_step),
            Cell(moment(attempt.started, view.created), plain=iso(attempt.started)),
            attempt.outcome or "in progress",
            attempt.run_id,
        )
        for attempt in view.attempts
    ]
    if attempts:
        console.print("\nAttempts", style="bold")
        show_records(console, _ATTEMPTS, attempts)
    incidents = [
        (
            each.kind,
            str(each.step),
            "-" if each.to_step is None else str(each.to_step),
            Cell(moment(each.started, view.created), plain=iso(each.started)),
            duration(None if each.ended is None else each.ended - each.started),
            each.outcome or f"in progress ({each.phase})",
        )
        for each in view.incidents
    ]
    if incidents:
        console.print("\nIncidents", style="bold")
        show_records(console, _INCIDENTS, incidents)
    console.print()
