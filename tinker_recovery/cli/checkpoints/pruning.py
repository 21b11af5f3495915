"""``tinker-recovery checkpoints prune``: delete checkpoints that no rule keeps."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.checkpoints.scope import (
    Scope,
    as_json_option,
    scope_of,
    scope_options,
    size_text,
)
from tinker_recovery.cli.common import plain_console

if TYPE_CHECKING:
    from tinker_recovery.cli.checkpoints.context import StoredLineage
    from tinker_recovery.retention.collector import Collector, Outlook


@click.command()
@scope_options
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
    "--keep-every", type=click.IntRange(1), help="Keep those at multiples of this many steps."
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
    *,
    everything: bool,
    delete_user_saves: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete checkpoints that no rule keeps, lineage by lineage.

    Never deleted, whatever the options: the newest valid checkpoint of a lineage, the one its last
    attempt started from, pinned and published ones, those that tinker_recovery did not save, those
    of a run that is being trained (its own Supervisor manages them), and, of a run that is not in
    this machine's journal, those less than a day old.

    Each deletion is recorded in the journal before it is requested; if interrupted, the next prune
    or the run's Supervisor finishes it.

    Exit status: 0; 1 if a deletion failed; 2 for a wrong option, or if --yes is needed; 3 if the
    service or the journal could not be read.
    """
    from pydantic import ValidationError

    from tinker_recovery.policy import CheckpointPolicy

    scope = scope_of(run, lineage, everything=everything, needed=True)
    try:
        policy = CheckpointPolicy.model_validate(
            {
                "keep_last": keep_last,
                "save_best": keep_best > 0,
                "keep_best": max(1, keep_best),
                "best_metric": best_metric,
                "best_mode": best_mode,
                "keep_every": keep_every,
                "delete_user_saves": delete_user_saves,
            }
        )
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"]) from error
    if not (dry_run or yes or sys.stdin.isatty()):
        raise click.UsageError("no terminal to confirm at: give --yes, or --dry-run")
    report = asyncio.run(_prune(scope, policy, dry_run=dry_run, ask=not yes, quiet=as_json))
    if as_json:
        click.echo(json.dumps(report))
    sys.exit(1 if report["failed"] else 0)


async def _prune(
    scope: Scope, policy: Any, *, dry_run: bool, ask: bool, quiet: bool
) -> dict[str, Any]:
    from tinker_recovery.cli.checkpoints.context import open_context
    from tinker_recovery.clock import SYSTEM_CLOCK
    from tinker_recovery.retention.collector import Collector
    from tinker_recovery.telemetry import EventSink

    async with open_context() as context:
        collector = Collector(
            reader=context.reader,
            notebook=context.notebook,
            policy=policy,
            events=EventSink(),
            clock=SYSTEM_CLOCK,
            keeps_alive=False,
        )
        lineages = await context.lineages(await context.listed(scope))
        looks = [(each, await collector.look(each)) for each in lineages if each.trained_by is None]
        busy = [each for each in lineages if each.trained_by is not None]
        if not quiet:
            _print_plans(looks, busy)
        being_deleted = [row for _, look in looks for row in look.plan.deletions]
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
                for row in being_deleted
            ],
            "kept": sum(len(look.plan.kept) for _, look in looks),
            "bytes_freed": 0,
            "left_alone": [
                {"lineage": each.lineage, "name": each.name, "trained_by": each.trained_by}
                for each in busy
            ],
        }
        if dry_run or not being_deleted:
            return report
        if ask and not click.confirm(f"Delete these {len(being_deleted)} checkpoints?", err=True):
            return report
        await _carry_out(collector, [each for each, _ in looks], len(being_deleted), report)
        return report


async def _carry_out(
    collector: Collector, lineages: Sequence[StoredLineage], total: int, report: dict[str, Any]
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    gone: dict[str, int | None] = {}
    failed: dict[str, str] = {}
    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("deleting", total=total)
        for lineage in lineages:
            done = await collector.tidy(
                lineage,
                lambda done: bar.update(task, completed=len({**gone, **done.deleted})),
            )
            gone.update(done.deleted)
            failed.update(done.failed)
    report["deleted"] = list(gone)
    report["failed"] = [{"path": path, "reason": reason} for path, reason in failed.items()]
    report["bytes_freed"] = sum(size or 0 for size in gone.values())
    console.print(
        f"{len(gone)} deleted, {size_text(report['bytes_freed'])} freed"
        + (f"; {len(failed)} could not be deleted, the next prune tries again" if failed else "")
    )


def _print_plans(
    looks: Sequence[tuple[StoredLineage, Outlook]], busy: Sequence[StoredLineage]
) -> None:
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    for lineage, look in looks:
        table = Table(box=None, header_style="bold", title_justify="left")
        table.title = f"run {lineage.name}"
        table.add_column("", no_wrap=True)
        table.add_column("step", no_wrap=True)
        table.add_column("size", no_wrap=True)
        table.add_column("path", overflow="fold")
        table.add_column("reason")
        for row in look.plan.rows:
            table.add_row(
                Text("delete", "red") if row.delete else Text("keep", "green"),
                "-" if row.step is None else str(row.step),
                size_text(row.size_bytes),
                row.path,
                row.reason,
            )
        console.print(table)
    for lineage in busy:
        console.print(
            f"run {lineage.name} is skipped: {lineage.trained_by} trains it and manages its "
            "checkpoints"
        )
    rows = [row for _, look in looks for row in look.plan.deletions]
    freed = sum(row.size_bytes or 0 for row in rows)
    console.print(f"\n{len(rows)} to delete, which frees {size_text(freed)}")
