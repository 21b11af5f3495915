"""``tinker-recovery serve``: the local Tinker server in the foreground."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import check_local_server, echo
from tinker_recovery.cli.inject import fault_of, in_words

if TYPE_CHECKING:
    from tinker_recovery.testing import FiredFault


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=0,
    show_default="a free one",
    type=click.IntRange(0, 65535),
    help="Port to listen on.",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    show_default="a temporary folder",
    help="Folder for runs and checkpoints, which survive a restart on it.",
)
@click.option(
    "--api-key", default="tml-local-key", show_default=True, help="The key clients have to send."
)
@click.option(
    "--cold-optimizer",
    is_flag=True,
    help="Let every restore silently leave the optimizer cold.",
)
@click.option(
    "--dialect",
    default="hosted",
    show_default=True,
    help="Which kind of service to be: hosted, forgets_metadata, refuses_metadata, rolls_back, "
    "ignores_seed, noisy, bare, strict, server_category (tinker_recovery.testing.DIALECTS).",
)
@click.option(
    "--heartbeat-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="SECONDS",
    show_default="no limit",
    help="End sessions whose heartbeats stop for this long, and answer them 410 from then on.",
)
@click.option(
    "--pace",
    type=click.FloatRange(0, 60),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each step takes; more is more like a real service, and gives time to watch.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT",
    help="What is to strike, such as poison@70 or gone:forward_backward@12; repeatable. "
    "ACTION[:REQUEST][@STEP][,FIELD=VALUE], as for `tinker-recovery inject`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def command(  # noqa: PLR0913 - one for each option
    host: str,
    port: int,
    root: Path | None,
    api_key: str,
    *,
    cold_optimizer: bool,
    dialect: str,
    heartbeat_limit: float | None,
    pace: float,
    faults: tuple[str, ...],
    as_json: bool,
) -> None:
    r"""Run a local Tinker server until Ctrl-C.

    It speaks the Tinker API to the unmodified SDK, with one small real model behind every name of
    a base model. It prints a line when a fault strikes. To use it, set the two variables that it
    prints:

    \b
        export TINKER_BASE_URL=http://127.0.0.1:PORT TINKER_API_KEY=tml-local-key

    With --json the first line is {"environment": {...}, "faults": [...]}, once the server is ready,
    and each further one is {"fired": {...}}, a fault that has struck.

    To see a recovery, have it fail at some step, or inject a fault while a loop trains:

    \b
        tinker-recovery serve --port 8010 --fault poison@70
        tinker-recovery inject http://127.0.0.1:8010 poison

    Exit status: 0 after Ctrl-C or SIGTERM; 1 if the port is taken; 2 for a wrong option, or if what
    it needs is not installed.
    """
    check_local_server()
    from tinker_recovery.testing import DIALECTS, serve

    if dialect not in DIALECTS:
        raise click.BadParameter(
            f"{dialect!r} is not one of {', '.join(DIALECTS)}", param_hint="--dialect"
        )

    rules = [fault_of(each, "--fault") for each in faults]

    to_come = "".join(f"{in_words(each)}\n" for each in rules)

    def ready(base_url: str) -> None:
        if as_json:
            environment = {"TINKER_BASE_URL": base_url, "TINKER_API_KEY": api_key}
            echo(
                json.dumps({"environment": environment, "faults": [asdict(each) for each in rules]})
            )
            return
        echo(
            f"Tinker server ready. In the shell of your training loop:\n\n"
            f"  export TINKER_BASE_URL={base_url} TINKER_API_KEY={api_key}\n\n"
            f"{to_come}Ctrl-C stops it."
        )

    def struck(fault: FiredFault) -> None:
        with contextlib.suppress(OSError):  # a closed pipe is no fault of the service's
            echo(json.dumps({"fired": asdict(fault)}) if as_json else in_a_line(fault))

    def in_a_line(fault: FiredFault) -> str:
        named = f"{fault.name}, " if fault.name else ""
        where = f" at step {fault.step} of {named}{fault.run}" if fault.run else ""
        return f"{time.strftime('%H:%M:%S')} {fault.rule.action} strikes {fault.request}{where}"

    try:
        serve(
            root=root,
            host=host,
            port=port,
            ready=ready,
            faults=rules,
            struck=struck,
            api_key=api_key,
            cold_optimizer=cold_optimizer,
            dialect=dialect,
            heartbeat_limit_s=heartbeat_limit,
            step_s=pace,
        )
    except OSError as error:
        if error.filename is not None:  # a file's, and no address's
            raise click.BadParameter(
                f"{error.filename} cannot be used ({error.strerror}): choose another folder",
                param_hint="--root",
            ) from error
        raise click.ClickException(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port"
        ) from error
