"""``tinker-recovery checkpoints list``: the training checkpoints at the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.checkpoints.scope import (
    Scope,
    as_json_option,
    kind_option,
    run_argument,
    scope_of,
    scope_options,
    size_text,
)
from tinker_recovery.cli.common import echo, plain_console
from tinker_recovery.cli.records import Cell, Column, Record, show_records
from tinker_recovery.report.words import iso, moment
from tinker_recovery.telemetry.text import counted

if TYPE_CHECKING:
    from tinker_recovery.checkpoints import Listed
    from tinker_recovery.journal import Notes


@click.command("list")
@run_argument
@scope_options
@click.option(
    "--limit", type=click.IntRange(0), default=0, help="At most so many; 0, the default, for all."
)
@kind_option
@as_json_option
def list_(
    run: str | None,
    lineage: str | None,
    journal: Path | None,
    *,
    named: str | None,
    kind: str,
    limit: int,
    everything: bool,
    as_json: bool,
) -> None:
    """List checkpoints, the newest first: those that training resumes from, or sampler weights.

    RUN is the name of a run or a Tinker run id; without it, all checkpoints of the account. In a
    terminal the last line is their number and total size. Piped, each is one line, with nothing
    left out.

    Exit status: 0; 1 if there is no such run; 2 for a wrong option; 3 if the service or the journal
    could not be read.
    """
    scope = scope_of(run, lineage, everything=everything, needed=False, named=named)
    if kind == "sampler":
        from tinker_recovery.cli.checkpoints.samplers import list_samplers

        list_samplers(scope, journal, limit=limit, as_json=as_json)
        return
    listed, notes = asyncio.run(_list(scope, journal))
    total = len(listed), sum(each.size_bytes or 0 for each in listed)
    listed = listed[:limit] if limit else listed
    if as_json:
        echo(json.dumps([_row(each, notes) for each in listed]))
        return
    _print_list(listed, notes, *total)


async def _list(scope: Scope, journal: Path | None) -> tuple[list[Listed], Notes]:
    from tinker_recovery.cli.checkpoints.context import open_context

    async with open_context(journal) as context:
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
        "run": record.run_name,
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


_COLUMNS = (
    Column("saved", 2),
    Column("step", 0, right=True),
    Column("metrics", 4, sparse=True),
    Column("size", 3, right=True),
    Column("run", 6, sparse=True),
    Column("lineage", 5),
    Column("path", 9),
    Column("notes", 7, sparse=True),
)


def _print_list(listed: Sequence[Listed], notes: Notes, count: int, size: int) -> None:
    console = plain_console()
    show_records(console, _COLUMNS, [_record(each, notes) for each in listed])
    if console.is_terminal:
        shown = "" if len(listed) == count else f", the newest {len(listed)} are shown"
        console.print(f"\n{counted(count, 'checkpoint')}, {size_text(size)}{shown}")


def _record(each: Listed, notes: Notes) -> Record:
    size = size_text(each.size_bytes)
    size_cell = Cell(size, plain=None if each.size_bytes is None else str(each.size_bytes))
    if (record := each.record) is None:
        return ("-", "-", "-", size_cell, "-", "-", each.path, Cell(each.problem or "", "red"))
    bad = "red" if each.path in notes.bad else ""
    return (
        Cell(moment(record.time.timestamp()), plain=iso(record.time.timestamp())),
        str(record.step),
        ", ".join(f"{name} {value:.4g}" for name, value in record.metrics.items()) or "-",
        size_cell,
        record.run_name or "-",
        Cell(record.lineage[:8], plain=record.lineage),
        each.path,
        Cell("; ".join(_remarks(each, notes)), bad),
    )


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
            remarks.append(f"expires {iso(record.expires_at.timestamp())}")
    return remarks
