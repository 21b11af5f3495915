"""How much of a run's time is useful: the ``auto`` save interval against the best fixed one.

A simulation over failure rates and save costs. A failure sets the run back to its last stored
checkpoint; a save interrupted by a failure is lost. Goodput is the time of the steps that count,
divided by the whole time. Every policy meets the same failures, on several runs of two to seven
days each, and ``auto`` starts each run without knowledge: its first guess and its learning are part
of its result. "Best fixed" is the interval, of all those searched, with the highest goodput over
the same runs, which cannot be known beforehand.

Failures come at random (exponential gaps), and in one part of the grid in bursts (Weibull gaps of
shape 0.6), which the theory behind ``auto`` does not assume. Steps take 20 or 30 s.

    python benchmarks/interval.py [--quick] [--json]
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from _report import Bar, arguments, bars, table

from tinker_recovery import CheckpointPolicy
from tinker_recovery.checkpoints import Evidence, SaveLedger
from tinker_recovery.checkpoints.interval import AutoInterval
from tinker_recovery.checkpoints.policies import schedule_of
from tinker_recovery.checkpoints.schedule import Schedule

LIMIT, DEFAULTS_LIMIT = 0.98, 0.97
HOUR = 3600.0
RESTART_S = 60.0
"""From a failure to the first step again: alike for every policy."""

FIXED_S = (60.0, 600.0, 3600.0)
"""Fixed intervals that people choose, for the table."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid.

    Attributes:
        mtbf_s: Mean seconds between two failures.
        save_s: Mean seconds a save costs.
        step_s: Mean seconds of a step.
        bursts: Whether failures come in bursts.
    """

    mtbf_s: float
    save_s: float
    step_s: float
    bursts: bool = False

    def gaps(self, seed: int) -> Iterator[float]:
        """Seconds from each failure to the next."""
        chance = random.Random(seed)
        shape = 0.6 if self.bursts else 1.0
        scale = self.mtbf_s / math.gamma(1 + 1 / shape)
        while True:
            yield chance.weibullvariate(scale, shape)


@dataclass(slots=True)
class Run:
    """A simulated run: the clock, and when it fails next."""

    gaps: Iterator[float]
    now_s: float = 0.0
    fails_at_s: float = 0.0

    def __post_init__(self) -> None:
        self.fails_at_s = next(self.gaps)

    def spend(self, seconds: float) -> bool:
        """Let time pass; False if a failure came first, after which the run has restarted."""
        if self.now_s + seconds < self.fails_at_s:
            self.now_s += seconds
            return True
        self.now_s = self.fails_at_s + RESTART_S
        self.fails_at_s = self.now_s + next(self.gaps)
        return False


def fixed(cell: Cell, interval: int, steps: int, seed: int) -> float:
    """Seconds a run takes with a save every ``interval`` steps."""
    run = Run(cell.gaps(seed))
    done = 0
    while done < steps:
        count = min(interval, steps - done)
        # The last steps are not saved because the run is over; `auto` does not save them either.
        cost_s = count * cell.step_s + (cell.save_s if done + count < steps else 0.0)
        if run.spend(cost_s):
            done += count
    return run.now_s


def auto(cell: Cell, schedule: Schedule, steps: int, seed: int) -> tuple[float, Evidence]:
    """Seconds the same run takes with ``auto``, asked at every step; and what it has learnt.

    Measured step times and save costs scatter around their means; what passes on the clock is the
    mean, as for the fixed intervals, so that only decisions tell the two apart.
    """
    run = Run(cell.gaps(seed))
    noise = random.Random(seed + 1)
    evidence = Evidence()
    ledger = SaveLedger(0, 0.0)
    step = 0
    while step < steps:
        began_s = run.now_s
        survived = run.spend(cell.step_s)
        if survived:
            step += 1
            evidence = evidence.stepped(cell.step_s * noise.uniform(0.5, 1.5))
            if (
                step >= steps
                or not ledger.ask(schedule, step=step, now_s=run.now_s, evidence=evidence).due
            ):
                continue
            ledger = ledger.began(step=step, now_s=run.now_s)
            survived = run.spend(cell.save_s)
            if survived:
                cost_s = cell.save_s * noise.uniform(0.5, 1.5)
                ledger = ledger.stored(step)
                evidence = evidence.saved(cost_s).waited(cost_s)
                continue
        evidence = evidence.failed().waited(run.now_s - began_s)
        step = ledger.last_step
        ledger = SaveLedger(step, run.now_s)
    return run.now_s, evidence


def search(cell: Cell, steps: int, seeds: range) -> tuple[int, float]:
    """The best fixed interval in steps, and the seconds all runs together take with it."""
    taken: dict[int, float] = {}

    def try_around(center: float, factors: Sequence[float]) -> int:
        for factor in factors:
            interval = min(steps, max(1, round(center * factor)))
            if interval not in taken:
                taken[interval] = sum(fixed(cell, interval, steps, seed) for seed in seeds)
        return min(taken, key=lambda interval: taken[interval])

    # Widely first, and then closely around the best found.
    theory = math.sqrt(2 * cell.save_s * cell.mtbf_s) / cell.step_s
    try_around(theory, [2 ** (power / 2) for power in range(-7, 8)])
    rough = try_around(1 / cell.step_s, FIXED_S)
    best = try_around(rough, [2 ** (power / 12) for power in range(-6, 7)])
    return best, taken[best]


def by_default(*, quick: bool) -> Bar:
    """What the schedule of a policy without settings makes of steps short and long, and its bar.

    Of steps of 1 s, an hour's worth of asking takes a while, so their runs are shorter.
    """
    rows, ratios = [], []
    schedule = schedule_of(CheckpointPolicy())
    for step_s in (1.0, 20.0, 60.0):
        for save_s in (1.0, 10.0):
            cell = Cell(6 * HOUR, save_s, step_s)
            steps = round((12 if step_s == 1.0 else 48) * HOUR / step_s)
            seeds = range((2 if step_s == 1.0 else 16) * (1 if quick else 4))
            useful_s = steps * step_s * len(seeds)
            seconds = sum(auto(cell, schedule, steps, seed)[0] for seed in seeds)
            interval, best_s = search(cell, steps, seeds)
            ratios.append(best_s / seconds)
            rows.append(
                [
                    f"{step_s:g} s",
                    f"{save_s:g} s",
                    f"{interval * step_s:.0f} s",
                    f"{useful_s / best_s:.2%}",
                    f"{useful_s / seconds:.2%}",
                    f"{ratios[-1]:.4f}",
                ]
            )
    print("by default; it fails every 6 h\n")
    table(["a step", "a save costs", "best interval", "best fixed", "default", "ratio"], rows)
    print()
    name = "default schedule over best fixed, steps of 1, 20 and 60 s"
    return Bar(name, min(ratios), DEFAULTS_LIMIT, "higher")


def main(*, quick: bool) -> list[Bar]:
    """Simulate the grid, print the table, return the bars."""
    default = by_default(quick=quick)
    cells = [
        Cell(mtbf_s, save_s, step_s, bursts)
        # A fault a week is two thirds of the work.
        for mtbf_s in (1 * HOUR, 6 * HOUR, 48 * HOUR, *([] if quick else [168 * HOUR]))
        for save_s, step_s in ((1.0, 20.0), (10.0, 30.0), (60.0, 30.0))
        for bursts in (False, True)
    ]
    rows = []
    ratios = []
    for cell in cells:
        length_s = max(48 * HOUR, min(4 * cell.mtbf_s, 168 * HOUR))
        steps = round(length_s / cell.step_s)
        # Enough runs to meet a dozen failures or more: with fewer, the best fixed interval in
        # hindsight is the one that happened to dodge them.
        count = max(4, math.ceil(12 * cell.mtbf_s / length_s))
        seeds = range(count if quick else 4 * count)
        useful_s = steps * cell.step_s * len(seeds)
        schedule = AutoInterval()
        results = [auto(cell, schedule, steps, seed) for seed in seeds]
        goodput = useful_s / sum(seconds for seconds, _ in results)
        interval, seconds = search(cell, steps, seeds)
        best = useful_s / seconds
        ratios.append(goodput / best)
        others = [
            useful_s
            / sum(fixed(cell, max(1, round(each / cell.step_s)), steps, seed) for seed in seeds)
            for each in FIXED_S
        ]
        final = sorted(schedule.steps(last) for _, last in results)[len(results) // 2]
        rows.append(
            [
                f"every {cell.mtbf_s / HOUR:g} h{' in bursts' if cell.bursts else ''}",
                f"{cell.save_s:g} s",
                f"{interval * cell.step_s:.0f} s",
                f"{final * cell.step_s:.0f} s",
                f"{best:.2%}",
                f"{goodput:.2%}",
                f"{ratios[-1]:.4f}",
                *(f"{other:.2%}" for other in others),
            ]
        )
    table(
        [
            "fails",
            "save costs",
            "best interval",
            "auto's last",
            "best fixed",
            "auto",
            "ratio",
            *(f"each {each:.0f} s" for each in FIXED_S),
        ],
        rows,
    )
    print(f"\nthe bar takes the worst of {len(cells)} points")
    return [Bar("auto over best fixed", min(ratios), LIMIT, "higher"), default]


if __name__ == "__main__":
    given = arguments(__doc__)
    bars("interval", main(quick=given.quick), as_json=given.json)
