"""``tinker-recovery abandon``: forget a run, so that its name begins anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tinker_recovery.cli.source import NO_SUCH_RUN, UNREADABLE, journal_file, journal_option

HELD = 4


@click.command()
@click.argument("run")
@click.option("--service", help="Base URL of its service, if several know a run of that name.")
@click.option("--force", is_flag=True, help="Even if a process trains it: that one then ends.")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *, run: str, service: str | None, force: bool, journal: Path | None, as_json: bool
) -> None:
    """Forget a run: the next one of its name begins anew.

    Its checkpoints stay at the service, and its history stays in the journal. A process that still
    trains it is refused as if it had lost its lease.

    Exit status: 0 if it is forgotten; 1 if there is no such run; 2 for a wrong option; 3 if the
    journal cannot be used; 4 if a process trains it (--force).
    """
    from tinker_recovery.errors import JournalError, RunHeld
    from tinker_recovery.journal.abandon import abandon

    try:
        forgotten = abandon(journal_file(journal), run, service=service, even_if_held=force)
    except JournalError as error:
        click.echo(str(error), err=True)
        sys.exit(UNREADABLE)
    except RunHeld as error:
        click.echo(str(error), err=True)
        sys.exit(HELD)
    if forgotten is None:
        click.echo(f"there is no run {run!r} to forget: see `tinker-recovery runs`", err=True)
        sys.exit(NO_SUCH_RUN)
    saved = sum(not each.gone for each in forgotten.checkpoints)
    if as_json:
        click.echo(json.dumps({"run": run, "was": forgotten.state, "checkpoints_kept": saved}))
        return
    click.echo(
        f"run {run!r} is forgotten (it was {forgotten.state}, at step {forgotten.step}); its "
        f"{saved} checkpoints stay at the service"
    )
