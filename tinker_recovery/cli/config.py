"""``tinker-recovery config``: the settings, and where each comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.common import echo, plain_console
from tinker_recovery.cli.records import Cell, Column, show_records

if TYPE_CHECKING:
    from tinker_recovery.policy_settings import Resolved


@click.group()
def command() -> None:
    """Look at the settings that policy_from_settings() reads."""


@command.command()
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The TOML file to read. Default: TINKER_RECOVERY_CONFIG, or the nearest pyproject.toml.",
)
@click.option(
    "--set",
    "given",
    metavar="NAME=VALUE",
    multiple=True,
    help="Try out a value, such as checkpoints.save_every=50. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(*, config: Path | None, given: tuple[str, ...], as_json: bool) -> None:
    r"""Show every setting, its value, and where that comes from.

    \b
    flag       --set checkpoints.save_every=50
    variable   TINKER_RECOVERY_CHECKPOINTS_SAVE_EVERY=50
    file       save_every = 50 in [tool.tinker_recovery.checkpoints] of the nearest pyproject.toml,
               or in [checkpoints] of the file that TINKER_RECOVERY_CONFIG or --config names
    default    none of these

    The first of these wins. "none" turns off a setting that allows it; a list is 10,20 or, in a
    file, [10, 20]. In a program, policy_from_settings() makes a policy of them, and its arguments
    come before all. Supervisor() without a policy takes it; RecoveryPolicy() reads none of them.

    Exit status: 0; 2 for a wrong option, an unknown setting, or a value that is not allowed.
    """
    from tinker_recovery.errors import UsageError
    from tinker_recovery.policy_settings import find_table, resolve

    try:
        table = find_table(os.environ, config=config)
        resolved = resolve(_flags(given), os.environ, table)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    path = None if table is None else table.path
    if as_json:
        echo(json.dumps({"file": path and str(path), "settings": _rows(resolved)}))
        return
    _show(resolved, path)


def _flags(given: tuple[str, ...]) -> dict[str, str]:
    flags = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise click.UsageError(f"--set {each!r} is not allowed: NAME=VALUE")
        flags[name.strip()] = value
    return flags


def _rows(resolved: Resolved) -> list[dict[str, Any]]:
    from tinker_recovery.policy_settings import SETTINGS

    return [
        {
            "name": name,
            "value": _plain(setting.value_in(resolved.policy)),
            "source": resolved.sources[name].kind,
            "where": resolved.sources[name].where,
            "variable": setting.variable,
        }
        for name, setting in SETTINGS.items()
    ]


def _show(resolved: Resolved, path: Path | None) -> None:
    records = []
    for row in _rows(resolved):
        source = resolved.sources[row["name"]]
        style = "dim" if source.kind == "default" else "bold"
        cells = (row["name"], _written(row["value"]), str(source))
        records.append([Cell(cell, style) for cell in cells])
    console = plain_console()
    columns = (Column("setting", 0), Column("value", 0), Column("from", 1))
    show_records(console, columns, records)
    console.print(f"\nfile: {path or 'none'}", soft_wrap=True)


def _plain(value: object) -> object:
    """A value as JSON has it."""
    from tinker_recovery.costs import table_to_json

    return table_to_json(value) if isinstance(value, Mapping) else value


def _written(value: object) -> str:
    """A value as a user would write it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(empty)"
    if isinstance(value, Mapping):
        return json.dumps(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)
