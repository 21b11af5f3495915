"""``tinker-recovery cookbook``: run a recipe of the tinker-cookbook, unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tinker_recovery.cli.common import echo, refuse, refuse_because

USAGE, FAILED = 2, 1
"""Exit statuses."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--name", help="The run's name. Default: one made, and kept in the log folder.")
@click.option("--seed", type=int, help="Of the LoRA weights. Default: one drawn, and kept.")
@click.option(
    "--journal",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The journal, or its folder. Default: TINKER_RECOVERY_STATE_DIR, or your state folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the end as JSON, on the last line.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    *,
    name: str | None,
    seed: int | None,
    journal: Path | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    r"""Run a recipe of the tinker-cookbook, unchanged, under supervision.

    \b
        tinker-recovery cookbook -- python -m tinker_cookbook.recipes.sl_basic log_path=runs/a

    The recipe runs in this process. When a backend fails, it begins again from the newest sound
    checkpoint, with its metrics and records cut to that step, and ends with the same weights. The
    same command continues a run that was left: the log folder that exists is resumed, without a
    question. Settings come from the environment and files, as `tinker-recovery config show` says.

    Known are the mains of supervised.train, rl.train, preference.train_dpo, and
    distillation.train_on_policy and train_off_policy. A script that trains by another is refused
    before it trains.

    \b
    Exit status: 0 if the recipe came to its end, now or before; 1 if it failed, or was given up;
    2 for a command, recipe or setting that is not allowed; 130 after Ctrl-C.
    """
    from tinker_recovery import (
        RunFinished,
        ServiceUnusable,
        Supervisor,
        UsageError,
        policy_from_settings,
    )
    from tinker_recovery.cookbook.script import run_script
    from tinker_recovery.journal import STATE_FOLDER

    runs: list[Any] = []

    async def run(main: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        kept = STATE_FOLDER if journal is None else journal
        async with Supervisor(policy_from_settings(), journal=kept) as supervisor:
            try:
                return await supervisor.run_cookbook(
                    main, config, *args, name=name, seed=seed, **kwargs
                )
            finally:
                runs.extend(supervisor.runs)

    def end(outcome: str, **more: object) -> None:
        if as_json:
            found = [
                {"name": each.name, "recoveries": len(each.recoveries), "step": each.step}
                for each in runs
            ]
            echo(json.dumps({"outcome": outcome, "runs": found, **more}))

    try:
        run_script(command, run)
    except RunFinished as finished:
        echo(f"tinker-recovery: {finished}", err=True)
        end("finished before")
    except UsageError as error:
        end("refused", error=str(error))
        refuse(str(error), USAGE)
    except ServiceUnusable as error:
        end("failed", error=str(error))
        refuse_because(error, FAILED)
    except Exception as error:  # whatever the script raises: shown as by itself, below the JSON
        end("failed", error=f"{type(error).__name__}: {error}")
        raise
    else:
        end("completed")
