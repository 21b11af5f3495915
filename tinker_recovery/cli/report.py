"""``tinker-recovery report``: one run as an HTML page."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import (
    journal_file,
    journal_option,
    no_such_run,
    refuse,
    service_option,
)

if TYPE_CHECKING:
    from tinker_recovery.report import ReportFigures

_EVENTS = 2000


@click.command()
@click.argument("run")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE.html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the page; an existing file is replaced.",
)
@journal_option
@service_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(
    run: str, output: Path, journal: Path | None, service: str | None, *, as_json: bool
) -> None:
    r"""Write an HTML page about RUN: loss curve, incidents, checkpoints, figures, events.

    The page is one file that loads nothing from anywhere and contains no keys and no signed
    addresses. It shows the loss with its recoveries and replayed steps, the incidents, the
    checkpoint that each attempt started from, and figures. RUN is the name given to the run; of
    several with that name, the newest. It may still be training.

    \b
    Try it:
        tinker-recovery demo --keep demo
        tinker-recovery report poisoned --journal demo -o poisoned.html

    Exit status: 0; 1 if there is no such run; 2 for a wrong option; 3 if the journal cannot be read
    or the page cannot be written.
    """
    path = journal_file(journal)
    figures = write_report(path, run, output, service=service)
    if as_json:
        click.echo(json.dumps({"run": run, "report": str(output), **asdict(figures)}))
    else:
        click.echo(f"wrote {output}: open it in a browser")


def write_report(
    journal: Path, name: str, output: Path, *, service: str | None = None
) -> ReportFigures:
    """Write the page, all or nothing; exits the command if it cannot."""
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_events, read_run
    from tinker_recovery.report import figures_of, render

    try:
        run = read_run(journal, name, service=service)
        if run is None:
            no_such_run(journal, name)
        events = [
            each
            for each in read_events(journal, name, limit=_EVENTS)
            if run.created - 1 <= each.time
        ]
    except JournalError as error:
        refuse(str(error))
    page = render(run, events, now=time.time())
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        refuse(f"{output} cannot be written: {error.strerror or error}; choose another -o")
    sys.stdout.flush()
    return figures_of(run)
