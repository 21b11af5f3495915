"""Chaos for retention: random histories of a run's checkpoints, and how many broke a promise.

Each history is one run at a local server: saves, files damaged in nine ways, checkpoints that
expire, deletions refused or answered too late, recoveries, and a process that dies between any two
writes of its journal. The promises: no forbidden deletion, and always a good checkpoint once one
was saved.

    python benchmarks/keeping.py [--histories 1000] [--seed 1] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import anyio
from _keeping import History, play
from _report import Bar, bars, keep_no_state, table

QUICK_S = 30.0

AT_ONCE = 6
"""Histories under way at the same time; each waits for its server most of the time."""


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--histories", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first one")
    parser.add_argument("--quick", action="store_true", help="as many as fit into 30 s")
    parser.add_argument("--json", action="store_true", help="print the bars on the last line")
    keep_no_state()
    os.environ["TINKER_TELEMETRY"] = "0"
    logging.disable(logging.CRITICAL)
    return parser.parse_args()


async def main(given: argparse.Namespace) -> list[Bar]:
    """Play the histories, print what happened, return the bars."""
    seen: Counter[str] = Counter()
    broken: list[History] = []
    began = time.monotonic()
    played = 0
    seeds = iter(range(given.seed, given.seed + given.histories))

    async def work() -> None:
        nonlocal played
        for seed in seeds:
            if given.quick and time.monotonic() - began > QUICK_S:
                return
            with tempfile.TemporaryDirectory(prefix="keeping-") as folder:
                history = await play(seed, Path(folder))
            played += 1
            seen.update(history.seen)
            if history.violation:
                broken.append(history)
                print(f"VIOLATION, seed {seed}: {history.violation}", flush=True)
            if played % 50 == 0:
                print(
                    f"{played} of {given.histories} histories, {time.monotonic() - began:.0f} s, "
                    f"{len(broken)} violations",
                    flush=True,
                )

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)
    table(
        [f"{played} histories", "times"],
        [[what, str(count)] for what, count in sorted(seen.items())],
    )
    return [Bar("violations", len(broken), 0)]


if __name__ == "__main__":
    given_ = arguments()
    bars("keeping", anyio.run(main, given_), as_json=given_.json)
