"""``tinker-recovery demo``: the same run twice, undisturbed and poisoned, compared bit by bit."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from tinker_recovery.cli.common import check_local_server, demo_server, echo
from tinker_recovery.cli.kept_demos import note_demo
from tinker_recovery.cli.plot import Mark, axis, curve, replays
from tinker_recovery.telemetry.text import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tinker_recovery import Attempt, Supervisor
    from tinker_recovery.testing import LocalTinkerProcess

_MODEL = "Qwen/Qwen3-8B"
_SEED = 20251204
_SERVICE = "tinker-recovery-demo"
_CALM, _POISONED = "undisturbed", "poisoned"
_POLL_S = 0.25
_INTERRUPTED = 130
_CURVE_WIDTH, _CURVE_HEIGHT = 64, 7


@dataclass(slots=True)
class RunProgress:
    """The progress of one run, for the live view and the curve."""

    name: str
    title: str
    losses: dict[int, float] = field(default_factory=dict)
    step: int = 0
    state: str = "waiting"
    recoveries: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of the demo, as ``--json`` prints them."""

    steps: int
    recoveries: int
    replayed_steps: int
    lost_steps: int
    weights_identical: bool
    detection_s: list[float]
    handover_s: list[float]
    optimizer_restored: bool

    @property
    def good(self) -> bool:
        """Whether the recovered run equals the undisturbed one, to the bit."""
        return self.weights_identical and self.optimizer_restored and self.lost_steps == 0


@click.command()
@click.option(
    "--steps",
    default=60,
    show_default=True,
    type=click.IntRange(10, 10_000),
    help="Steps to train.",
)
@click.option(
    "--poison",
    "poisonings",
    multiple=True,
    type=click.IntRange(0),
    help="Step after which the backend is poisoned; repeatable. Default: 2/5 and 4/5 of --steps.",
)
@click.option(
    "--save-every",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Steps between saves.",
)
@click.option(
    "--pace",
    default=0.02,
    show_default=True,
    type=click.FloatRange(0, 10),
    help="Seconds that each step takes at the server; more gives you time to watch.",
)
@click.option(
    "--otlp",
    metavar="ENDPOINT",
    help="Send the traces to a collector, such as http://localhost:4317 for Jaeger.",
)
@click.option(
    "--otlp-protocol",
    type=click.Choice(["grpc", "http/protobuf"]),
    help="Default: grpc; http/protobuf if the port is 4318.",
)
@click.option(
    "--keep",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep journal and checkpoints in this folder, for watch, show, report and export.",
)
@click.option(
    "--report",
    "page",
    metavar="FILE.html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the poisoned run's report to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line.")
