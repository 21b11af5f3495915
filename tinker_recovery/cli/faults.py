"""``tinker-recovery faults``: the table of faults, printed from the code that judges by it."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
def command(*, as_json: bool) -> None:
    r"""Show every way a run can go bad, and what is done about it.

    \b
    recover   go back to a checkpoint, at once
    wait      back off first; spends no attempt, up to the policy's max_wait_s
    give_up   the error reaches your loop unchanged: trying again cannot help

    The first row that matches wins, except that your policy's retryable_errors come before all.
    Anything no row matches is your own and passes through untouched.

    Exit status: 0; 2 for a wrong option.
    """
    from rich.console import Console
    from rich.table import Table

    from tinker_recovery.faults import TABLE, SeenIn

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
        click.echo(json.dumps(rows))
        return
    table = Table(title="The table of faults", show_lines=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what is seen")
    table.add_column("why")
    colours = {"recover": "green", "wait": "yellow", "give_up": "red"}
    for row in TABLE:
        seen = row.seen_as
        if row.matches is not None and row.where != frozenset(SeenIn):
            seen += f"  [dim](from: {', '.join(sorted(row.where))})[/dim]"
        colour = colours[row.verdict.value]
        table.add_row(row.kind.value, f"[{colour}]{row.verdict.value}[/]", seen, row.reason)
    Console().print(table)
