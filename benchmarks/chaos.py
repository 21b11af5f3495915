"""Chaos: random schedules of faults over random loops, and how many broke a promise.

Each schedule (a service like the hosted one or of another dialect, pipeline depth 0 to 3, sync or
async, up to three faults and sometimes an outage) is played with the real SDK on a local server.
The promise: bit-identical final weights, or a clear error where the schedule makes recovery
impossible; no hang, no wrong result, nothing left behind.
Goodput is the time of the same loop without faults, divided by the time it took.

    python benchmarks/chaos.py [--schedules 1000] [--seed 1] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
import warnings

import anyio
from _chaos import Outcome, Schedule, cases, play
from _hang import log_nowhere_else
from _report import Bar, bars, table
from hypothesis import HealthCheck, Phase, given, seed, settings

QUICK_S = 15.0
"""How long schedules are begun; each takes a second or two, a few take ten."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the random schedules (default 1)")
    parser.add_argument("--quick", action="store_true", help="as many as fit into 15 s")
    parser.add_argument("--json", action="store_true", help="print the bars on the last line")
    return parser.parse_args()


class OutOfTime(BaseException):
    """Ends the drawing of schedules; no Exception, which would count as a failed one."""


def play_all(count: int, first_seed: int, limit_s: float | None) -> list[Outcome]:
    """Play random schedules, with progress on stderr."""
    outcomes: list[Outcome] = []
    began = time.monotonic()

    @seed(first_seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def one(schedule: Schedule) -> None:
        if limit_s is not None and time.monotonic() - began > limit_s:
            raise OutOfTime
        outcome = anyio.run(play, schedule)
        outcomes.append(outcome)
        if outcome.violation:
            print(f"VIOLATION {outcome.violation}\n  {schedule!r}", file=sys.stderr, flush=True)
        if len(outcomes) % 25 == 0:
            bad = sum(bool(each.violation) for each in outcomes)
            passed = time.monotonic() - began
            print(
                f"{len(outcomes)} of {count} schedules, {passed:.0f} s, {bad} violations",
                file=sys.stderr,
                flush=True,
            )

    with contextlib.suppress(OutOfTime):
        one()
    return outcomes


def main() -> None:
    """Play, and print."""
    given_ = arguments()
    log_nowhere_else()
    warnings.simplefilter("ignore", ResourceWarning)
    anyio.run(play, Schedule(0, blocking=False, faults=()))  # pays for imports and the reference
    calm = {
        (depth, blocking): anyio.run(play, Schedule(depth, blocking=blocking, faults=())).wall_s
        for depth in range(4)
        for blocking in (False, True)
    }
    limit_s = QUICK_S if given_.quick else None
    outcomes = play_all(10_000 if given_.quick else given_.schedules, given_.seed, limit_s)
    goodputs = [
        min(1.0, calm[each.schedule.depth, each.schedule.blocking] / each.wall_s)
        for each in outcomes
        if each.gave_up is None
    ]
    violations = sum(bool(each.violation) for each in outcomes)
    table(
        ["chaos", ""],
        [
            ["schedules run", str(len(outcomes))],
            ["faults injected", str(sum(len(each.schedule.faults) for each in outcomes))],
            ["faults that struck", str(sum(each.fired for each in outcomes))],
            ["recoveries", str(sum(each.recoveries for each in outcomes))],
            ["given up, with reason", str(sum(each.gave_up is not None for each in outcomes))],
            ["violations", str(violations)],
            ["goodput, median", f"{statistics.median(goodputs):.3f}"],
            ["goodput, mean", f"{statistics.mean(goodputs):.3f}"],
        ],
    )
    worst = max(outcomes, key=lambda each: each.wall_s)
    print(f"\nthe longest took {worst.wall_s:.1f} s; to replay it: {worst.schedule!r}")
    measured = [
        Bar("violations", violations, 0),
        Bar("goodput", statistics.mean(goodputs), 0.6, "higher"),
    ]
    bars("chaos", measured, as_json=given_.json)


if __name__ == "__main__":
    main()
