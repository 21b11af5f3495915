"""``jobs list``, ``show``, ``cancel`` and ``retry``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import echo, indented, plain_console, refuse, refuse_because
from tinker_recovery.cli.records import Cell, Column, show_records

if TYPE_CHECKING:
    from tinker_recovery.jobs.database import JobDatabase
    from tinker_recovery.jobs.records import JobStatus

NO_SUCH_JOB = 1

database_option = click.option(
    "--database",
    metavar="URL",
    help="postgresql://USER@HOST/DATABASE, or the path of a file. Default: "
    "TINKER_RECOVERY_DATABASE, or jobs.sqlite3 beside the journal.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def opened(database: str | None) -> Iterator[JobDatabase]:
    """The database of jobs; exits if it cannot be used, or there is no such job."""
    from tinker_recovery.errors import JournalError, UsageError
    from tinker_recovery.jobs.database import JobDatabase, database_url
    from tinker_recovery.jobs.reach import named_outage

    try:
        url = database_url(database)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    try:
        jobs = JobDatabase(url, create=False)
    except (JournalError, UsageError) as error:
        refuse_because(error)
    with contextlib.closing(jobs):
        try:
            with named_outage(url):
                yield jobs
        except UsageError as error:
            refuse(str(error), NO_SUCH_JOB)
        except JournalError as error:
            refuse_because(error)


@click.command("list")
@click.option(
    "--state",
    type=click.Choice(["queued", "running", "finished", "failed", "cancelled"]),
    help="Only jobs in this state.",
)
@database_option
@json_option
def list_(*, state: str | None, database: str | None, as_json: bool) -> None:
    """List jobs, the newest first.

    "try" is the current or last one, of how many. "step" is where the newest attempt at the loop
    began, or where the job ended; `tinker-recovery runs` has the steps of this machine's runs.
    """
    from tinker_recovery.report.words import age, iso

    with opened(database) as jobs:
        found = jobs.statuses(state)  # type: ignore[arg-type]  # click has checked it
    if as_json:
        echo(json.dumps([as_dict(each) for each in found]))
        return
    records = [
        (
            job.name,
            job.state,
            f"{job.number}/{job.max_attempts}",
            str(job.step),
            job.base_model or "-",
            job.worker or "-",
            Cell(f"{age(time.time() - job.updated)} ago", plain=iso(job.updated)),
        )
        for job in found
    ]
    show_records(plain_console(), _COLUMNS, records)


_COLUMNS = (
    Column("job", 0),
    Column("state", 0),
    Column("try", 0),
    Column("step", 1, right=True),
    Column("model", 4),
    Column("worker", 3),
    Column("last written", 2),
)


@click.command()
@click.argument("job")
@database_option
@json_option
def show(*, job: str, database: str | None, as_json: bool) -> None:
    """Show one job: its state, its lineage, what happened to it, and its result."""
    from tinker_recovery.jobs.records import JobResult
    from tinker_recovery.report.words import moment

    with opened(database) as jobs:
        status, spec = jobs.status(job), jobs.spec(job)
        events, result = jobs.events(job, 0), jobs.result(job)
    result = result if isinstance(result, JobResult) else None
    if as_json:
        shown = as_dict(status) | {
            "args": spec.args,
            "start": spec.start,
            "retry": spec.retry.model_dump(mode="json"),
            "result": None if result is None else result.model_dump(mode="json"),
            "events": [each.model_dump(mode="json") for each in events],
        }
        echo(json.dumps(shown))
        return
    _say(status)
    for key, value in (
        ("train", spec.train),
        ("args", json.dumps(spec.args)),
        ("start", json.dumps(spec.start)),
        ("lineage", status.lineage or "-"),
        ("Tinker runs", ", ".join(status.run_ids) or "-"),
        ("checkpoint", status.checkpoint or "-"),
        ("recoveries", str(status.recoveries)),
    ):
        echo(f"  {key}: {indented(value)}")
    if result is not None:
        kept = json.dumps(result.value) if result.value_kept else "not kept: it was no JSON"
        echo(f"  value: {indented(kept)}")
    for event in events:
        echo(f"  {moment(event.at)}  {event.event}  {indented(event.message)}")


@click.command()
@click.argument("job")
@database_option
@json_option
def cancel(*, job: str, database: str | None, as_json: bool) -> None:
    """Have a job end, if it has not ended. Its worker notices within a second or two.

    Its checkpoints stay, and `jobs retry` goes on from them.
    """
    with opened(database) as jobs:
        _print(jobs.cancel(job), as_json=as_json)


@click.command()
@click.argument("job")
@database_option
@json_option
def retry(*, job: str, database: str | None, as_json: bool) -> None:
    """Have a job that failed or was cancelled tried anew, from its newest checkpoint.

    It has as many tries as at first, and waits for a worker in the queue.
    """
    with opened(database) as jobs:
        _print(jobs.retry(job), as_json=as_json)


def as_dict(status: JobStatus) -> dict[str, object]:
    """A job's status, for JSON."""
    return status.model_dump(mode="json", by_alias=True)


def _print(status: JobStatus, *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(as_dict(status)))
    else:
        _say(status)


def _say(status: JobStatus) -> None:
    tried = f"try {status.number} of {status.max_attempts}" if status.number else "not tried yet"
    said = f"job {status.name}: {status.state}, {tried}, at step {status.step}"
    why = "" if status.failure is None else f": {status.failure}"
    echo(said + indented(why))
