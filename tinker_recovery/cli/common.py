"""What several commands share: the journal they read, the console, and how they exit."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tinker_recovery.telemetry.text import as_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tinker_recovery.costs import Prices
    from tinker_recovery.errors import ServiceUnusable

NO_SUCH_RUN, UNREADABLE = 1, 3
"""Exit statuses."""

journal_option = click.option(
    "--journal",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The journal, or its folder. Default: TINKER_RECOVERY_STATE_DIR, or your state folder.",
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
    help="Base URL of the service, if runs at several have this name. Default: the newest run.",
)


def _read_prices(
    context: click.Context, parameter: click.Parameter, file: Path | None
) -> Mapping[str, Prices] | None:
    if file is None:
        return None
    from pydantic import ValidationError

    from tinker_recovery.costs import read_table

    try:
        return read_table(file)
    except ValidationError as error:
        whys = []
        for each in error.errors(include_url=False):
            where = ".".join(map(str, each["loc"])) or str(file)
            whys.append(f"{where}: {each['msg'].removeprefix('Value error, ')}")
        raise click.BadParameter("; ".join(whys), context, parameter) from error


prices_option = click.option(
    "--prices",
    metavar="FILE.toml",
    type=click.Path(path_type=Path),
    callback=_read_prices,
    help="What tokens cost, as `tinker-recovery prices` writes it. Default: prices= of the run's "
    "policy.",
)


def journal_file(choice: Path | None) -> Path:
    """The journal that ``--journal`` names; it may not exist."""
    from tinker_recovery.journal.journal import JOURNAL_FILE, default_path

    if choice is None:
        return default_path()
    return choice / JOURNAL_FILE if choice.is_dir() else choice


def demo_server(folder: Path) -> Path:
    """Where `demo --keep` keeps what its server has stored, beside the journal."""
    return folder / "demo-server"


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints names and messages as the text they are; see :func:`as_text`.

    Without markup, emoji or highlights: every Tinker run id contains ``:train:``, which rich would
    print as an emoji, and a name may have brackets.
    """
    from rich.console import Console

    class TextConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            # Before rich makes a Text of it, which would leave some control characters out.
            return super().render_str(as_text(text, lines=True), **how)

    return TextConsole(markup=False, emoji=False, highlight=False, stderr=stderr)


def echo(text: str, *, err: bool = False) -> None:
    """Print lines, with what comes from elsewhere in them as the text it is."""
    click.echo(as_text(text, lines=True), err=err)


def indented(text: str) -> str:
    """Text of others within a line of ours: none of its further lines can look like one of ours."""
    return text.replace("\n", "\n    ")


def refuse(why: str, status: int = UNREADABLE) -> NoReturn:
    """Exit the command with an error message."""
    echo(f"Error: {indented(why)}", err=True)
    raise click.exceptions.Exit(status)


def leave(status: int) -> NoReturn:
    """Exit the command, also while the SDK still tries to reach a service that is gone.

    It does so in a thread that cannot be stopped, and a normal exit would wait minutes for it.
    Everything of ours has to be closed by then.
    """
    if any(not thread.daemon for thread in threading.enumerate()[1:]):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def show_below(error: BaseException) -> None:
    """With ``-v``, print the chain below an error of the service."""
    details = getattr(error, "details", "")
    if details and click.get_current_context().find_root().params.get("verbose"):
        echo(details, err=True)


def refuse_service(error: ServiceUnusable, status: int = UNREADABLE) -> NoReturn:
    """Exit because the service cannot be used: in one line, and with ``-v`` the chain before it."""
    show_below(error)
    refuse(str(error), status)


def no_such_run(journal: Path, name: str) -> NoReturn:
    """Exit because the journal has no run of that name; lists the names it has."""
    from tinker_recovery.journal.reading import read_runs
    from tinker_recovery.report import plain

    known = ", ".join(sorted({plain(each.name) for each in read_runs(journal)})) or "none"
    refuse(f"there is no run {plain(name)!r} in {journal}; its runs: {known}", NO_SUCH_RUN)
