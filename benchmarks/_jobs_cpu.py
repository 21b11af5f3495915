"""How much processor time runs take as jobs, or in one Supervisor; printed in seconds.

python _jobs_cpu.py jobs|supervisor RUNS STEPS [DATABASE]
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import time

import anyio
from _jobs_loop import POLICY, START, train

from tinker_recovery import Supervisor
from tinker_recovery.jobs import Jobs, engine

STARTS_PER_S = 20.0


async def as_jobs(names: list[str], steps: int, database: str) -> None:
    """In this process, which submits and works."""
    async with Jobs(database, policy=POLICY, starts_per_s=STARTS_PER_S) as jobs:
        handles = [
            await jobs.submit(train, name=name, args={"steps": steps}, **START) for name in names
        ]
        for handle in handles:
            await handle.result()


async def supervised(names: list[str], steps: int) -> None:
    """In one Supervisor, begun as fast."""
    async with Supervisor(POLICY) as supervisor, anyio.create_task_group() as group:
        for name in names:
            run = functools.partial(supervisor.run, functools.partial(train, steps=steps))
            group.start_soon(functools.partial(run, name=name, **START))
            await anyio.sleep(1 / STARTS_PER_S)


def main() -> None:
    """Measure."""
    how, runs, steps, *database = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR)
    names = [f"cpu-{number}-{time.time_ns()}" for number in range(int(runs))]
    engine.dismiss()  # imported by now, as everything else is
    began = time.process_time()
    if how == "jobs":
        asyncio.run(as_jobs(names, int(steps), database[0]))
    else:
        asyncio.run(supervised(names, int(steps)))
    print(time.process_time() - began)


if __name__ == "__main__":
    main()