def command(  # noqa: PLR0913 - one argument for each option
    steps: int,
    poisonings: tuple[int, ...],
    save_every: int,
    pace: float,
    otlp: str | None,
    otlp_protocol: Literal["grpc", "http/protobuf"] | None,
    folder: Path | None,
    page: Path | None,
    *,
    as_json: bool,
) -> None:
    r"""Watch a training loop get poisoned, recover, and end with the same weights.

    Starts a local Tinker server in a process of its own and trains the same run twice with the real
    Tinker SDK: once undisturbed, once with the backend poisoned. Every second poisoning is quiet:
    calls hang, and only the run's status shows the fault. Then it compares the final weights and
    optimizer states bit by bit.

    Needs: pip install "tinker-recovery[demo]". Takes about ten seconds. Nothing leaves this
    machine.

    \b
    See more:
        tinker-recovery demo --report demo.html
        tinker-recovery demo --keep demo --pace 0.3
        tinker-recovery watch --journal demo    (at the same time, in another terminal)
        tinker-recovery report poisoned --journal demo -o demo.html

    Exit status: 0 if weights and optimizer are identical; 1 if not; 2 for a wrong option, or if
    what it needs is not installed; 130 after Ctrl-C.
    """
    from rich.console import Console

    check_local_server()
    chosen = poisonings or (steps * 2 // 5, steps * 4 // 5)
    for step in chosen:
        if step >= steps:
            raise click.BadParameter(f"{step} is not below --steps {steps}", param_hint="--poison")
    if page is not None and not page.parent.is_dir():
        raise click.BadParameter(f"there is no folder {page.parent}", param_hint="--report")
    console = Console(stderr=as_json, soft_wrap=False)
    with _traced(console, otlp, otlp_protocol), tempfile.TemporaryDirectory() as temporary:
        state = folder or Path(temporary)
        if folder is not None:
            note_demo(folder)
        demo = _Demo(console, steps, sorted(chosen), save_every, pace, folder is not None)
        try:
            outcome = asyncio.run(demo.play(state))
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        _show(console, state, folder, page)
    if as_json:
        echo(json.dumps(asdict(outcome)))
    sys.exit(0 if outcome.good else 1)


@contextlib.contextmanager
def _traced(
    console: Console, endpoint: str | None, protocol: Literal["grpc", "http/protobuf"] | None
) -> Iterator[None]:
    """Export traces if there is an endpoint, and say where to find them."""
    if endpoint is None:
        yield
        return
    from tinker_recovery import UsageError
    from tinker_recovery.telemetry import configure_tracing

    try:
        export = configure_tracing(endpoint, protocol=protocol, service_name=_SERVICE)
    except UsageError as error:
        raise click.BadParameter(str(error), param_hint="--otlp") from error
    yield
    if export.shutdown() and not export.lost:
        console.print(
            f"\nTraces sent to {export.endpoint}: service {_SERVICE!r}, operation 'recovery'. "
            "Jaeger shows them at http://localhost:16686."
        )
    else:
        console.print(f"\n[red]No collector at {export.endpoint} accepted the traces.[/]")


def _show(console: Console, state: Path, kept: Path | None, page: Path | None) -> None:
    """Write the report if asked to, and print the commands that show more."""
    from tinker_recovery.cli.report import write_report
    from tinker_recovery.journal.journal import JOURNAL_FILE

    if page is not None:
        write_report(state / JOURNAL_FILE, _POISONED, page)
        console.print(f"\nWrote the report {page}", soft_wrap=True)
    if kept is not None:
        console.print(
            f"\nSee more: tinker-recovery watch --journal {kept}\n"
            f"          tinker-recovery report {_POISONED} --journal {kept} -o report.html\n"
            f"          tinker-recovery export {_POISONED} --to adapter",
            soft_wrap=True,
        )


@dataclass(slots=True)
class _Demo:
    console: Console
    steps: int
    poisonings: list[int]
    save_every: int
    pace: float
    kept: bool

    async def play(self, state: Path) -> Outcome:
        """Run the demo and print it; the journal is written to a folder."""
        from tinker_recovery.testing import LocalTinkerProcess

        calm, poisoned = RunProgress(_CALM, "undisturbed"), RunProgress(_POISONED, "poisoned")
        # Warnings would disturb the live view; the table shows what happened.
        logging.getLogger("tinker").setLevel(logging.ERROR)
        logging.getLogger("tinker_recovery").setLevel(logging.CRITICAL)
        with self._server_folder(state) as root:
            async with LocalTinkerProcess(root=root, step_s=self.pace) as server:
                os.environ.update(
                    TINKER_RECOVERY_STATE_DIR=str(state),
                    TINKER_BASE_URL=server.base_url,
                    TINKER_API_KEY=server.api_key,
                    TINKER_TELEMETRY="0",
                )
                faults = " and ".join(map(str, self.poisonings))
                self.console.print(
                    f"Local Tinker server at {server.base_url}. "
                    f"Training {counted(self.steps, 'step')} twice; "
                    f"the second run is poisoned after step {faults}."
                )
                with _live(self.console, [calm, poisoned], self.steps) as refresh:
                    expected, _ = await self._train(calm, refresh)
                    await self._poison(server)
                    actual, supervisor = await self._train(poisoned, refresh)
                outcome = await self._compare(server, expected, actual, supervisor)
        self._show_curves(calm, poisoned, supervisor)
        self._show_table(outcome)
        return outcome

    @contextlib.contextmanager
    def _server_folder(self, state: Path) -> Iterator[Path]:
        if self.kept:
            yield demo_server(state)  # so that its checkpoints can be exported later
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    async def _poison(self, server: LocalTinkerProcess) -> None:
        from tinker_recovery.testing import FaultRule

        for number, step in enumerate(self.poisonings):
            await server.inject(FaultRule("poison", at_step=step, quiet=number % 2 == 1))

    async def _train(self, run: RunProgress, refresh: Callable[[], None]) -> tuple[str, Supervisor]:
        """Train one supervised run; returns its last Tinker run id and the supervisor."""
        from tinker_recovery import CheckpointPolicy, RecoveryPolicy, Supervisor

        policy = RecoveryPolicy(
            enabled=True,
            poll_interval_s=_POLL_S,
            backoff_s=0.2,
            max_attempts=max(3, len(self.poisonings)),
            # Nobody goes on with it after Ctrl-C.
            checkpoints=CheckpointPolicy(save_every=self.save_every, save_on_stop_s=None),
        )
        async with Supervisor(policy, quiet=True) as supervisor:

            async def train(attempt: Attempt) -> None:
                run.state = "training"
                for step in range(attempt.start_step, self.steps):
                    loss = await _one_step(attempt, step)
                    run.losses[step], run.step = loss, step + 1
                    run.recoveries = attempt.number - 1
                    refresh()

            await supervisor.run(train, base_model=_MODEL, rank=8, seed=_SEED, name=run.name)
            run.state = "done"
            refresh()
            return supervisor.runs[0].segments[-1].run_id, supervisor

    async def _compare(
        self, server: LocalTinkerProcess, expected: str, actual: str, supervisor: Supervisor
    ) -> Outcome:
        want, have = await server.run_state(expected), await server.run_state(actual)
        (run,) = supervisor.runs
        fired = await server.fired()
        return Outcome(
            steps=self.steps,
            recoveries=len(run.recoveries),
            replayed_steps=sum(recovery.replayed_steps for recovery in run.recoveries),
            lost_steps=want.steps - have.steps,
            weights_identical=want.weights_digest == have.weights_digest,
            detection_s=[
                round(recovery.fault.detected_ns / 1e9 - fault.at, 4)
                for recovery, fault in zip(run.recoveries, fired, strict=False)
            ],
            handover_s=[
                round((after.client.first_call_at or 0.0) - recovery.fault.detected_at, 4)
                for recovery, after in zip(run.recoveries, run.attempts[1:], strict=True)
            ],
            optimizer_restored=want.optimizer_digest == have.optimizer_digest,
        )

    def _show_curves(
        self, calm: RunProgress, poisoned: RunProgress, supervisor: Supervisor
    ) -> None:
        marks = [
            Mark(recovery.fault.step, recovery.checkpoint.step if recovery.checkpoint else 0)
            for recovery in supervisor.runs[0].recoveries
        ]
        for run, recoveries in ((calm, []), (poisoned, marks)):
            values = [run.losses[step] for step in range(self.steps)]
            self.console.print(f"\n[bold]loss, {run.title}[/]")
            lines = curve(values, width=_CURVE_WIDTH, height=_CURVE_HEIGHT)
            for number, line in enumerate(lines):
                label = {0: f"{max(values):.1f}", len(lines) - 1: f"{min(values):.1f}"}
                self.console.print(f"{label.get(number, ''):>6} │{line}")
            self.console.print(f"{'step':>6}  {axis(self.steps, width=_CURVE_WIDTH)}")
            for line in replays(recoveries, self.steps, width=_CURVE_WIDTH):
                self.console.print(f"{'':>8}[yellow]{line}[/]")

    def _show_table(self, outcome: Outcome) -> None:
        from rich.table import Table

        table = Table(show_header=False, title="Poisoned run, compared with the undisturbed one")
        rows = {
            "steps": str(outcome.steps),
            "recoveries": str(outcome.recoveries),
            "steps replayed": str(outcome.replayed_steps),
            "steps lost": str(outcome.lost_steps),
            "from poisoning to detection": _milliseconds(outcome.detection_s),
            "from detection to the next call": _milliseconds(outcome.handover_s),
            "final weights identical": _yes(outcome.weights_identical),
            "optimizer state identical": _yes(outcome.optimizer_restored),
        }
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print()
        self.console.print(table)


async def _one_step(attempt: Attempt, step: int) -> float:
    from tinker import types

    # Four batches in turn, so that the loss falls visibly.
    tokens = [(step % 4 * 7 + offset * offset) % 50 for offset in range(33)]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": types.TensorData(data=tokens[1:], dtype="int64")},
    )
    forward = attempt.client.forward_backward([datum], "cross_entropy")
    update = attempt.client.optim_step(types.AdamParams(learning_rate=3e-2))
    loss = (await forward).metrics["loss:sum"]
    await update
    attempt.report(loss=loss)
    return float(loss)


