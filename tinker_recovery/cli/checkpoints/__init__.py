"""``tinker-recovery checkpoints``: list, verify, prune, pin and unpin what the service stores."""

from __future__ import annotations

import click

from tinker_recovery.cli.checkpoints.listing import list_
from tinker_recovery.cli.checkpoints.pinning import pin, unpin
from tinker_recovery.cli.checkpoints.pruning import prune
from tinker_recovery.cli.checkpoints.verifying import verify


@click.group()
def command() -> None:
    """List, verify, prune, pin and unpin the checkpoints at the service.

    The service is the one that TINKER_BASE_URL and TINKER_API_KEY name. A checkpoint's metadata
    (step, run, metrics) is read from the service; pins, and checkpoints found bad, are recorded in
    this machine's journal, in TINKER_RECOVERY_STATE_DIR.

    Exit status of each: 0 if all is well; 1 if something is bad or could not be done; 2 for a wrong
    option; 3 if the service or the journal could not be read.
    """


for _each in (list_, verify, prune, pin, unpin):
    command.add_command(_each)

__all__ = ["command"]
