"""Fencing: processes of several machines that want one run, at a service that is not kind.

Each has a machine id of its own and no journal in common, so only the claims at the service keep
them apart. Three start together (100 races); the holder is paused past the service's heartbeat
limit, taken over, and wakes; and both again where searches lag and the dates of sessions are off.
The promises: no step of a process is accepted once another has taken the run, and every process
comes to an end.

    python benchmarks/fencing.py [--races 100] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time

import anyio
from _fencing import LIMIT_S, Outcome, machines, paused, race
from _report import Bar, bars, table

from tinker_recovery.testing import LocalTinker

QUICK_S = 18.0
KINDLY_S = 0.1
"""What the claims allow a service for listing that lists at once."""

LAG_S = 0.3
JITTER_S = 1000.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--races", type=int, default=100, help="of each kind (default 100)")
    parser.add_argument("--quick", action="store_true", help="as many as fit into 18 s")
    parser.add_argument("--json", action="store_true", help="print the bars on the last line")
    return parser.parse_args()


async def play_all(races: int, limit_s: float | None) -> list[Outcome]:
    """Play the cases, with progress on stderr."""
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if outcome.two_trainers or outcome.stuck or outcome.wrong:
            print(f"NOT AS PROMISED {outcome}", file=sys.stderr, flush=True)
        spent_s = time.monotonic() - began
        print(f"{len(outcomes)} cases, {spent_s:.0f} s", file=sys.stderr, flush=True)

    async with (
        LocalTinker(heartbeat_limit_s=LIMIT_S) as kind,
        LocalTinker(
            heartbeat_limit_s=LIMIT_S, listing_delay_s=LAG_S, created_jitter_s=JITTER_S
        ) as unkind,
        machines(kind, 3, KINDLY_S) as three,
        machines(unkind, 3, LAG_S + KINDLY_S) as others,
    ):
        began = time.monotonic()
        for number in range(races):
            if limit_s is not None and time.monotonic() - began > limit_s:
                break
            for outcome in await asyncio.gather(
                race("started together", f"race-{number}", three),
                race("started together, unkind", f"race-{number}", others),
            ):
                note(outcome)
            if number % 4 == 0:
                for outcome in await asyncio.gather(
                    paused("paused and woken", f"pause-{number}", kind, three),
                    paused("paused and woken, unkind", f"pause-{number}", unkind, others),
                ):
                    note(outcome)
    return outcomes


def main() -> None:
    """Play the cases and print the results."""
    given = arguments()
    outcomes = anyio.run(play_all, given.races, QUICK_S if given.quick else None)
    kinds = sorted({outcome.kind for outcome in outcomes})
    rows = []
    for kind in kinds:
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        took = [outcome.takeover_s for outcome in own if outcome.takeover_s is not None]
        median = f"{statistics.median(took):.2f} s" if took else ""
        wrong = sum(bool(outcome.wrong) for outcome in own)
        rows.append((kind, str(len(own)), str(wrong), median))
    table(("case", "played", "ended otherwise", "pause to successor's step"), rows)
    print(f"\nheartbeat limit of the service: {LIMIT_S:g} s")
    bars(
        "fencing",
        [
            Bar("two trainers", sum(outcome.two_trainers for outcome in outcomes), 0),
            Bar("stuck", sum(outcome.stuck for outcome in outcomes), 0),
            Bar("ended otherwise", sum(bool(outcome.wrong) for outcome in outcomes), 0),
            Bar("cases", len(outcomes), 30 if given.quick else 250, better="higher"),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
