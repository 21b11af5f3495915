"""What several commands share: the journal they read, the console, and how they exit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tinker_recovery.costs import Prices
    from tinker_recovery.journal.reading import RunView

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

    return split_userinfo(url)[0].rstrip("/")


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
    with contextlib.suppress(OSError):  # where it may not be looked, its opening says so
        return choice / JOURNAL_FILE if choice.is_dir() else choice
    return choice


def check_local_server() -> None:
    """Raise click.UsageError where what the local server needs is not installed."""
    try:
        import tinker_recovery.testing  # noqa: F401 - a try
    except ModuleNotFoundError as error:
        raise click.UsageError(str(error)) from error


def demo_server(folder: Path) -> Path:
    """Where `demo --keep` keeps what its server has stored, beside the journal."""
    return folder / "demo-server"


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints names and messages as the text they are; see :func:`as_text`.

    Without markup, emoji or highlights: every Tinker run id contains ``:train:``, which rich would
    print as an emoji, and a name may have brackets.
    """
    from rich.console import Console

    from tinker_recovery.telemetry.text import as_text

    class TextConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            # Before rich makes a Text of it, which would leave some control characters out.
            return super().render_str(as_text(text, lines=True), **how)

    return TextConsole(markup=False, emoji=False, highlight=False, stderr=stderr)


def echo(text: str, *, err: bool = False) -> None:
    """Print lines, with what comes from elsewhere in them as the text it is."""
    from tinker_recovery.telemetry.text import as_text

    click.echo(as_text(text, lines=True), err=err)


def indented(text: str) -> str:
    """Text of others within a line of ours: none of its further lines can look like one of ours."""
    return text.replace("\n", "\n    ")


def say_error(why: str, status: int = UNREADABLE) -> None:
    """Print an error to standard error: as JSON if the command was called with ``--json``."""
    context = click.get_current_context(silent=True)
    if context is not None and context.params.get("as_json"):
        echo(json.dumps({"error": why, "status": status}), err=True)
    else:
        echo(f"Error: {indented(why)}", err=True)


def refuse(why: str, status: int = UNREADABLE) -> NoReturn:
    """Exit the command with an error message."""
    say_error(why, status)
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
    """With ``-v``, print the chain below an error of the service or the journal."""
    details = getattr(error, "details", "")
    if details and click.get_current_context().find_root().params.get("verbose"):
        echo(details, err=True)


def refuse_because(error: Exception, status: int = UNREADABLE) -> NoReturn:
    """Exit because of an error: in one line, and with ``-v`` the chain before it."""
    from tinker_recovery.telemetry.redaction import redact

    show_below(error)
    refuse(redact(str(error)), status)


def no_such_run(journal: Path, name: str, service: str | None = None) -> NoReturn:
    """Exit because the journal has no run of that name; says which come near, or some it has.

    Args:
        journal: The journal.
        name: What was asked for.
        service: The service at which it was; None for any.
    """
    from tinker_recovery.journal.reading import read_runs
    from tinker_recovery.report import plain

    runs = read_runs(journal)
    if service is not None and (elsewhere := at_others(runs, name, service)):
        refuse(
            f"there is no run '{plain(name)}' at {plain(service)} in {journal}{elsewhere}",
            NO_SUCH_RUN,
        )
    names = [each.name for each in runs]
    refuse(f"there is no run '{plain(name)}' in {journal}{instead_of(name, names)}", NO_SUCH_RUN)


def at_others(runs: Sequence[RunView], name: str, service: str) -> str:
    """What to say after "there is no run of this name here": at which other services one is."""
    from tinker_recovery.report import plain

    others = dict.fromkeys(
        plain(each.service) for each in runs if each.name == name and each.service != service
    )
    return f"; the run of that name is at {', '.join(others)}" if others else ""


def instead_of(name: str, names: Sequence[str]) -> str:
    """What to say after "there is no run of this name": the names that come near, or the first."""
    from difflib import get_close_matches

    from tinker_recovery.report import plain

    known = list(dict.fromkeys(map(plain, names)))
    near = [each for each in known if name and name in each][:_MOST_NAMES]
    near = near or get_close_matches(plain(name), known, _NEAR_NAMES)
    if near:
        return f"; did you mean {', '.join(near)}?"
    more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    return f"; its runs: {', '.join(known[:_MOST_NAMES]) or 'none'}{more}"


_MOST_NAMES, _NEAR_NAMES = 6, 3


def complete_run(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The names of runs that begin so, for a shell's completion; none if they cannot be read."""
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_runs

    with contextlib.suppress(JournalError, OSError, ValueError):
        journal = context.params.get("journal")
        runs = read_runs(journal_file(None if journal is None else Path(journal)))
        names = dict.fromkeys(each.name for each in runs)
        # A shell inserts what it is handed as it is, and would act on a quote or a dollar sign.
        return [each for each in names if each.startswith(incomplete) and _PLAIN(each)]
    return []


_PLAIN = re.compile(r"[\w.:@%+=/-]+").fullmatch


def run_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add RUN, whose names a shell completes."""
    return click.argument("run", shell_complete=complete_run)(command)


class WithoutRun(click.Command):
    """A command about no single run, which names the one that shows a run to who gives it one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what it is called with."""
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            ctx.fail(
                f"Got unexpected extra argument ({' '.join(rest)}): `tinker-recovery "
                f"{ctx.info_name}` takes no run: see `tinker-recovery show RUN`"
            )
        return rest
