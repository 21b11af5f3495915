"""``jobs work``: a worker, until it is stopped."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from tinker_recovery.cli.common import echo, refuse, refuse_because
from tinker_recovery.cli.jobs.looking import database_option

if TYPE_CHECKING:
    from tinker_recovery.telemetry.record import RecoveryEvent

INTERRUPTED = 130
LOST = 4


@click.command()
@click.argument("modules", metavar="MODULE", nargs=-1, required=True)
@database_option
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="The most jobs at once in each worker. This and the next two are kept in the database: "
    "the worker that starts last sets them for all.",
)
@click.option(
    "--per-model",
    type=click.IntRange(1),
    help="The most jobs at once on one base model, over all workers. Default: no limit.",
)
@click.option(
    "--starts-per-s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="The most jobs begun in a second, over all workers.",
)
@click.option(
    "--version",
    default="1",
    show_default=True,
    help="Take jobs that were submitted with this version alone.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print each event of the jobs' runs as JSON, one object a line, as `tinker-recovery watch "
    "--events` reads it. The log stays on standard error.",
)
def work(
    *,
    modules: tuple[str, ...],
    database: str | None,
    concurrency: int,
    per_model: int | None,
    starts_per_s: float,
    version: str,
    as_json: bool,
) -> None:
    r"""Carry out jobs until stopped, with what MODULE defines.

    \b
        tinker-recovery jobs work my.module --concurrency 500 --database postgresql://me@db/jobs

    Jobs of workers that are gone are taken over: a killed worker's on the same machine at once, and
    from another machine when the service ends its claim, some time after its last heartbeat.

    SIGTERM and Ctrl-C let each job save its last step, and queue it again: another worker goes on
    with it. The policy is that of the environment and of tinker-recovery.toml (`tinker-recovery
    config show`).

    \b
    Exit status: 143 after SIGTERM, 130 after Ctrl-C; 2 for a wrong option, or a MODULE that cannot
    be imported; 3 if the database, the journal or the service cannot be used; 4 if the service has
    ended this worker's claim, since it was paused or cut off: start it again.
    """
    from tinker_recovery.errors import JournalError, LeaseLost, ServiceUnusable, UsageError

    sys.path.insert(0, "")  # as for `python -m`: what is in this folder can be imported
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise click.UsageError(f"MODULE {module!r} cannot be imported: {error}") from error
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("tinker_recovery").setLevel(logging.INFO)
    import asyncio

    from tinker_recovery.jobs import Jobs

    async def run() -> NoReturn:
        async with Jobs(
            database,
            concurrency=concurrency,
            per_model=per_model,
            starts_per_s=starts_per_s,
            version=version,
            on_event=_print_event if as_json else None,
        ) as jobs:
            logging.getLogger("tinker_recovery").info("working on %r", jobs)
            await asyncio.Future()
        raise AssertionError("nothing ends it but a signal")

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except LeaseLost as error:
        refuse(str(error), LOST)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except ServiceUnusable as error:
        refuse_because(error)
    except JournalError as error:
        refuse_because(error)


def _print_event(event: RecoveryEvent) -> None:
    from tinker_recovery.telemetry.record import json_line

    with contextlib.suppress(OSError):  # whoever read it is gone, and the jobs go on
        echo(json_line(event))
