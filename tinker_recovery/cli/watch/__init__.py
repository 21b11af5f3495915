"""``tinker-recovery watch``: runs while they train, in a terminal or line by line."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import (
    complete_run,
    echo,
    journal_file,
    journal_option,
    no_such_run,
    plain_console,
    refuse,
    refuse_because,
    service_option,
)
from tinker_recovery.cli.states import named_option, state_option
from tinker_recovery.cli.watch.beginning import Beginning
from tinker_recovery.cli.watch.chosen import Chosen

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tinker_recovery.cli.watch.rows import EventText, RunRow
    from tinker_recovery.cli.watch.sources import WatchSource

_SHOWN_EVENTS = 200
_MIN_PRINTED_LINES = 60


@click.command()
@click.argument("run", required=False, shell_complete=complete_run)
@journal_option
@service_option
@state_option
@named_option
@click.option(
    "--events",
    metavar="FILE",
    help="Read events from this file instead of a journal; - for standard input.",
)
@click.option(
    "--interval",
    "interval_s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.05, 3600),
    help="Seconds between two updates.",
)
@click.option("--once", is_flag=True, help="Print the current state and exit.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object a line when a run changes; with --once, one JSON array.",
)
def command(  # noqa: PLR0913 - its options
    run: str | None,
    journal: Path | None,
    service: str | None,
    states: tuple[str, ...],
    events: str | None,
    interval_s: float,
    *,
    named: bool,
    once: bool,
    as_json: bool,
) -> None:
    r"""Watch runs while they train, until Ctrl-C.

    Shows every run in the journal, to which all supervised processes of this machine write: how
    many are in which state, and of each its state, step, loss, recoveries, last and next
    checkpoint, and how many recovery attempts are left. Trouble comes first; those that the
    terminal has no room for are counted below. With RUN, the name of a run: its loss curve,
    attempts, incidents and events. Without a terminal it prints a line for each event and change.
    Watching does not slow training down.

    States: failed; dead (killed) and stopped (interrupted), which the same command resumes; stalled
    (no step for five minutes, or for five times as long as its steps take if that is longer);
    recovering, resuming (the same command has it, and does not train yet), training (with the time
    since its last step if that is longer than usual), finished, abandoned.

    \b
    Try it:
        tinker-recovery demo --keep demo --pace 0.3
        tinker-recovery watch --journal demo             (in another terminal)

    --events reads one JSON object a line, as tinker_recovery.telemetry.json_line writes it:
    Supervisor(on_event=lambda event: print(json_line(event), file=log, flush=True)). Events lack
    losses and the end of a run.

    Exit status: 0, also after Ctrl-C; 1 if there is no such run; 2 for a wrong option; 3 if the
    journal or the file cannot be read.
    """
    if events is not None and journal is not None:
        raise click.UsageError("--events and --journal do not go together: give one")
    chosen = Chosen(run, service, frozenset(states), named=named)
    # What reads takes seconds to import on a slow machine.
    begun = Beginning(events=events is not None, shown=not as_json)
    try:
        _watch(chosen, journal, events, interval_s, begun, once=once, as_json=as_json)
    except KeyboardInterrupt:
        pass  # the normal way to quit
    finally:
        begun.over()


def _watch(
    chosen: Chosen,
    journal: Path | None,
    events: str | None,
    interval_s: float,
    begun: Beginning,
    *,
    once: bool,
    as_json: bool,
) -> None:
    from tinker_recovery.errors import JournalError

    console, run = plain_console(), chosen.run
    try:
        source = _source(chosen, journal, events, once=once)
        if once:
            _print_once(source, console, run, begun, as_json=as_json)
        elif console.is_terminal and not as_json:
            _show(source, console, run, interval_s, begun)
        else:
            _print_changes(source, chosen, interval_s, as_json=as_json)
    except JournalError as error:
        begun.over()
        refuse_because(error)
    except BrokenPipeError:
        raise  # click exits silently: the reader has closed the pipe
    except OSError as error:
        begun.over()
        refuse(f"{events or 'standard output'}: {error.strerror or error}")


def _source(chosen: Chosen, journal: Path | None, events: str | None, *, once: bool) -> WatchSource:
    from tinker_recovery.cli.watch.sources import EventsSource, JournalSource
    from tinker_recovery.journal.reading import read_run

    if events is not None:
        return EventsSource(events, chosen, wait=once)
    path, run = journal_file(journal), chosen.run
    if run is not None and read_run(path, run, service=chosen.service) is None:
        no_such_run(path, run, chosen.service)
    return JournalSource(path, chosen)


def _print_once(
    source: WatchSource, console: Console, run: str | None, begun: Beginning, *, as_json: bool
) -> None:
    from tinker_recovery.cli.watch.overview import print_plainly

    rows = source.rows()
    if as_json:
        echo(json.dumps([row.as_json() for row in rows]))
        return
    if console.is_terminal or not rows:
        # All of them: it is not cut to the height of the screen, which scrolls.
        whole = _render(source, rows, source.news(), console, run, height=sys.maxsize)
        begun.over()
        console.print(whole)
    elif run is None:
        print_plainly(console, rows)
    else:
        height = _MIN_PRINTED_LINES
        whole = _render(source, rows, source.news(), console, run, height=height)
        console.print(whole, soft_wrap=True)
    _report_skipped(source)


def _report_skipped(source: WatchSource) -> None:
    if source.skipped_lines:
        echo(f"lines skipped because they are not events: {source.skipped_lines}", err=True)


def _render(
    source: WatchSource,
    rows: list[RunRow],
    events: list[EventText],
    console: Console,
    run: str | None,
    *,
    height: int,
) -> RenderableType:
    from tinker_recovery.cli.watch.overview import overview
    from tinker_recovery.cli.watch.view import detail

    now, width = time.time(), console.width
    if run is None or not rows:
        return overview(rows, now=now, width=width, height=height, known=source.known)
    height = min(height, max(console.height, _MIN_PRINTED_LINES))
    return detail(
        rows[0],
        source.detail(),
        events,
        now=now,
        width=width,
        height=height,
        plainly=not console.is_terminal,
    )


def _show(
    source: WatchSource, console: Console, run: str | None, interval_s: float, begun: Beginning
) -> None:
    """A live view, which stays on the screen afterwards."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    events: deque[EventText] = deque(maxlen=_SHOWN_EVENTS)
    service = None

    def view() -> RenderableType:
        nonlocal service
        rows = source.rows()
        if run is not None and rows and rows[0].service != service:
            service = rows[0].service
            events.clear()  # the newest run of that name is one at another service
        events.extend(source.news())
        height = console.height
        seen = _render(source, rows, list(events), console, run, height=height)
        return Group(seen, Text(), Text("Ctrl-C to quit", "dim"))

    first = view()
    begun.over()
    with Live(first, console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not source.ended:
            time.sleep(interval_s)
            live.update(view(), refresh=True)


def _print_changes(
    source: WatchSource, chosen: Chosen, interval_s: float, *, as_json: bool
) -> None:
    """Print a line for each run, and then for each event and change."""
    from tinker_recovery.cli.watch.view import change, event_line

    before: dict[tuple[str | None, str], RunRow] | None = None
    held_back: list[EventText] = []
    while True:
        rows, news = source.rows(), source.news()
        now = {(row.service, row.run): row for row in reversed(rows)}
        known = before or {}
        if chosen.only_some:
            # Of a run that is shown, or was until now. The event that brings a run into a state may
            # be read a moment before the state.
            shown = {name for _, name in (*now, *known)}
            read, news = news, [each for each in [*held_back, *news] if each.run in shown]
            held_back = [each for each in read if each.run not in shown]
        if as_json:
            lines = [json.dumps(row.as_json()) for key, row in now.items() if known.get(key) != row]
        else:
            lines = [] if before is None else [event_line(event) for event in news]
            lines += [change(row) for key, row in now.items() if _differs(known.get(key), row)]
        for line in lines:
            echo(line)
        if source.ended:
            _report_skipped(source)
            return
        before = now
        time.sleep(interval_s)


def _differs(before: RunRow | None, row: RunRow) -> bool:
    """Whether a change deserves a line; a new step alone does not."""
    return before is None or (before.state, before.recoveries) != (row.state, row.recoveries)


__all__ = ["command"]
