"""``tinker-recovery watch``: runs as they train, in a terminal or line by line."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.source import (
    journal_file,
    journal_option,
    no_such_run,
    refuse,
    service_option,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tinker_recovery.cli.watch.rows import RunRow, Said
    from tinker_recovery.cli.watch.sources import Source

_SHOWN_EVENTS = 200
_PAGE = 60


@click.command()
@click.argument("run", required=False)
@journal_option
@service_option
@click.option(
    "--events",
    metavar="FILE",
    help="Read lines of events instead of a journal; - for standard input, until its end.",
)
@click.option(
    "--interval",
    "interval_s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.05, 3600),
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, print, and leave.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="With --once one JSON array; else one JSON object a line, whenever a run changes.",
)
def command(
    run: str | None,
    journal: Path | None,
    service: str | None,
    events: str | None,
    interval_s: float,
    *,
    once: bool,
    as_json: bool,
) -> None:
    r"""Watch runs while they train, until Ctrl-C.

    Shows every run of the journal that all supervised processes of this machine write: where it
    stands, its step and loss, its recoveries, its last checkpoint and the next, and how many
    recoveries it may still try. With RUN, the name of one: its curve, attempts, incidents and
    events. Nothing that is watched is held up by it. Without a terminal it prints a line for each
    event and change.

    States: training, recovering, stopped (interrupted; the same command goes on with it), dead
    (killed; the same), finished, failed, abandoned.

    \b
    Try it:
        tinker-recovery demo --keep demo --pace 0.3
        tinker-recovery watch --journal demo             (in another terminal)

    --events reads one JSON object a line, as tinker_recovery.telemetry.json_line writes it:
    Supervisor(on_event=lambda event: print(json_line(event), file=log, flush=True)). Events tell
    less than a journal: no losses, and no end.

    Exit status: 0, after Ctrl-C too; 1 if there is no such run; 2 for a wrong option; 3 if the
    journal or the file cannot be read.
    """
    from rich.console import Console

    from tinker_recovery.errors import JournalError

    if events is not None and journal is not None:
        raise click.UsageError("--events and --journal do not go together: give one")
    console = Console()
    try:
        source = _source(run, journal, service, events, once=once)
        if once:
            _print_once(source, console, run, as_json=as_json)
        elif as_json:
            _print_changes(source, interval_s, as_json=True)
        elif console.is_terminal:
            _show(source, console, run, interval_s)
        else:
            _print_changes(source, interval_s, as_json=False)
    except KeyboardInterrupt:
        pass  # how it is left
    except JournalError as error:
        refuse(str(error))
    except BrokenPipeError:
        raise  # click leaves quietly: whoever read it has seen enough
    except OSError as error:
        refuse(f"{events}: {error.strerror or error}")


def _source(
    run: str | None, journal: Path | None, service: str | None, events: str | None, *, once: bool
) -> Source:
    from tinker_recovery.cli.watch.sources import EventsSource, JournalSource
    from tinker_recovery.journal.reading import read_run

    if events is not None:
        return EventsSource(events, run, wait=once)
    path = journal_file(journal)
    if run is not None and read_run(path, run, service=service) is None:
        no_such_run(path, run)
    return JournalSource(path, run, service)


def _print_once(source: Source, console: Console, run: str | None, *, as_json: bool) -> None:
    rows = source.rows()
    if as_json:
        click.echo(json.dumps([row.as_json() for row in rows]))
        return
    console.print(_picture(source, rows, source.news(), console, run))
    _tell_of_other_lines(source)


def _tell_of_other_lines(source: Source) -> None:
    count = getattr(source, "not_events", 0)
    if count:
        click.echo(f"{count} lines were no events, and were passed over", err=True)


def _picture(
    source: Source, rows: list[RunRow], events: list[Said], console: Console, run: str | None
) -> RenderableType:
    from tinker_recovery.cli.watch.view import detail, overview

    now, (width, height) = time.time(), console.size
    # A page that is printed may be longer than one that is looked at.
    height = height if console.is_terminal else max(height, _PAGE)
    if run is None or not rows:
        return overview(rows, now=now, width=width)
    return detail(rows[0], source.detail(), events, now=now, width=width, height=height)


def _show(source: Source, console: Console, run: str | None, interval_s: float) -> None:
    """A live view that stays on the screen when it is left."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    events: deque[Said] = deque(maxlen=_SHOWN_EVENTS)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            rows = source.rows()
            events.extend(source.news())
            picture = _picture(source, rows, list(events), console, run)
            live.update(Group(picture, Text(), Text("Ctrl-C leaves", "dim")), refresh=True)
            if source.ended:
                return
            time.sleep(interval_s)


def _print_changes(source: Source, interval_s: float, *, as_json: bool) -> None:
    """A line for each event and each change; to begin with, one for each run as it stands."""
    from tinker_recovery.cli.watch.view import change, event_line

    before: dict[tuple[str | None, str], RunRow] | None = None
    while True:
        rows, news = source.rows(), source.news()
        now = {(row.service, row.run): row for row in reversed(rows)}
        known = before or {}
        if as_json:
            lines = [json.dumps(row.as_json()) for key, row in now.items() if known.get(key) != row]
        else:
            lines = [] if before is None else [event_line(event) for event in news]
            lines += [change(row) for key, row in now.items() if _differs(known.get(key), row)]
        for told in lines:
            click.echo(told)
        if source.ended:
            _tell_of_other_lines(source)
            return
        before = now
        time.sleep(interval_s)


def _differs(before: RunRow | None, row: RunRow) -> bool:
    """Whether a run changed so that it is worth a line; steps alone are not."""
    return before is None or (before.state, before.recoveries) != (row.state, row.recoveries)


__all__ = ["command"]
