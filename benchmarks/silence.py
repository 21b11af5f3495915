"""How long a silence lasts until it is a fault, and how often a healthy run is taken for silent.

A simulation on a clock of its own, of what finds the limit in a run: days of steps that jitter, one
in fifty taking eight times as long, with a pause of the service for capacity every hour, which it
reports. Then the service falls silent for good. Beside the derived limit there is the least that
anybody would write instead, a fixed one of five steps, and one that suits every run, 900 s.

A false alarm costs a recovery and the steps since the last save; a late one costs the time in which
nothing is trained.

    python benchmarks/silence.py [--quick] [--json]
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from _report import Bar, arguments, bars, table

from tinker_recovery import RecoveryPolicy
from tinker_recovery.detection.monitor import silence_check_s
from tinker_recovery.service.waits import Progress

HOUR_S = 3600.0
STEPS_S = (1.0, 20.0, 60.0)
FACTOR, SLOW_SHARE = 8.0, 0.02
PAUSE_S = 1200.0
"""Of the service, for capacity: while it lasts the SDK is answered every few seconds."""
ANSWER_S = 10.0
FIXED_STEPS, FIXED_S = 5.0, 900.0

Limit = Callable[[float | None], float]


@dataclass(frozen=True, slots=True)
class Silence:
    """What became of the days of one run.

    Attributes:
        alarms: How often a healthy step was taken for a silence.
        limit_s: The limit when the service fell silent for good.
        noticed_s: How long that silence had lasted when it was noticed.
    """

    alarms: int
    limit_s: float
    noticed_s: float


def run(step_s: float, hours: float, limit_of: Limit, seed: int) -> Silence:
    """Hours of steps, and then silence."""
    chance, now_s = random.Random(seed), 0.0
    progress = Progress(lambda: now_s)
    check_s = silence_check_s(RecoveryPolicy()) or 1.0
    alarms, paused_at_s = 0, 0.0
    while now_s < hours * HOUR_S:
        if now_s - paused_at_s >= HOUR_S:
            paused_at_s = now_s
            for _ in range(int(PAUSE_S / ANSWER_S)):
                now_s += ANSWER_S
                progress.begin()
        slow = chance.random() < SLOW_SHARE
        takes_s = step_s * (FACTOR if slow else chance.uniform(0.5, 2.0))
        alarms += takes_s >= limit_of(progress.slow_s)
        now_s += takes_s
        progress.made(sound=True)
        progress.step_done()
    limit_s = limit_of(progress.slow_s)
    while progress.silent_s < limit_s:
        now_s += check_s
    return Silence(alarms, limit_s, progress.silent_s)


def main() -> None:
    """Simulate, and print."""
    given = arguments(__doc__)
    hours, seeds = (8.0, 3) if given.quick else (72.0, 5)
    policy = RecoveryPolicy()
    rows, early_s, late, alarms = [], 0.0, 0.0, 0
    for step_s in STEPS_S:
        limits: dict[str, Limit] = {
            "derived": lambda slow_s: policy.stall_limit_s(slow_s) or 0.0,
            f"{FIXED_STEPS:g} steps": lambda _, s=step_s: FIXED_STEPS * s,  # type: ignore[misc]  # bound in each round
            f"{FIXED_S:g} s": lambda _: FIXED_S,
        }
        for name, limit_of in limits.items():
            runs = [run(step_s, hours, limit_of, seed) for seed in range(seeds)]
            if name == "derived":
                alarms += sum(each.alarms for each in runs)
                late = max(late, *(each.noticed_s / each.limit_s for each in runs))
                early_s = max(early_s, *(each.limit_s - each.noticed_s for each in runs))
            rows.append(
                [
                    f"{step_s:g} s",
                    name,
                    str(sum(each.alarms for each in runs)),
                    f"{statistics.median(each.noticed_s for each in runs):.0f} s",
                ]
            )
    print(f"{seeds} runs of {hours:g} hours each\n")
    table(["a step", "limit", "false alarms", "a silence is noticed after"], rows)
    bars(
        "silence",
        [
            Bar("false alarms at the derived limit, jitter of 8 and pauses", float(alarms), 0.0),
            Bar("silence noticed over the derived limit", late, 1.05),
            Bar("seconds it is noticed before the limit", early_s, 0.0),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
