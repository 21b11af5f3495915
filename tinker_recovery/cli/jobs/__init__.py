"""``tinker-recovery jobs``: list, show, cancel and retry jobs, and work on them."""

from __future__ import annotations

import click

from tinker_recovery.cli.jobs.looking import cancel, list_, retry, show
from tinker_recovery.cli.jobs.working import work


@click.group()
def command() -> None:
    """List, show, cancel and retry jobs, and work on them.

    The database is --database, TINKER_RECOVERY_DATABASE, or the file jobs.sqlite3 beside this
    machine's journal. An address with a password belongs into the variable, or the password into
    ~/.pgpass: others can read the command line.

    Exit status of each: 0 if all is well; 1 if there is no such job, or it cannot be done with one
    in its state; 2 for a wrong option; 3 if the database cannot be used.
    """


for _each in (list_, show, cancel, retry, work):
    command.add_command(_each)

__all__ = ["command"]
