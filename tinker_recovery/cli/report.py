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
    echo,
    journal_file,
    journal_option,
    no_such_run,
    prices_option,
    refuse,
    refuse_because,
    run_argument,
    service_option,
)
from tinker_recovery.cli.output import goes_to_stdout, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinker_recovery.costs import Prices
    from tinker_recovery.report import ReportFigures

_EVENTS = 2000


@click.command()
@run_argument
@click.option(
    "-o",
    "--output",
    metavar="FILE.html",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Where to write the page; an existing file is replaced, a pipe or - is written to. "
    "Default: RUN.html in this folder, if there is no such file yet; nowhere with --json.",
)
@journal_option
@service_option
@prices_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the figures as one JSON object, with -o or alone.",
)
def command(
    run: str,
    output: Path | None,
    journal: Path | None,
    service: str | None,
    prices: Mapping[str, Prices] | None,
    *,
    as_json: bool,
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
    or the page cannot be written, or, without -o, would replace a file.
    """
    path = journal_file(journal)
    if output is None and not as_json:
        output = Path(_file_name(run))
        if os.path.lexists(output):
            refuse(f"there is a {output} already: -o {output} replaces it, or choose another -o")
    figures = write_report(path, run, output, service=service, prices=prices)
    to_stdout = output is not None and goes_to_stdout(output)
    if as_json:
        written = None if output is None else str(output)
        said = json.dumps({"run": run, "report": written, **asdict(figures)})
    elif to_stdout:
        said = "wrote the page to standard output"
    else:
        said = f"wrote {output}: open it in a browser"
    echo(said, err=to_stdout)


def _file_name(run: str) -> str:
    """A file that a shell takes as it is."""
    return f"{run}.html" if all(each.isalnum() or each in "-_." for each in run) else "report.html"


def write_report(
    journal: Path,
    name: str,
    output: Path | None,
    *,
    service: str | None = None,
    prices: Mapping[str, Prices] | None = None,
) -> ReportFigures:
    """Write the page, if it is to be anywhere, all or nothing; exits the command if it cannot."""
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_events, read_run
    from tinker_recovery.report import figures_of, render

    try:
        run = read_run(journal, name, service=service)
        if run is None:
            no_such_run(journal, name, service)
        events = read_events(journal, run=run.id, limit=_EVENTS)
    except JournalError as error:
        refuse_because(error)
    if output is not None:
        page = render(run, events, now=time.time(), prices=prices)
        try:
            write_whole(output, page)
        except OSError as error:
            refuse(f"{output} cannot be written: {error.strerror or error}; choose another -o")
        sys.stdout.flush()
    return figures_of(run, prices=prices)
