"""The ``tinker-recovery`` command. Each subcommand is imported when it is called."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "abandon": "Forget a run, so that its name begins anew.",
    "checkpoints": "List, verify, prune, pin and unpin the checkpoints that the service stores.",
    "config": "Show every setting, and where its value came from.",
    "demo": "Watch a real training loop get poisoned, recover, and end with the same weights.",
    "doctor": "Find out whether the service really restores the optimizer.",
    "faults": "Show every way a run can go bad, and what is done about it.",
    "recover": "See that a run's newest valid checkpoint restores, and how to go on from it.",
    "report": "Write one page about a run: curve, incidents, lineage, figures, events.",
    "run": "Run a training script, and start it again when it crashes.",
    "runs": "List the runs that the journal knows.",
    "serve": "Run the local Tinker server, for trying things out and for tests.",
    "watch": "Watch runs while they train: state, step, loss, recoveries, checkpoints.",
    "show": "Show the history of one run.",
}


class _Lazy(click.Group):
    """Knows its commands' names and one-line help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"tinker_recovery.cli.{cmd_name}").command
        return _laid_out(command) if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


def _laid_out(command: click.Command) -> click.Command:
    r"""Have click leave the lines as they are below a line that says ``\b``.

    It looks for the character itself, which a docstring, raw as it has to be, cannot hold.
    """
    if command.help:
        command.help = command.help.replace("\\b\n", "\b\n")
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _laid_out(each)
    return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tinker-recovery")
def main() -> None:
    """Supervision and exact, automatic recovery for training loops over the Tinker API."""


__all__ = ["main"]
