"""``tinker-recovery checkpoints prune``: delete checkpoints that no rule keeps."""

from __future__ import annotations

import asyncio
import json
import sys
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
from tinker_recovery.telemetry.text import as_text, counted

if TYPE_CHECKING:
    from tinker_recovery.cli.checkpoints.context import Context
    from tinker_recovery.journal.holder import Holder
    from tinker_recovery.recovery.resume import RunSnapshot
    from tinker_recovery.retention.collector import CollectionPlan, Collector


@click.command()
@run_argument
@scope_options
@kind_option
@click.option(
    "--keep-last",
    default=5,
    show_default=True,
    type=click.IntRange(0),
    help="Keep this many of the newest.",
)
@click.option(
    "--keep-best",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Keep this many of the best.",
)
@click.option(
    "--best-metric", default="loss", show_default=True, help="The metric for --keep-best."
)
@click.option(
    "--best-mode",
    default="min",
    show_default=True,
    type=click.Choice(["min", "max"]),
    help="Whether a smaller or a larger metric is better.",
)
@click.option(
    "--keep-every",
    type=click.IntRange(1),
    help="Keep the first at or after each multiple of this many steps.",
)
@click.option(
    "--delete-user-saves", is_flag=True, help="Also delete those the loop saved with save_state."
)
@click.option("--dry-run", is_flag=True, help="Show the plan and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
@as_json_option
def prune(  # noqa: PLR0913 - its options
    run: str | None,
    lineage: str | None,
    keep_last: int,
    keep_best: int,
    best_metric: str,
    best_mode: str,
    keep_every: int | None,
    journal: Path | None,
    *,
    named: str | None,
    kind: str,
    everything: bool,
    delete_user_saves: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete checkpoints that no rule keeps, lineage by lineage.

    RUN is the name of a run or a Tinker run id, which stands for the whole lineage.

    Never deleted, whatever the options: the newest valid checkpoint of a lineage, the one its last
    attempt started from, pinned and published ones, those that tinker_recovery did not save, those
    of a run that is being trained (its own Supervisor manages them), and, of a run that is not in
    this machine's journal or was trained on with another, those less than a day old.

    Sampler weights (--kind sampler) say nothing of themselves: the newest --keep-last of each run
    stay, by date, and at least one, with the same protections.

    Each deletion is recorded in the journal before it is requested; if interrupted, the next prune
    or the run's Supervisor finishes it.

    Exit status: 0; 1 if a deletion failed or there is no such run; 2 for a wrong option, or if
    --yes is needed; 3 if the service or the journal could not be read.
    """
    from pydantic import ValidationError

    from tinker_recovery.checkpoint_policy import CheckpointPolicy

    scope = scope_of(run, lineage, everything=everything, needed=True, named=named)
    if not (dry_run or yes or sys.stdin.isatty()):
        raise click.UsageError("no terminal to confirm at: give --yes, or --dry-run")
    if kind == "sampler":
        from tinker_recovery.cli.checkpoints.samplers import prune_samplers

        asked = {"dry_run": dry_run, "ask": not yes, "as_json": as_json}
        sys.exit(prune_samplers(scope, keep_last, journal, **asked))
    try:
        policy = CheckpointPolicy.model_validate(
            {
                "keep_last": keep_last,
                **({"keep_best": keep_best} if keep_best else {"save_best": False}),
                "best_metric": best_metric,
                "best_mode": best_mode,
                "keep_every": keep_every,
                "delete_user_saves": delete_user_saves,
            }
        )
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"]) from error
    report = asyncio.run(
        _prune(scope, policy, journal, dry_run=dry_run, ask=not yes, quiet=as_json)
    )
    if as_json:
        echo(json.dumps(report))
    sys.exit(1 if report["failed"] else 0)


async def _prune(
    scope: Scope, policy: Any, journal: Path | None, *, dry_run: bool, ask: bool, quiet: bool
) -> dict[str, Any]:
    from tinker_recovery.cli.checkpoints.context import open_context
    from tinker_recovery.retention.collector import Collector

    async with open_context(journal, checkpoints=policy) as context:
        collector = Collector(context.collaborators, keeps_alive=False)
        runs = await context.lineages(await context.listed(scope, whole_lineages=True))
        looks = [(run, await collector.look(run)) for run in runs if run.holder is None]
        busy = [(run, run.holder) for run in runs if run.holder is not None]
        if not quiet:
            _print_plans(looks, busy)
        to_delete = [row for _, look in looks for row in look.plan.deletions]
        report: dict[str, Any] = {
            "dry_run": dry_run,
            "deleted": [],
            "failed": [],
            "to_delete": [
                {
                    "path": row.path,
                    "step": row.step,
                    "size_bytes": row.size_bytes,
                    "reason": row.reason,
                }
                for row in to_delete
            ],
            "kept": sum(len(look.plan.kept) for _, look in looks),
            "bytes_freed": 0,
            "left_alone": [
                {"lineage": run.lineage, "name": run.name, "trained_by": _process(holder)}
                for run, holder in busy
            ],
        }
        if dry_run or not to_delete:
            return report
        these = "this" if len(to_delete) == 1 else "these"
        question = f"Delete {these} {counted(len(to_delete), 'checkpoint')}?"
        if ask and not click.confirm(question, err=True):
            return report
        await _carry_out(context, collector, [run for run, _ in looks], len(to_delete), report)
        return report


async def _carry_out(
    context: Context,
    collector: Collector,
    runs: Sequence[RunSnapshot],
    total: int,
    report: dict[str, Any],
) -> None:
    from rich.progress import Progress

    from tinker_recovery.errors import LeaseLost

    gone: dict[str, int | None] = {}
    failed: dict[str, str] = {}
    console = plain_console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("deleting", total=total)
        for run in runs:
            # Whoever was asked may have taken an hour to answer.
            if (holder := await context.claimed_by(run.name)) is not None:
                failed[run.name] = f"{_process(holder)} has begun to train it"
                continue
            try:
                done = await collector.collect(
                    run,
                    lambda done: bar.update(task, completed=len({**gone, **done.deleted})),
                )
            except LeaseLost as error:
                # A process has begun to train it since it was looked at, and manages it from now.
                failed[run.name] = str(error)
                continue
            gone.update(done.deleted)
            failed.update(done.failed)
    report["deleted"] = list(gone)
    report["failed"] = [{"path": path, "reason": reason} for path, reason in failed.items()]
    report["bytes_freed"] = sum(size or 0 for size in gone.values())
    console.print(
        f"{len(gone)} deleted, {size_text(report['bytes_freed'])} freed"
        + (f"; {len(failed)} could not be deleted, the next prune tries again" if failed else "")
    )


_COLUMNS = (
    Column("run", 4),
    Column("plan", 0),
    Column("step", 0, right=True),
    Column("size", 2, right=True),
    Column("path", 9),
    Column("reason", 3),
)


def _process(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}"


def _print_plans(
    looks: Sequence[tuple[RunSnapshot, CollectionPlan]], busy: Sequence[tuple[RunSnapshot, Holder]]
) -> None:
    console = plain_console()
    records: dict[str, list[Record]] = {
        run.name: [
            (
                run.name,
                Cell("delete", "red") if row.delete else Cell("keep", "green"),
                "-" if row.step is None else str(row.step),
                size_text(row.size_bytes),
                row.path,
                row.reason,
            )
            for row in look.plan.checkpoints
        ]
        for run, look in looks
    }
    if console.is_terminal:
        for name, of_run in records.items():
            console.print(f"run {as_text(name)}", style="bold", soft_wrap=True)
            show_records(console, _COLUMNS[1:], [each[1:] for each in of_run])
    else:
        show_records(console, _COLUMNS, [each for of_run in records.values() for each in of_run])
    for run, holder in busy:
        console.print(
            f"run {as_text(run.name)} is skipped: {_process(holder)} trains it and manages its "
            "checkpoints",
            soft_wrap=True,
        )
    rows = [row for _, look in looks for row in look.plan.deletions]
    freed = sum(row.size_bytes or 0 for row in rows)
    console.print(f"\n{len(rows)} to delete, which frees {size_text(freed)}")
