"""Run: what a user sees of a supervised run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tinker_recovery.checkpoints import Segment
from tinker_recovery.recovery.recoverable import Recovery
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.telemetry.html import table

if TYPE_CHECKING:
    from tinker_recovery.run.supervised import SupervisedRun


class Run:
    """One logical run of a Supervisor, to look at: each property is read afresh."""

    __slots__ = ("_run",)

    def __init__(self, run: SupervisedRun) -> None:
        self._run = run

    def __repr__(self) -> str:
        return f"<Run {self.name!r}, {self.state}, attempt {len(self.attempts)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        recoveries = [
            (
                at,
                each.fault.kind.value,
                each.fault.step,
                each.fault.detected_by.value,
                None if each.checkpoint is None else each.checkpoint.step,
                each.replayed_steps,
            )
            for at, each in enumerate(self.recoveries, 1)
        ]
        head = ("recovery", "fault", "at step", "detected by", "from step", "steps done again")
        return runs_table(f"Run {self.name}", [self]) + (
            table("Recoveries", head, recoveries) if recoveries else ""
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other._run is self._run

    def __hash__(self) -> int:
        return hash(self._run)

    @property
    def name(self) -> str:
        """The name the user gave it, or the one made for it."""
        return self._run.name

    @property
    def lineage(self) -> str:
        """Id of the logical run, in the metadata of all its checkpoints."""
        return self._run.lineage

    @property
    def state(self) -> str:
        """``training``, ``recovering`` or ``over``."""
        return self._run.state

    @property
    def step(self) -> int:
        """Steps submitted so far on the branch that counts; see ``updates_per_step``."""
        current = self._run.current
        return self._run.start_step if current is None else current.client.step

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the loop reported last."""
        return dict(self._run.metrics)

    @property
    def attempts(self) -> Sequence[Attempt]:
        """Every attempt of this process that ran, oldest first."""
        return [Attempt(scope) for scope in self._run.attempts]

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, those of earlier processes too, oldest first."""
        return self._run.segments

    @property
    def recoveries(self) -> Sequence[Recovery]:
        """Every recovery of this process that succeeded, oldest first."""
        return list(self._run.recoveries)

    @property
    def error(self) -> BaseException | None:
        """What it was given up with, if it was."""
        return self._run.failure


def runs_table(title: str, runs: Sequence[Run]) -> str:
    """Runs as a notebook shows them, a line each."""
    head = ("run", "state", "step", "loss", "attempts", "recoveries", "last fault", "error")
    rows = [_row(run) for run in runs[-_MOST:]]
    if len(runs) > _MOST:
        title += f", the newest {_MOST} of {len(runs)} runs"
    return table(title, head, rows)


_MOST = 100
"""How many runs a notebook shows."""


def _row(run: Run) -> Sequence[object]:
    fault = run._run.incident or (run.recoveries[-1].fault if run.recoveries else None)  # noqa: SLF001 - the other half of Run
    return (
        run.name,
        run.state,
        run.step,
        run.metrics.get("loss"),
        len(run.segments),
        len(run.recoveries),
        None if fault is None else f"{fault.kind.value} at step {fault.step}",
        None if run.error is None else f"{type(run.error).__name__}: {run.error}",
    )
