"""Exactness: services that differ, faults, pipeline depths, with a canary and without.

Every case is a run that has to end with the bits of a run nothing disturbed. The cases are the
product of

- the dialects of the local server: services that forget or refuse metadata, come back at their
  last checkpoint and do not say so, ignore the seed, answer the same question differently each
  time, lack routes, or demand more;
- faults: the server killed and started again at three points, the newest checkpoint damaged, a
  failure whose answer is late, saves overwritten in place, the process killed, the service out of
  reach while the loop is idle, a save that fails; and none at all;
- 0, 1, 2 or 4 batches submitted ahead;
- ``canary="auto"``, the default, or none.

A run that cannot know whether it is exact, and says so, is counted apart and listed. On a service
whose answers are noisy, training is exact, and so has the run to be.

    python benchmarks/exactness.py [--cases N] [--dialect D] [--fault F] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import multiprocessing
import os
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import get_args

import anyio
from _exactness import FAULTS, PROCESS_KILLED, Case, Outcome, play_all
from _report import Bar, bars, keep_no_state, table

from tinker_recovery.testing import Dialect

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
DEPTHS = (0, 1, 2, 4)
FULL, QUICK = 300, 40
AT_ONCE = 4
"""Cases that one worker process plays at once; each mostly waits."""
CHUNK = 8


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, help="how many, drawn evenly (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default 1)")
    parser.add_argument("--dialect", choices=DIALECTS, help="only this service")
    parser.add_argument("--fault", choices=FAULTS, help="only this fault")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases")
    parser.add_argument("--json", action="store_true", help="print the bars on the last line")
    keep_no_state()
    return parser.parse_args()


def drawn(given: argparse.Namespace) -> list[Case]:
    """The cases to play: every dialect and every fault about equally often."""
    every = [
        Case(dialect, fault, depth, canary)
        for dialect, fault, depth, canary in itertools.product(
            DIALECTS if given.dialect is None else (given.dialect,),
            FAULTS if given.fault is None else (given.fault,),
            DEPTHS,
            (True, False),
        )
    ]
    chance = random.Random(given.seed)
    chance.shuffle(every)
    count = QUICK if given.quick else given.cases
    if count is None:
        return every
    if given.quick:
        # Each of these begins two processes, which is seconds apiece: one of each will do.
        some = {case.fault: case for case in every if case.fault in PROCESS_KILLED}
        every = [case for case in every if case.fault not in PROCESS_KILLED] + [*some.values()]
    # The rarest cell next, so that a few cases still meet every dialect and every fault.
    seen: Counter[str] = Counter()
    chosen: list[Case] = []
    while every and len(chosen) < count:
        case = min(every, key=lambda each: seen[each.dialect] + seen[each.fault])
        every.remove(case)
        chosen.append(case)
        seen.update((case.dialect, case.fault))
    return chosen


def end_with_the_parent() -> None:
    """A worker whose benchmark was killed would play on for minutes."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(cases: Sequence[Case]) -> list[Outcome]:
    """Play some cases in a process of its own."""
    os.environ["TINKER_TELEMETRY"] = "0"
    for name in ("tinker", "asyncio", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Its warnings are listened to, and not printed.
    ours = logging.getLogger("tinker_recovery")
    ours.propagate = False
    ours.addHandler(logging.NullHandler())
    warnings.simplefilter("ignore", ResourceWarning)
    return anyio.run(functools.partial(play_all, cases, at_once=AT_ONCE))


def played(cases: Sequence[Case], workers: int) -> list[Outcome]:
    """Play cases on several processes, with progress on stderr."""
    # A chunk is of one dialect, whose undisturbed run it has to play first.
    chunks = [
        of[at : at + CHUNK]
        for dialect in DIALECTS
        if (of := [case for case in cases if case.dialect == dialect])
        for at in range(0, len(of), CHUNK)
    ]
    outcomes: list[Outcome] = []
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_the_parent) as pool:
        for done in as_completed(pool.submit(work, chunk) for chunk in chunks):
            outcomes += done.result()
            for each in done.result():
                if each.verdict != "exact":
                    print(f"{each.verdict}: {each.case}: {each.said[:300]}", file=sys.stderr)
            bad = sum(each.verdict not in {"exact", "loudly inexact"} for each in outcomes)
            print(
                f"{len(outcomes)} of {len(cases)} cases, {time.monotonic() - began:.0f} s, "
                f"{bad} bad",
                file=sys.stderr,
                flush=True,
            )
    return outcomes


def main() -> None:
    """Play, print, and exit with 1 if a bar is missed."""
    given = arguments()
    outcomes = played(drawn(given), given.workers)
    verdicts = Counter(f"{each.case.dialect} {each.verdict}" for each in outcomes)
    columns = ("exact", "loudly inexact", "silently wrong", "given up", "hung")
    table(
        ["service", "cases", *columns],
        [
            [
                dialect,
                str(sum(each.case.dialect == dialect for each in outcomes)),
                *(str(verdicts[f"{dialect} {column}"]) for column in columns),
            ]
            for dialect in DIALECTS
        ],
    )
    print()
    table(
        ["fault", "cases", "exact", "recoveries", "longest s"],
        [
            [
                fault,
                str(len(of)),
                str(sum(each.verdict == "exact" for each in of)),
                str(sum(each.recoveries for each in of)),
                f"{max(each.wall_s for each in of):.1f}",
            ]
            for fault in FAULTS
            if (of := [each for each in outcomes if each.case.fault == fault])
        ],
    )
    for each in sorted(outcomes, key=lambda each: (each.verdict, str(each.case))):
        if each.verdict != "exact":
            print(f"\n{each.verdict}: {each.case}\n  {each.said[:2000]}\n    {each.events}")
    given_up = [each for each in outcomes if each.verdict in {"given up", "hung"}]
    measured = [
        Bar("silently wrong", sum(each.verdict == "silently wrong" for each in outcomes), 0),
        Bar("given up or hung with a checkpoint there", len(given_up), 0),
        Bar("worse than bare", sum(each.worse_than_bare for each in outcomes), 0),
        Bar("cases", len(outcomes), QUICK if given.quick else FULL, "higher"),
    ]
    bars("exactness", measured, as_json=given.json)
    sys.exit(0 if all(bar.holds for bar in measured) else 1)


if __name__ == "__main__":
    main()
