"""Kills: a training process killed with SIGKILL at random points, and run again each time.

Each run is poisoned twice by its backend and killed three to six times: by a timer, in each phase
of a recovery, at a save, at a step, in the middle of a journal commit and right after it. The same
command is run again until it is done. The promises: bit-identical final weights, no open session of
a dead process that the journal knew of, and never two processes training the run, although every
fourth time two are started at once.

    python benchmarks/kill.py [--kills 200] [--seed 1] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import anyio
from _kill import Outcome, draw, play, total_kills, undisturbed
from _report import Bar, bars, table

QUICK_S = 12.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the random plans (default 1)")
    parser.add_argument("--quick", action="store_true", help="short ones, as many as fit into 12 s")
    parser.add_argument("--json", action="store_true", help="print the bars on the last line")
    return parser.parse_args()


async def play_all(kills: int, seed: int, limit_s: float | None) -> list[Outcome]:
    """Play random plans until enough processes were killed, with progress on stderr."""
    chance = random.Random(seed)
    expected = await undisturbed()
    outcomes: list[Outcome] = []
    began = time.monotonic()
    while total_kills(outcomes) < kills:
        if limit_s is not None and time.monotonic() - began > limit_s:
            break
        # Each death is the start of a process, which takes seconds on a machine under load.
        outcome = await play(draw(chance, short=limit_s is not None), expected)
        outcomes.append(outcome)
        if outcome.violation:
            print(f"VIOLATION {outcome.violation}\n  {outcome.plan!r}", file=sys.stderr, flush=True)
        print(
            f"{total_kills(outcomes)} of {kills} kills, {len(outcomes)} runs, "
            f"{time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return outcomes


def main() -> None:
    """Play the plans and print the results."""
    given = arguments()
    outcomes = anyio.run(play_all, given.kills, given.seed, QUICK_S if given.quick else None)
    bad = sum(bool(outcome.violation) for outcome in outcomes)
    unknown = sum(outcome.unknown for outcome in outcomes)
    table(
        ("", "count"),
        [
            ("runs", str(len(outcomes))),
            ("processes killed", str(total_kills(outcomes))),
            ("attempts", str(sum(outcome.attempts for outcome in outcomes))),
            ("runs not as promised", str(bad)),
            ("sessions only the service knows of", str(unknown)),
        ],
    )
    bars(
        "kill",
        [
            Bar("violations", bad, 0),
            Bar("kills", total_kills(outcomes), 1 if given.quick else given.kills, "higher"),
        ],
        as_json=given.json,
    )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
