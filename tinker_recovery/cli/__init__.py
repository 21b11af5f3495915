"""The ``tinker-recovery`` command: one module or package for each subcommand.

This room may use every other, and no other imports it. A subcommand is imported when it is called,
and imports what it needs inside its functions, so that ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import IO, Any

import click

from tinker_recovery import __version__

_COMMANDS = {
    "abandon": "Forget a run: the next run of that name starts from the beginning.",
    "checkpoints": "List, verify, prune, pin and unpin the checkpoints at the service.",
    "config": "Look at the settings that policy_from_settings() reads.",
    "cookbook": "Run a recipe of the tinker-cookbook, unchanged, under supervision.",
    "demo": "Watch a training loop get poisoned, recover, and end with the same weights.",
    "doctor": "Find out what a service does: above all, whether it really restores the optimizer.",
    "export": "Export a checkpoint as an adapter that others can load, or publish it on a hub.",
    "faults": "Show every fault that a run can meet, and what is done about each.",
    "inject": "Strike a run at a local server with a fault, while it trains.",
    "jobs": "List, show, cancel and retry jobs, and work on them.",
    "prices": "Write what each model's tokens were billed at, in USD for a million tokens.",
    "recover": "Check that a run's checkpoint restores, and show how to resume from it.",
    "report": "Write an HTML page about RUN: loss curve, incidents, checkpoints, figures, events.",
    "run": "Run a training script, and restart it when it crashes.",
    "runs": "List the runs in this machine's journal, the most recently active first.",
    "serve": "Run a local Tinker server until Ctrl-C.",
    "show": "Show one run: its holder, attempts, incidents, checkpoints, cost and events.",
    "watch": "Watch runs while they train, until Ctrl-C.",
}


def _give_stdout_up() -> bool:
    """Whether standard output does not take what was printed; it is not tried again then.

    The interpreter would as it ends, and have a status and a message of its own.
    """
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError):  # it is no file
            os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return True
    return False


class _Lazy(click.Group):
    """Knows its commands' names and one-line help without importing them."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Call it; a standard stream that is closed takes nothing, and has nothing to read.

        Exits with status 3 where standard output does not take what is printed (a full disk).
        """
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # of a process that was started with `>&-`
                setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the process ends, as the streams are
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if not _give_stdout_up():
                raise
            from tinker_recovery.cli.common import UNREADABLE, say_error

            say_error(f"standard output: {error.strerror}")
            sys.exit(UNREADABLE)
        finally:
            _give_stdout_up()  # also where a command has said so by itself

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"tinker_recovery.cli.{cmd_name}").command
        return _keep_lines(command) if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, also by the words of the SDK's own; one that comes near is named."""
        args = _ours(args)
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, [*_COMMANDS, *_SDK_WORDS], 2)
            meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{meant}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error of click's own shows what it quotes as the text it is."""
        args = [*vars(ctx).get("_protected_args", ()), *ctx.args]
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            from tinker_recovery.telemetry.text import as_text

            vars(error)["message"] = as_text(error.message)
            if "--json" in (args[: args.index("--")] if "--" in args else args):
                raise _AsJson(error.format_message(), error.exit_code) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


class _AsJson(click.ClickException):
    """An error of click's own, for a program."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.args = message, status  # what a copy is made of
        vars(self)["exit_code"] = status

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it as one line of JSON, to standard error."""
        said = json.dumps({"error": self.message, "status": self.exit_code})
        click.echo(said, file=file, err=file is None)


def _ours(args: list[str]) -> list[str]:
    """A call in the words of the SDK's own command, in ours; ``run -- list`` runs a program."""
    first, *rest = args
    if first == "run" and rest[:1] in (["list"], ["info"]):
        return ["runs" if rest[0] == "list" else "show", *rest[1:]]
    return [_SDK_WORDS.get(first, first), *rest]


_SDK_WORDS = {"checkpoint": "checkpoints"}
"""What the command ``tinker`` calls it, and we."""


def _keep_lines(command: click.Command) -> click.Command:
    r"""Make click keep the lines of a paragraph that begins with ``\b``.

    Click looks for the control character, which a raw docstring cannot contain.
    """
    if command.help:
        command.help = command.help.replace("\\b\n", "\b\n")
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _keep_lines(each)
    return command


_EPILOG = """\b
Output that is piped is plain: one record a line, two blanks between columns.
With --json an error is one JSON object on standard error: error, status.
Words of the command `tinker` work: run list, run info RUN, checkpoint list.
Completion, also of the names of runs (zsh_source, fish_source elsewhere):
  eval "$(_TINKER_RECOVERY_COMPLETE=bash_source tinker-recovery)"
"""


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Show what lies below an error of the service or the journal.",
)
@click.version_option(__version__)
def main(*, verbose: bool) -> None:
    """Supervision and exact, automatic recovery for training loops over the Tinker API."""


__all__ = ["main"]
