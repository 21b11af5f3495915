"""``tinker-recovery checkpoints``: list, verify, prune, pin and unpin what the service stores."""

from __future__ import annotations

import click

from tinker_recovery.cli.checkpoints.listing import list_
from tinker_recovery.cli.checkpoints.pinning import pin, unpin
from tinker_recovery.cli.checkpoints.pruning import prune
from tinker_recovery.cli.checkpoints.verifying import verify


@click.group()
def command() -> None:
    """Look after the checkpoints that the service stores.

    Works on the service that TINKER_BASE_URL and TINKER_API_KEY name. A checkpoint's metadata
    (step, run, metrics) is read from the service; pins, and what was found bad, are kept in this
    machine's journal, in TINKER_RECOVERY_STATE_DIR.

    Exit status of all: 0 if all is well; 1 if something was found bad or could not be done; 2 for a
    wrong option; 3 if the service or the journal could not be read.
    """


for _each in (list_, verify, prune, pin, unpin):
    command.add_command(_each)

__all__ = ["command"]