def _milliseconds(seconds: list[float]) -> str:
    return ", ".join(f"{value * 1e3:.0f} ms" for value in seconds) or "-"


def _yes(value: bool) -> str:  # noqa: FBT001 - the value itself
    return "[green]yes[/]" if value else "[red]NO[/]"


@contextlib.contextmanager
def _live(console: Console, runs: list[RunProgress], steps: int) -> Iterator[Callable[[], None]]:
    """A live table in a terminal, else a line now and then."""
    from rich.live import Live

    if not console.is_terminal:
        printed = itertools.count()

        def line() -> None:
            if next(printed) % max(1, steps // 4) == 0:
                for run in runs:
                    if run.state == "training":
                        console.print(
                            f"{run.title}: step {run.step}/{steps}, recoveries: {run.recoveries}"
                        )

        yield line
        return
    with Live(console=console, refresh_per_second=12, transient=True) as live:

        def refresh() -> None:
            live.update(_progress(runs, steps))

        refresh()
        yield refresh


def _progress(runs: list[RunProgress], steps: int) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table("run", "state", "progress", "step", "loss", "recov.", box=None)
    # On a narrow terminal the bar gives way, and no name.
    table.columns[0].min_width = max(len(each.title) for each in runs)
    for run in runs:
        loss = run.losses.get(run.step - 1)
        table.add_row(
            run.title,
            run.state,
            ProgressBar(total=steps, completed=run.step, width=24),
            f"{run.step}/{steps}",
            "" if loss is None else f"{loss:.2f}",
            str(run.recoveries),
        )
    return table
