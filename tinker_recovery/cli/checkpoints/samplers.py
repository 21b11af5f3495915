"""``checkpoints list`` and ``prune`` of sampler weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.checkpoints.scope import Scope, size_text
from tinker_recovery.cli.common import echo, plain_console
from tinker_recovery.cli.records import Cell, Column, Record, show_records
from tinker_recovery.report.words import iso, moment
from tinker_recovery.telemetry.text import as_text

if TYPE_CHECKING:
    from tinker_recovery.checkpoints import Listed
    from tinker_recovery.checkpoints.deletion_plan import DeletionPlan
    from tinker_recovery.cli.checkpoints.context import Context
    from tinker_recovery.journal.holder import Holder


_DELETE_S = 20.0
"""How long one deletion may take, retries included."""


def list_samplers(scope: Scope, journal: Path | None, *, limit: int, as_json: bool) -> None:
    """Print the sampler weights in a scope."""
    found, pinned = asyncio.run(_list(scope, journal))
    if as_json:
        rows = [
            {
                "path": each.path,
                "run": run,
                "time": each.stored_at.isoformat() if each.stored_at else None,
                "expires_at": each.expires_at.isoformat() if each.expires_at else None,
                "size_bytes": each.size_bytes,
                "public": bool(each.source and each.source.public),
                "pinned": pinned.get(each.path),
            }
            for run, listed in found.items()
            for each in listed
        ]
        echo(json.dumps(rows[:limit] if limit else rows))
        return
    every = [(run, each) for run, listed in found.items() for each in listed]
    console = plain_console()
    shown = every[:limit] if limit else every
    show_records(console, _COLUMNS, [_record(run, each, pinned) for run, each in shown])
    if console.is_terminal:
        total = sum(each.size_bytes or 0 for _, each in every)
        console.print(f"\n{len(every)} sampler weights, {size_text(total)}")


_COLUMNS = (
    Column("saved", 0),
    Column("size", 1, right=True),
    Column("run", 2),
    Column("path", 9),
    Column("notes", 3, sparse=True),
)


def _record(run: str, each: Listed, pinned: Mapping[str, str]) -> Record:
    notes = ["pinned"] if each.path in pinned else []
    notes += ["published"] if each.source and each.source.public else []
    stored, ends = each.stored_at, each.expires_at
    notes += [f"expires {iso(ends.timestamp())}"] if ends else []
    size = None if each.size_bytes is None else str(each.size_bytes)
    return (
        Cell(moment(stored.timestamp()), plain=iso(stored.timestamp())) if stored else "?",
        Cell(size_text(each.size_bytes), plain=size),
        run,
        each.path,
        "; ".join(notes),
    )


async def _list(
    scope: Scope, journal: Path | None
) -> tuple[dict[str, list[Listed]], Mapping[str, str]]:
    from tinker_recovery.cli.checkpoints.context import open_context

    async with open_context(journal) as context:
        notes = await context.collaborators.notebook.notes()
        return await context.samplers(scope), notes.pinned


def prune_samplers(
    scope: Scope,
    keep_last: int,
    journal: Path | None,
    *,
    dry_run: bool,
    ask: bool,
    as_json: bool,
) -> int:
    """Delete the sampler weights that nothing keeps; the exit status."""
    report = asyncio.run(_prune(scope, keep_last, journal, dry_run=dry_run, ask=ask, quiet=as_json))
    if as_json:
        echo(json.dumps(report))
    else:
        for each in report["left_since"]:
            echo(f"{as_text(each['path'])} is left as it is: {as_text(each['reason'])}")
        for each in report["failed"]:
            echo(f"{as_text(each['path'])} could not be deleted: {as_text(each['reason'])}")
    return 1 if report["failed"] else 0


async def _prune(
    scope: Scope, keep_last: int, journal: Path | None, *, dry_run: bool, ask: bool, quiet: bool
) -> dict[str, Any]:
    from tinker_recovery.cli.checkpoints.context import open_context

    async with open_context(journal) as context:
        found = await context.samplers(scope)
        busy = await context.busy_runs(found)
        plans = {
            run: await _plan(context, listed, keep_last)
            for run, listed in found.items()
            if run not in busy
        }
        if not quiet:
            _print(plans, busy, found)
        to_delete = [row for plan in plans.values() for row in plan.deletions]
        report: dict[str, Any] = {
            "dry_run": dry_run,
            "to_delete": [
                {"path": row.path, "size_bytes": row.size_bytes, "reason": row.reason}
                for row in to_delete
            ],
            "kept": sum(len(plan.kept) for plan in plans.values()),
            "deleted": [],
            "failed": [],
            "left_alone": [run for run in found if run in busy],
            "left_since": [],
        }
        if dry_run or not to_delete:
            return report
        question = f"Delete these {len(to_delete)} sampler weights?"
        if not ask or click.confirm(question, err=True):
            for run, plan in plans.items():
                await _carry_out(context, run, plan, report, keep_last)
        return report


async def _carry_out(
    context: Context, run: str, plan: DeletionPlan, report: dict[str, Any], keep_last: int
) -> None:
    """Delete one after the other; nothing relies on them, so an intent need not be written."""
    from tinker_recovery.service.checkpoint_calls import CheckpointCalls

    calls = CheckpointCalls(context.collaborators.reader.http)
    for row in plan.deletions:
        if (kept := await _kept_since(context, run, plan, row.path, keep_last)) is not None:
            report["left_since"].append({"path": row.path, "reason": kept})
            continue
        why = await calls.remove(row.path, deadline_s=_DELETE_S)
        if why is None:
            report["deleted"].append(row.path)
        else:
            report["failed"].append({"path": row.path, "reason": why})


async def _kept_since(
    context: Context, run: str, plan: DeletionPlan, path: str, keep_last: int
) -> str | None:
    """Why something is not to be deleted now that was to be when the plan was made; or None.

    Whoever was asked may have taken an hour to answer. So all of it is planned again.
    """
    from tinker_recovery.checkpoints import Listed
    from tinker_recovery.checkpoints.sampler_plan import run_id_of_any

    if await context.busy_runs([run]):
        return "a process trains it"
    listed = [
        Listed.read(each)
        for run_id in sorted({run_id_of_any(row.path) for row in plan.checkpoints})
        for each in await context.collaborators.reader.checkpoints(run_id)
        if each.checkpoint_type == "sampler"
    ]
    now = await _plan(context, listed, keep_last)
    kept = {row.path: row.reason for row in now.checkpoints if not row.delete}
    return kept.get(path)


async def _plan(context: Context, listed: Sequence[Listed], keep_last: int) -> DeletionPlan:
    """What is to be done with the sampler weights of one run, as things are now."""
    from tinker_recovery.checkpoints.sampler_plan import plan_sampler_deletions
    from tinker_recovery.cli.checkpoints.context import MIN_AGE
    from tinker_recovery.journal.publication import kept_for_export

    having = context.collaborators
    notes = await having.notebook.notes()
    return plan_sampler_deletions(
        listed,
        keep_last=keep_last,
        pinned=notes.pinned,
        exported=kept_for_export(notes.publications),
        known=await context.known_run_ids(),
        now=having.reader.service_date(),
        least_age=MIN_AGE,
    )


_PLAN = (
    Column("run", 4, once=True),
    Column("plan", 0),
    Column("size", 2, right=True),
    Column("path", 9),
    Column("reason", 3),
)


def _print(
    plans: Mapping[str, DeletionPlan],
    busy: Mapping[str, Holder],
    found: Mapping[str, Sequence[Listed]],
) -> None:
    console = plain_console()
    records: list[Record] = [
        (
            run,
            Cell("delete", "red") if row.delete else Cell("keep", "green"),
            size_text(row.size_bytes),
            row.path,
            row.reason,
        )
        for run, plan in plans.items()
        for row in plan.checkpoints
    ]
    show_records(console, _PLAN, records)
    for run in found:
        if run in busy:
            console.print(f"run {as_text(run)} is skipped: a process trains it", soft_wrap=True)
    rows = [row for plan in plans.values() for row in plan.deletions]
    freed = sum(row.size_bytes or 0 for row in rows)
    console.print(f"\n{len(rows)} to delete, which frees {size_text(freed)}")
