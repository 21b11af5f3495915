"""``tinker-recovery run``: run a training script, and restart it when it crashes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import echo
from tinker_recovery.cli.restart_rule import Ending, RestartRule, Stop
from tinker_recovery.supervision import Backoff
from tinker_recovery.telemetry.text import as_text

if TYPE_CHECKING:
    from tinker_recovery.outlets import Notify

NOT_FOUND, NOT_EXECUTABLE, SIGNALLED = 127, 126, 128
"""Exit statuses, as in a shell."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--max-restarts",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Restarts in a row before giving up.",
)
@click.option(
    "--backoff-s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds before the second restart in a row, doubled for each further one. "
    "The first is immediate.",
)
@click.option(
    "--max-backoff-s",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="The longest backoff, in seconds.",
)
@click.option(
    "--healthy-after-s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="After running this many seconds, restarts are counted from 0 again.",
)
@click.option(
    "--notify",
    multiple=True,
    envvar="TINKER_RECOVERY_NOTIFY",
    metavar="URL",
    help="Tell this service, a URL of apprise, when the script is given up; and have its "
    "Supervisor tell it of its runs. Several times for several. The variable "
    "TINKER_RECOVERY_NOTIFY keeps the URL out of lists of processes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print messages as JSON, one object a line.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    *,
    max_restarts: int,
    backoff_s: float,
    max_backoff_s: float,
    healthy_after_s: float,
    notify: tuple[str, ...],
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    r"""Run a training script, and restart it when it crashes.

    \b
        tinker-recovery run -- python train.py --lr 1e-4

    A run with a name (name= in the script) resumes from its newest checkpoint, so a crash, a kill
    or running out of memory costs only the steps since then. One without a name is given a name
    for as long as this command lasts, if the script is the process that it starts.

    Signals (INT, TERM, HUP, QUIT, USR1, USR2) are passed on to the script. It is not restarted
    after one of the first four, after exit status 0 (done) or 2 (bad arguments), if it died of INT,
    TERM, HUP or PIPE, or if its run was finished already.

    \b
    Exit status: the script's last one; 128 + N if it died of signal N; 127 if there is no such
    command, 126 if it cannot be executed; 2 for a wrong option.
    """
    if max_backoff_s < backoff_s:
        raise click.UsageError(
            f"--max-backoff-s {max_backoff_s:g} is below --backoff-s {backoff_s:g}"
        )
    if any("tinker_cookbook" in word for word in command):
        echo(
            "tinker-recovery: a recipe's own resume repeats or leaves out steps where it pipelines "
            f"them; to have it exact: tinker-recovery cookbook -- {as_text(shlex.join(command))}",
            err=True,
        )
    teller = _Teller(notify)
    rule = RestartRule(max_restarts, Backoff(backoff_s, max_backoff_s), healthy_after_s)
    sys.exit(_Runner(command, teller, as_json=as_json).run(rule))


class _Teller:
    """Tells others that a script was given up, which it cannot do itself once it is dead.

    Raises:
        click.UsageError: A URL cannot work; it is not shown.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.environment = {"TINKER_RECOVERY_NOTIFY": " ".join(urls)} if urls else {}
        self._notify: Notify | None = None
        if urls:
            from tinker_recovery.errors import UsageError
            from tinker_recovery.outlets import Notify

            try:
                self._notify = Notify(*urls)
            except UsageError as error:
                raise click.UsageError(f"--notify: {error}") from None

    def given_up(self, message: str) -> None:
        """Tell them, and wait for as long as an exit may take."""
        if self._notify is not None:
            import anyio

            from tinker_recovery.outlets.outlets import send_now

            anyio.run(send_now, self._notify, "given up", message)


def name_for(command: Sequence[str]) -> str:
    """What a run of this command is called that has no name, with the process that says so.

    For ``run/unnamed.py``: the script's name, and which call of this command it is of.
    """
    # A whole line of a shell (`bash -c "KEY=... python train.py"`) may end like that as well.
    stem = Path(next(filter(_is_script, command[1:]), command[0])).stem
    readable = re.sub(r"[^A-Za-z0-9_.-]", "-", stem)[:_MOST_OF_NAME].strip("-.") or "run"
    return f"{os.getpid()}:{readable}-{secrets.token_hex(3)}"


def _is_script(word: str) -> bool:
    """Whether it is a path, and no option, assignment or line of a shell: they may hold secrets."""
    if not word.endswith(".py") or word.startswith("-") or "=" in word:
        return False
    return re.search(r"[\s;&|$<>'\"`]", Path(word).name) is None


_MOST_OF_NAME = 40
"""Characters of a script's name that are part of that of its run."""


class _Runner:
    """Runs a command until a RestartRule says to stop."""

    def __init__(self, command: Sequence[str], teller: _Teller, *, as_json: bool) -> None:
        self._command = command
        self._teller = teller
        self._name = name_for(command)
        self._as_json = as_json
        self._child: subprocess.Popen[bytes] | None = None
        self._ended_by: int | None = None
        self._woken = threading.Event()

    def run(self, rule: RestartRule) -> int:
        """Run it until it is done or no restart is due; returns the exit status."""
        restarts = 0
        with self._signals():
            while True:
                ending = self._once()
                if isinstance(ending, int):
                    return ending
                then = rule.after(ending, restarts, random.random())  # noqa: S311 - jitter, no secret
                ended = f"{ending} after {ending.lived_s:.0f} s"
                if isinstance(then, Stop):
                    if ending.code:
                        said = f"{ended}: {then.reason}"
                        self._report(said)
                        if not ending.asked_to_end:
                            self._teller.given_up(f"{shlex.join(self._command)} {said}")
                    return ending.status
                restarts = then.number
                delay = f" in {then.delay_s:.1f} s" if then.delay_s else ""
                self._report(f"{ended}; restart {restarts} of {rule.max_restarts}{delay}")
                self._woken.wait(then.delay_s)
                if self._ended_by is not None:
                    return SIGNALLED + self._ended_by

    def _once(self) -> Ending | int:
        """Run the script once: how it ended, or the exit status if it could not be started."""
        with tempfile.TemporaryDirectory() as scratch:
            finished = Path(scratch) / "finished"
            began = time.monotonic()
            try:
                self._child = subprocess.Popen(  # noqa: S603 - the user's own command
                    self._command,
                    env={
                        **os.environ,
                        **self._teller.environment,
                        "TINKER_RECOVERY_FINISHED_FILE": str(finished),
                        "TINKER_RECOVERY_RUN": self._name,
                    },
                )
            except FileNotFoundError:
                self._report(f"there is no command {self._command[0]!r}")
                return NOT_FOUND
            except OSError as error:
                self._report(f"{self._command[0]!r} cannot be executed: {error}")
                return NOT_EXECUTABLE
            if self._ended_by is not None:
                self._child.send_signal(self._ended_by)  # it arrived before there was a child
            code = self._child.wait()
            self._child = None
            return Ending(
                code,
                time.monotonic() - began,
                asked_to_end=self._ended_by is not None,
                finished_before=finished.exists(),
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        before = {
            each: signal.signal(each, self._on_signal)
            for each in (*ends, signal.SIGUSR1, signal.SIGUSR2)
        }
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number not in (signal.SIGUSR1, signal.SIGUSR2):
            self._ended_by = number
            self._woken.set()
        child = self._child
        if child is not None and not _terminal_sent(number):
            child.send_signal(number)

    def _report(self, message: str) -> None:
        if self._as_json:
            echo(json.dumps({"command": list(self._command), "message": message}), err=True)
        else:
            echo(as_text(f"tinker-recovery: {shlex.join(self._command)}: {message}"), err=True)


def _terminal_sent(number: int) -> bool:
    """Whether the terminal sends this signal to the script too, so it must not be passed on."""
    if number not in (signal.SIGINT, signal.SIGQUIT):
        return False
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
