"""Which journal a command looks at, and how it leaves where there is nothing to see."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

NO_SUCH_RUN, UNREADABLE = 1, 3
"""Exit statuses."""

journal_option = click.option(
    "--journal",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The journal, or its folder. Default: that of TINKER_RECOVERY_STATE_DIR.",
)


def _without_userinfo(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    if url is None:
        return None
    from tinker_recovery.telemetry.redaction import split_userinfo

    return split_userinfo(url)[0]


service_option = click.option(
    "--service",
    metavar="URL",
    callback=_without_userinfo,  # as the journal has it
    help="Base URL of its service, if several know a run of that name. Default: the newest run.",
)


def journal_file(choice: Path | None) -> Path:
    """The file that the option means."""
    from tinker_recovery.journal.journal import JOURNAL_FILE, default_path

    if choice is None:
        return default_path()
    # A folder that is not there yet, or a file whatever it is called: the reader says what it sees.
    return choice / JOURNAL_FILE if choice.is_dir() else choice


def refuse(why: str, status: int = UNREADABLE) -> NoReturn:
    """Leave, for there is nothing to read, or nowhere to write."""
    click.echo(f"Error: {why}", err=True)
    raise SystemExit(status)


def no_such_run(journal: Path, name: str) -> NoReturn:
    """Leave, for the journal has no such run; says which it has."""
    from tinker_recovery.journal.reading import read_runs
    from tinker_recovery.report import plain

    known = ", ".join(sorted({plain(each.name) for each in read_runs(journal)})) or "none"
    refuse(f"the journal {journal} has no run {plain(name)!r}; it has: {known}", NO_SUCH_RUN)
