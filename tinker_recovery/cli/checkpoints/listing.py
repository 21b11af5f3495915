"""``tinker-recovery checkpoints list``: the training checkpoints at the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.checkpoints.scope import (
    Scope,
    as_json_option,
    kind_option,
    scope_of,
    scope_options,
    size_text,
)
from tinker_recovery.cli.common import echo, plain_console
from tinker_recovery.telemetry.text import as_text

if TYPE_CHECKING:
    from tinker_recovery.checkpoints import Listed
    from tinker_recovery.journal import Notes


@click.command("list")
@scope_options
@kind_option
@as_json_option
def list_(
    run: str | None, lineage: str | None, kind: str, *, everything: bool, as_json: bool
) -> None:
    """List checkpoints, the newest first: those that training resumes from, or sampler weights.

    Without an option, all checkpoints of the account. The last line is their number and total size.
    """
    scope = scope_of(run, lineage, everything=everything, needed=False)
    if kind == "sampler":
        from tinker_recovery.cli.checkpoints.samplers import list_samplers

        list_samplers(scope, as_json=as_json)
        return
    listed, notes = asyncio.run(_list(scope))
    if as_json:
        echo(json.dumps([_row(each, notes) for each in listed]))
        return
    _print_list(listed, notes)


async def _list(scope: Scope) -> tuple[list[Listed], Notes]:
    from tinker_recovery.cli.checkpoints.context import open_context

    async with open_context() as context:
        return await context.listed(scope), await context.collaborators.notebook.notes()


def _row(each: Listed, notes: Notes) -> dict[str, Any]:
    record = each.record
    row: dict[str, Any] = {
        "path": each.path,
        "size_bytes": each.size_bytes,
        "pinned": notes.pinned.get(each.path),
        "bad": notes.bad.get(each.path),
        "problem": each.problem,
    }
    if record is None:
        return {**row, "step": None}
    return {
        **row,
        "step": record.step,
        "lineage": record.lineage,
        "attempt": record.attempt,
        "parent": record.parent,
        "saved_by": record.saved_by,
        "time": record.time.isoformat(),
        "expires_at": record.expires_at.isoformat() if record.expires_at else None,
        "public": record.public,
        "epoch": record.epoch,
        "metrics": {name: repr(value) for name, value in record.metrics.items()},
    }


def _print_list(listed: Sequence[Listed], notes: Notes) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    table.add_column("saved", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("metrics")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("lineage", no_wrap=True)
    table.add_column("path", overflow="fold")
    table.add_column("notes")
    for each in listed:
        record = each.record
        if record is None:
            blank = ("", "-", "", size_text(each.size_bytes), "-", each.path)
            table.add_row(*blank, each.problem or "")
            continue
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in record.metrics.items())
        table.add_row(
            f"{record.time:%Y-%m-%d %H:%M}",
            str(record.step),
            metrics,
            size_text(each.size_bytes),
            record.lineage[:8],
            each.path,
            Text(
                as_text("; ".join(_remarks(each, notes))), "red" if each.path in notes.bad else ""
            ),
        )
    console = plain_console()
    console.print(table)
    total = sum(each.size_bytes or 0 for each in listed)
    console.print(f"\n{len(listed)} checkpoints, {size_text(total)}")


def _remarks(each: Listed, notes: Notes) -> list[str]:
    record = each.record
    remarks = []
    if each.path in notes.pinned:
        remarks.append("pinned")
    if each.path in notes.bad:
        remarks.append(f"bad: {notes.bad[each.path]}")
    if record is not None:
        if record.public:
            remarks.append("published")
        if record.saved_by == "user":
            remarks.append("saved by the loop")
        if record.expires_at is not None:
            remarks.append(f"expires {record.expires_at:%Y-%m-%d %H:%M}")
    return remarks
