"""Which journal ``watch`` and ``report`` look at."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

UNREADABLE = 3
"""Exit status where there is nothing to read."""

journal_option = click.option(
    "--journal",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The journal, or its folder. Default: that of TINKER_RECOVERY_STATE_DIR.",
)


def journal_file(choice: Path | None) -> Path:
    """The file that the option means."""
    from tinker_recovery.journal.journal import JOURNAL_FILE, default_path

    if choice is None:
        return default_path()
    # A folder that is not there yet, or a file whatever it is called: the reader says what it sees.
    return choice / JOURNAL_FILE if choice.is_dir() else choice


def refuse(why: str) -> NoReturn:
    """Leave, for there is nothing to read, or nowhere to write."""
    click.echo(f"Error: {why}", err=True)
    raise SystemExit(UNREADABLE)
