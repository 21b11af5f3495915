"""``tinker-recovery abandon``: forget a run, so that its name is free for a new one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tinker_recovery.cli.common import (
    NO_SUCH_RUN,
    at_others,
    echo,
    journal_file,
    journal_option,
    refuse,
    refuse_because,
    run_argument,
    service_option,
)
from tinker_recovery.telemetry.text import counted

HELD = 4


@click.command()
@run_argument
@service_option
@click.option("--force", is_flag=True, help="Even if a process trains it: its training then ends.")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *, run: str, service: str | None, force: bool, journal: Path | None, as_json: bool
) -> None:
    """Forget a run: the next run of that name starts from the beginning.

    Its checkpoints stay at the service, and its history stays in the journal. A process that still
    trains it loses its lease.

    Exit status: 0 if it is forgotten; 1 if there is no such run; 2 for a wrong option; 3 if the
    journal cannot be used; 4 if a process trains it (see --force).
    """
    from tinker_recovery.errors import JournalError, RunHeld
    from tinker_recovery.journal.abandon import abandon
    from tinker_recovery.journal.reading import read_runs

    path = journal_file(journal)
    try:
        forgotten = abandon(path, run, service=service, even_if_held=force)
    except JournalError as error:
        refuse_because(error)
    except RunHeld as error:
        refuse(str(error), HELD)
    if forgotten is None:
        at = "" if service is None else f" at {service}"
        runs = [each for each in read_runs(path) if each.state != "abandoned"]
        elsewhere = "" if service is None else at_others(runs, run, service)
        refuse(
            f"there is no run {run!r}{at} to forget{elsewhere}: see `tinker-recovery runs`",
            NO_SUCH_RUN,
        )
    was, kept = forgotten.display_state, sum(not each.gone for each in forgotten.checkpoints)
    if as_json:
        said = {"run": run, "service": forgotten.service, "was": was, "checkpoints_kept": kept}
        echo(json.dumps(said))
        return
    stay = "stays" if kept == 1 else "stay"
    echo(
        f"run {run!r} at {forgotten.service} is forgotten (it was {was}, at step "
        f"{forgotten.step}); its {counted(kept, 'checkpoint')} {stay} at the service"
    )
