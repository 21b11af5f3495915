"""``tinker-recovery faults``: the table of faults, printed from the code that uses it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import WithoutRun, echo, plain_console
from tinker_recovery.cli.records import Column, show_records

if TYPE_CHECKING:
    from tinker_recovery.faults import VerdictRule


@click.command(cls=WithoutRun)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
def command(*, as_json: bool) -> None:
    r"""Show every fault that a run can meet, and what is done about each.

    It is the same table for all runs: those that one run has met are in `tinker-recovery show RUN`.

    \b
    recover   go back to a checkpoint at once
    wait      back off first, for up to the policy's max_wait_s; costs no recovery attempt
    give_up   the error reaches your loop unchanged, because trying again cannot help

    The policy's retryable_errors are checked first; after that, the first row that matches applies.
    An error that no row matches is your own code's and reaches your loop unchanged.

    Exit status: 0; 2 for a wrong option.
    """
    from rich.table import Table
    from rich.text import Text

    from tinker_recovery.faults import TABLE

    if as_json:
        rows = [
            {
                "kind": row.kind.value,
                "verdict": row.verdict.value,
                "seen_as": row.seen_as,
                "reason": row.reason,
                "where": sorted(row.where) if row.matches is not None else [],
            }
            for row in TABLE
        ]
        echo(json.dumps(rows))
        return
    console = plain_console()
    if not console.is_terminal:
        columns = [Column(each) for each in ("kind", "verdict", "seen as", "reason")]
        records = [(row.kind.value, row.verdict.value, _seen_as(row), row.reason) for row in TABLE]
        show_records(console, columns, records)
        return
    table = Table(title="Faults", show_lines=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("seen as")
    table.add_column("reason")
    colours = {"recover": "green", "wait": "yellow", "give_up": "red"}
    for row in TABLE:
        verdict = Text(row.verdict.value, colours[row.verdict.value])
        table.add_row(row.kind.value, verdict, _seen_as(row), row.reason)
    console.print(table)


def _seen_as(row: VerdictRule) -> str:
    from tinker_recovery.faults import SeenIn

    if row.matches is not None and row.where != frozenset(SeenIn):
        return f"{row.seen_as}  (from: {', '.join(sorted(row.where))})"
    return row.seen_as
