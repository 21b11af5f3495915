"""The options that ``list``, ``verify`` and ``prune`` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from tinker_recovery.cli.common import complete_run, journal_option

_Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which checkpoints a command is about; with nothing set, all.

    Attributes:
        run: A Tinker run id, or the name of a run in the journal or at the service.
        lineage: A lineage id, or the beginning of one.
    """

    run: str | None = None
    lineage: str | None = None


def scope_options(command: _Command) -> _Command:
    """Add the options that choose checkpoints."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="All checkpoints of the account."),
        click.option("--lineage", help="Those of one run, by (the beginning of) its lineage id."),
        click.option(
            "--run",
            "--run-id",
            "run",
            shell_complete=complete_run,
            help="The same as RUN.",
        ),
        journal_option,
    ):
        command = option(command)
    return command


kind_option = click.option(
    "--kind",
    default="training",
    show_default=True,
    type=click.Choice(["training", "sampler"]),
    help="Training checkpoints, or sampler weights that a loop saved.",
)

as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on the last line."
)


run_argument = click.argument("named", metavar="[RUN]", required=False, shell_complete=complete_run)
"""The same as ``--run``, as the commands for one run take it."""


def scope_of(
    run: str | None,
    lineage: str | None,
    *,
    everything: bool,
    needed: bool,
    named: str | None = None,
) -> Scope:
    """The scope that the options choose, or ``named``, the argument RUN.

    Raises:
        click.UsageError: More than one is given, or none although one is needed.
    """
    given = [
        name
        for name, value in (
            ("RUN", named),
            ("--run", run),
            ("--lineage", lineage),
            ("--all", everything),
        )
        if value
    ]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} do not go together: give one")
    if needed and not given:
        raise click.UsageError("choose checkpoints with RUN, --lineage, or --all")
    return Scope(named or run, lineage)


def size_text(size: int | None) -> str:
    """A number of bytes with a unit."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:  # noqa: PLR2004 - what the units mean
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
